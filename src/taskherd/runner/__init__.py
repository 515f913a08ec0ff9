"""The runner: executes work requests by running agents as local processes, and reports what happens to them.

The parts, in the order in which a request passes through them:

1. ``dispatcher``: consumes the queues of the pool and of this runner, and passes each request to the supervisor of its
   task. A request is acknowledged once it is accepted: a build when it is in the journal, an input when its outcome is.
2. ``supervisor``: one for each task, as long as the task has a folder here. It executes the task's requests in order,
   each once. ``journal`` is its file of accepted requests. Before it starts a build it claims the build (``claims``),
   so that only one runner of a pool starts it.
3. ``workspaces/``: where the agent runs: folder, environment, limits and processes. ``workspace`` starts, stops,
   removes and recovers it.
4. ``shim``: the agent's parent process. It writes the output to segment files and the exit status to a record,
   enforces the time limit, and ends all descendants on SIGTERM. It shares only files and signals with the runner.
   ``activity`` tells from /proc whether a silent agent is working.
5. ``agents/``: a session for each running agent waits for its exit. A follower reads what the agent does (from its
   output or its AgentAPI) and delivers inputs; there is one follower for each value of ``agent`` in a template.
6. ``reporter``: turns what supervisor and follower observe into reports with rising sequence numbers.
7. ``outbox``: one for each task. It keeps reports, in memory and on disk, until the broker has confirmed them.
8. ``report_sender``: publishes the reports of all outboxes, and heartbeats.

``app`` builds the process and starts and stops all of this in order.

What survives what:

- The runner exits or crashes: shims and agents continue. The next runner finds task folders and journals, completes
  accepted builds, adopts living shims, and reads the exit records of finished ones (``workspace.recover``). Each record
  of the outbox holds a checkpoint of the follower (how far it had read) together with the reports made from that
  output, so reading continues where it stopped, and no output is reported twice. An input that was being delivered
  counts as failed: whether the agent received it is unknown.
- The shim is killed: the kernel kills its agent too (PR_SET_PDEATHSIG). The runner kills all other processes that carry
  the run's marker variable, and reports that the exit status is lost.
- The machine or container stops: folders survive if their disk does. Agents are reported as lost, and resuming a task
  starts its agent again in the same folder, with its prompt unless it had finished with it.
- The broker is unreachable: agents continue and reports wait in the outboxes. At 1 MiB of reports of one task, or at
  ``TASKHERD_RUNNER_BUFFER_MOST`` of all tasks, followers stop reading; the shims keep the latest 16 MiB of each agent's
  output. Heartbeats are not stored.
- The worker is down: its queues keep reports and claims. A start request that is certainly the only copy is executed
  after 5 s without a reply to its claim; other copies are left to the next repeat.
- The disk is full: output is dropped and counted, exit records still fit into reserved space, and starts fail with an
  error that says so. Stops and deletes are executed.
- The runner's queues do not exist: the worker declares them when the runner says hello (``hello``), which it repeats
  until then.
- Another process consumes under this runner's name: it waits (``sole_consumer``), and its agents and reports go on.
- A task was deleted while this runner was away: after each connection ``orphans`` asks the worker about each task, and
  the runner removes those that were deleted.
- The database was restored from an older backup: tasks that it does not know stay as they are, and the log names them.
"""
