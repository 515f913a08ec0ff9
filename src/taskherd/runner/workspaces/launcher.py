"""Launch the agents of one task: isolated, with the command and the prompt that they need after what was before."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from taskherd.domain.reports import AgentState
from taskherd.runner import template
from taskherd.runner.agents.kinds import follower_class
from taskherd.runner.workspaces import processes, terminals
from taskherd.runner.workspaces.background import run_in_thread
from taskherd.runner.workspaces.launch_plan import LaunchPlan, plan_launch
from taskherd.runner.workspaces.run_spec import make_run_spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from taskherd.directory_file.run import RunConfig
    from taskherd.messages.work import WorkspaceStart
    from taskherd.runner.context import RunnerContext
    from taskherd.runner.journal import Journal
    from taskherd.runner.outbox import Outbox
    from taskherd.runner.workspaces.folders import RunFolder, TaskFolder
    from taskherd.runner.workspaces.processes import ShimHandle
    from taskherd.runner.workspaces.task_processes import TaskProcesses
    from taskherd.runner.workspaces.terminals import TerminalCommand

_EXECUTOR: Final = ThreadPoolExecutor(8, thread_name_prefix="launch")
"""Its threads remove what earlier agents have left, which may be millions of files: only other starts wait for them."""


class Launcher:
    """Starts one task's agents, and commands beside them. The journal keeps what must survive a runner's restart."""

    def __init__(
        self,
        context: RunnerContext,
        folder: TaskFolder,
        journal: Journal,
        *,
        outbox: Outbox,
        processes: TaskProcesses,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self._context = context
        self._folder = folder
        self._journal = journal
        self._outbox = outbox
        self._processes = processes
        self._save = save

    async def launch(self, run: RunConfig, request: WorkspaceStart) -> ShimHandle:
        """Launch the agent of a start. Raise ``OSError``, ``ValueError`` or ``Unavailable`` if that is not possible."""
        uid = await self._isolate(run)
        plan = self._plan(run, request)
        self._journal.port = free_port() if follower_class(run).needs_port else None
        await self._save()
        await run_in_thread(_EXECUTOR, self._folder.remove_runs)
        run = run.model_copy(update={"command": plan.command})
        launched = request if plan.gives_prompt else request.model_copy(update={"prompt": ""})
        self._folder.write_prompt(launched.prompt, uid)
        return await processes.start(self._folder.run(request.build_number), self._spec(run, launched, uid))

    def start_command(self, folder: RunFolder, command: TerminalCommand) -> ShimHandle:
        """Start a command beside the agent. Raise ``OSError`` if that fails."""
        start, sandbox = self._journal.start, self._context.isolation.sandbox
        assert start is not None
        run = template.parse(start.run)

        def wrap(argv: Sequence[str], cwd: Path) -> Sequence[str]:
            return argv if run.sandbox == "none" else sandbox.wrap(argv, self._folder, cwd, run.network)

        agent = self._spec(run, start, self._journal.agent_uid)
        return processes.spawn(folder, terminals.make_terminal_spec(agent, command, wrap))

    def has_finished(self) -> bool:
        """Return whether the latest agent in this folder had done what it was given: it waited, or exited with 0."""
        checkpoint = self._outbox.checkpoint
        if checkpoint.get("state") in {AgentState.IDLE, AgentState.COMPLETE} and checkpoint.get("turn") is None:
            return True
        return any(processes.has_succeeded(run) for run in self._folder.list_runs())

    def _plan(self, run: RunConfig, request: WorkspaceStart) -> LaunchPlan:
        """Return the plan of a launch, and note it in the journal.

        That of an earlier runner stands: it may have removed the runs from which it was made.
        """
        journal = self._journal
        if journal.planned_build == request.build_number:
            command = (run.resume_command if journal.resumes else None) or run.command
            return LaunchPlan(command, gives_prompt=journal.gives_prompt)
        given, has_session = journal.was_given(request.prompt), journal.stream_session is not None
        plan = plan_launch(run, given=given, finished=self.has_finished(), has_session=has_session)
        journal.planned_build, journal.gives_prompt = request.build_number, plan.gives_prompt
        journal.resumes = plan.command == run.resume_command
        return plan

    async def _isolate(self, run: RunConfig) -> int | None:
        """Prepare the isolation that the template and the runner's settings demand. Return the agent's user.

        End what an interrupted start may have left. The user is recorded before anything runs as it.
        """
        isolation, journal = self._context.isolation, self._journal
        await asyncio.to_thread(isolation.check, run)
        await self._processes.end_unknown_runs()
        await self._processes.end()
        uid = await asyncio.to_thread(isolation.assign_user, journal.task_id)
        if uid is not None and uid != journal.agent_uid:
            journal.agent_uid = uid
            await self._save()
        await run_in_thread(_EXECUTOR, partial(isolation.prepare, run, self._folder, uid))
        return uid

    def _spec(self, run: RunConfig, request: WorkspaceStart, uid: int | None) -> processes.RunSpec:
        journal = self._journal
        session = journal.stream_session or ""
        return make_run_spec(run, request, self._context, self._folder, uid=uid, port=journal.port, session=session)


def free_port() -> int:
    """Return a port that is free now; if another process takes it before the agent does, the agent's start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
