"""The workspace of one task: start, stop and remove it, and recover it after a crash."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from taskherd.domain.reports import AgentState, ExitReason, Health, InterruptOutcome, Lifecycle, LogSource
from taskherd.errors import Malformed, Unavailable
from taskherd.runner import listeners, log_ids, template
from taskherd.runner.agents.acp.closed_requests import ClosedRequests
from taskherd.runner.agents.conclusion import conclude
from taskherd.runner.agents.context import NOT_RUNNING, AgentContext, AnswerOutcome, DeliveryUnknown, NotDelivered
from taskherd.runner.agents.kinds import follower_class
from taskherd.runner.agents.log_budget import LogBudget
from taskherd.runner.agents.session import AgentSession
from taskherd.runner.journal import Phase
from taskherd.runner.workspaces import processes, removal
from taskherd.runner.workspaces.launcher import Launcher
from taskherd.runner.workspaces.task_processes import TaskProcesses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from taskherd.directory_file.run import RunConfig
    from taskherd.messages.work import AgentAnswer, WorkspaceStart
    from taskherd.runner.agents.context import RecordAttempt
    from taskherd.runner.context import RunnerContext
    from taskherd.runner.journal import Journal
    from taskherd.runner.outbox import Outbox
    from taskherd.runner.reporter import Reporter
    from taskherd.runner.workspaces.folders import RunFolder, TaskFolder
    from taskherd.runner.workspaces.processes import ExitRecord, ShimHandle

log = structlog.get_logger(__name__)

ENDING_TIMEOUT = 10.0
"""Seconds that an agent may take to exit after it has said that it is done, before it counts as waiting."""
_ENDING_POLL_INTERVAL = 0.2
"""Seconds between two looks whether a request waits that ends an agent."""


class StartEnded(Exception):  # noqa: N818 - not an error: the next request ends the agent
    """A request that ends the agent has arrived before the start of the agent was over."""


class TaskWorkspace:
    """The workspace of one task."""

    def __init__(
        self,
        context: RunnerContext,
        folder: TaskFolder,
        journal: Journal,
        *,
        outbox: Outbox,
        start_reporter: Callable[[int], Reporter],
        save: Callable[[], Awaitable[None]],
        deliver_once: Callable[[UUID, str], Awaitable[str | None]],
        has_ending: Callable[[], bool],
    ) -> None:
        """Create it for the task of the journal.

        Args:
            context: what all tasks of the runner share.
            folder: where the task's files are.
            journal: what of the task survives the runner.
            outbox: the task's reports.
            start_reporter: returns a reporter for the agent of this build.
            save: writes the journal.
            deliver_once: delivers an input at most once.
            has_ending: whether a request waits that ends the agent of the latest start.
        """
        self._context = context
        self._folder = folder
        self._journal = journal
        self._outbox = outbox
        self._start_reporter = start_reporter
        self._save = save
        self._deliver_once = deliver_once
        self._has_ending = has_ending
        self._processes = TaskProcesses(context.isolation, folder, journal)
        self._launcher = Launcher(context, folder, journal, outbox=outbox, processes=self._processes, save=save)
        self._session: AgentSession | None = None
        self._last_notice = 0
        self._ending_since: float | None = None
        self.health: Health | None = None
        """The app's health to report when the start build succeeds."""

    @property
    def running(self) -> bool:
        """True while an agent is running."""
        return self._session is not None

    def is_working(self, now: float) -> bool:
        """Return whether an agent is running that is not known to wait; ``now`` is in seconds of the event loop.

        One that waits for an answer in the middle of its turn works, and so do all agents that report their own states,
        which the runner does not know.
        """
        checkpoint, start = self._outbox.checkpoint, self._journal.start
        is_current = start is not None and checkpoint.get("build") == start.build_number
        state = checkpoint.get("state") if is_current and checkpoint.get("turn") is None else None
        if state not in {AgentState.COMPLETE, AgentState.FAILED}:
            self._ending_since = None
            return self.running and state != AgentState.IDLE
        self._ending_since = now if self._ending_since is None else self._ending_since
        return self.running and now - self._ending_since < ENDING_TIMEOUT

    def has_succeeded(self) -> bool:
        """Return whether the agent of the latest start is recorded to have exited on its own, with exit status 0."""
        start = self._journal.start
        return start is not None and processes.has_succeeded(self._folder.run(start.build_number))

    async def execute(self, reporter: Reporter) -> str | None:
        """Execute the accepted build of the journal; idempotent. Return an error message, or None on success.

        Raise ``StartEnded`` if the start is not over, and the request that ends it is to be executed now.
        """
        match self._journal.transition:
            case "start":
                assert self._journal.start is not None
                return await self._start(self._journal.start, reporter)
            case "stop":
                return await self.stop()
            case "delete":
                return await self.stop() or await self._remove()
            case _:
                assert_never(self._journal.transition)

    async def stop(self) -> str | None:
        """Stop the agent if it is running, and end what it left. Return an error message, or None on success."""
        session, leftover = self._session, 0
        if session is not None:
            session.reporter.lifecycle(Lifecycle.SHUTTING_DOWN)
            leftover = (await session.stop()).leftover
            session.reporter.disconnected()
            session.reporter.lifecycle(Lifecycle.OFF)
        await self._processes.end_unknown_runs()
        leftover = max(leftover, await self._processes.end())
        if leftover:
            return f"{leftover} processes of the agent could not be killed; check the runner's machine."
        return None

    def kill(self) -> None:
        """Cut short the grace time of the agent that is being stopped."""
        if self._session is not None:
            self._session.kill()

    async def recover(self) -> None:
        """Adopt the agent that an earlier runner started, or report how it has ended."""
        start = self._journal.start
        if start is None or self._journal.exit_reported or self._has_no_run(start):
            return
        folder = self._folder.run(start.build_number)
        shim = await processes.adopt(folder)
        agent_ran = folder.started.exists() or self._journal.workspace_is_up
        if shim is not None:
            self._context.metrics.runner_adopted.labels("running").inc()
            self._open_session(shim, start)
        elif agent_ran:
            agent_exit = await asyncio.to_thread(processes.read_exit, folder, agent_started=agent_ran)
            if agent_exit.reason == "lost" and self._journal.transition != "start":
                agent_exit = replace(agent_exit, reason="stopped")  # the earlier runner was stopping it
            self._context.metrics.runner_adopted.labels("lost" if agent_exit.reason == "lost" else "ended").inc()
            run = template.parse(start.run)
            context = self._agent_context(run, self._start_reporter(start.build_number))
            if agent_exit.why is not ExitReason.NOT_STARTED:
                self._note_launch(run)
                if follower_class(run).start_outcome == "" and follower_class(run).initial_health is Health.HEALTHY:
                    self._note_ready(context.reporter)
            ending = asyncio.create_task(self._watch_ending(context.stopping))
            try:
                await conclude(context, agent_exit, partial(follower_class(run), context))
            finally:
                ending.cancel()
            await self._record_exit(start.build_number, agent_exit)

    async def _watch_ending(self, stopping: asyncio.Event) -> None:
        """Set the event once a request waits that ends the agent, which need not wait for its last output."""
        while not self._has_ending():  # noqa: ASYNC110 - the queue tells nobody else
            await asyncio.sleep(_ENDING_POLL_INTERVAL)
        stopping.set()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> str | None:
        """Deliver an input to the agent. Return an error message, or None if it was delivered."""
        session = self._session
        if session is None:
            return NOT_RUNNING
        try:
            await session.deliver(text, record_attempt)
        except (NotDelivered, DeliveryUnknown) as error:
            return str(error)
        except OSError as error:
            return f"The input was not delivered: the runner cannot write its journal ({error})."
        return None

    def is_at_work(self, build_number: int) -> bool:
        """Return whether the agent of a build is running, and at work as far as this runner can tell."""
        session = self._session
        return session is not None and session.reporter.build_number == build_number and session.follower.is_at_work

    async def interrupt(self, build_number: int) -> InterruptOutcome:
        """End what the agent of a build does, in the end by ending it. Raise ``NotInterrupted``."""
        session, journal = self._session, self._journal
        if session is None or session.reporter.build_number != build_number:
            return InterruptOutcome.ENDED
        outcome = await session.interrupt_turn()
        if journal.interrupted and not session.has_exited():
            journal.interrupted = False  # an earlier runner was about to end it, and its turn has ended since
        return outcome

    def answer(self, request: AgentAnswer) -> AnswerOutcome:
        """Give the agent of a build the answer to its request, at most once. Raise ``OSError`` if that is not recorded.

        If it has ended, report again what became of the request.
        """
        session = self._session
        if session is not None and session.reporter.build_number == request.build_number:
            return session.follower.answer(request.request_id, request.option_id, request.text)
        checkpoint = self._outbox.checkpoint
        if session is not None or checkpoint.get("build") != request.build_number:
            return AnswerOutcome.IGNORED
        report = ClosedRequests(checkpoint.get("requests", {}).get("closed", ())).report_of(request.request_id)
        if report is None:
            return AnswerOutcome.IGNORED
        self._start_reporter(request.build_number).repeat(report)
        return AnswerOutcome.REPEATED

    def append_notice(self, reporter: Reporter, text: str) -> None:
        """Append a notice by the runner to the task's log."""
        self._last_notice = max(self._last_notice + 1, round(self._context.now().timestamp() * 1_000))
        entry_id = log_ids.FIRST_NOTICE_ID + self._last_notice
        reporter.log([reporter.entry(entry_id, LogSource.OUTPUT, f"taskherd: {text}")])

    async def detach(self) -> None:
        """Stop following the agent without stopping it."""
        session, self._session = self._session, None
        if session is not None:
            await session.detach()

    def _has_no_run(self, start: WorkspaceStart) -> bool:
        """Return whether no run of that start can be left: it failed, or a later build has completed."""
        if self._journal.build_number == start.build_number:
            return self._journal.phase is Phase.FAILED
        return self._journal.phase is Phase.DONE

    async def _start(self, request: WorkspaceStart, reporter: Reporter) -> str | None:
        session = self._session
        if session is not None and session.reporter.build_number < request.build_number:
            await self.stop()
        try:
            run = template.parse(request.run)
            if self._session is None and not self._journal.exit_reported:
                await self._launch(run, request, reporter)
        except (Malformed, OSError, ValueError, Unavailable) as error:
            if isinstance(error, Malformed):
                return error.detail
            reporter.agent_exit(ExitReason.NOT_STARTED, None, None, str(error))
            return f"The agent could not be started: {error}"
        if not (self._journal.ready_reported or self._journal.exit_reported):  # else it would be starting for ever
            reporter.lifecycle(Lifecycle.STARTING)
        session = self._session
        if session is not None:
            problem = await session.wait_started(self._has_ending)
            if problem is None:
                raise StartEnded
            if problem:
                if self._session is not None:
                    await session.stop()
                await self._processes.end()
                return problem
        self.health = follower_class(run).initial_health
        return None

    async def _launch(self, run: RunConfig, request: WorkspaceStart, reporter: Reporter) -> None:
        if request.build_number > 1 and not any(self._folder.state.glob("run-*")):
            self.append_notice(
                reporter,
                "the workspace starts with an empty folder: this runner has no files of its earlier builds.",
            )
        self._open_session(await self._launcher.launch(run, request), request)

    async def _remove(self) -> str | None:
        try:
            await removal.in_background(self._folder.remove_work)
        except OSError as error:
            return f"The workspace could not be removed: {error}. The runner's user must be able to delete its files."
        return None

    def _open_session(self, shim: ShimHandle, start: WorkspaceStart) -> None:
        reporter = self._start_reporter(start.build_number)
        run = template.parse(start.run)
        self._note_launch(run)
        context = self._agent_context(run, reporter)
        on_exit = partial(self._record_exit, start.build_number)
        self._session = AgentSession(shim, partial(follower_class(run), context), context, on_exit)

    def _note_launch(self, run: RunConfig) -> None:
        """Record the prompt as given if the agent was started with it."""
        if self._journal.gives_prompt and not run.takes_prompt_as_input:
            self._journal.record_prompt()

    def _note_ready(self, reporter: Reporter) -> None:
        """Report that an agent of a kind that is ready from its start was ready; its exit is recorded with that."""
        if not self._journal.ready_reported:
            reporter.ready()
            self._journal.ready_reported = True

    async def _record_exit(self, build_number: int, agent_exit: ExitRecord) -> None:
        """Record that the exit of a build's agent was reported, and clean up after it."""
        start = self._journal.start
        self._session = None
        if start is not None and start.build_number == build_number:  # otherwise the next agent is about to be started
            self._journal.exit_reported = True
        self._context.metrics.runner_endings.labels(agent_exit.why.value).inc()
        try:
            await self._processes.end()
        except Exception:  # the next start or stop ends them
            log.exception("cannot end what an agent left", task_id=str(self._journal.task_id))
        try:
            await self._save()
        except OSError as error:
            log.warning("cannot write journal", task_id=str(self._journal.task_id), reason=str(error))

    async def _identify_peer(self, folder: RunFolder, own_port: int) -> listeners.Peer:
        """Return who has the other end of the connection from a port to that of this run's agent."""
        journal = self._journal
        assert journal.port is not None
        shim = processes.recorded_shim(folder)
        return await listeners.identify_peer(own_port, journal.port, shim, journal.agent_uid)

    def _mcp_servers(self, run: RunConfig) -> list[dict[str, Any]]:
        """Return the MCP servers for an agent that is given some, as ACP describes them."""
        start = self._journal.start
        if run.mcp_servers == "none" or start is None:
            return []
        env = {"TASKHERD_API_URL": self._context.api_url, "TASKHERD_AGENT_TOKEN": start.agent_token}
        variables = [{"name": name, "value": value} for name, value in env.items()]
        return [{"name": "taskherd", "command": sys.executable, "args": ["-m", "taskherd", "mcp"], "env": variables}]

    def _interrupt_agent(self) -> None:
        if self._session is not None:
            self._session.interrupt()

    def _stop_agent(self) -> None:
        if self._session is not None:
            self._session.end()

    def _agent_context(self, run: RunConfig, reporter: Reporter) -> AgentContext:
        """Return what the followers of the agent of the reporter's build use."""
        return AgentContext(
            run=run,
            journal=self._journal,
            folder=self._folder.run(reporter.build_number),
            reporter=reporter,
            outbox=self._outbox,
            metrics=self._context.metrics,
            save=self._save,
            deliver_once=self._deliver_once,
            processes=self._context.processes,
            log_budget=LogBudget(self._context.log_rates),
            work=self._folder.work,
            workdir=self._folder.work / run.workdir,
            start_command=self._launcher.start_command,
            identify_peer=partial(self._identify_peer, self._folder.run(reporter.build_number)),
            mcp_servers=self._mcp_servers(run),
            interrupt_agent=self._interrupt_agent,
            stop_agent=self._stop_agent,
            failpoint=self._context.failpoint,
        )
