"""The workspace of one task: brought up with an agent in it, taken down, removed, and found again after a crash."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, assert_never

import structlog

from taskherd.domain.reports import Health, Lifecycle, LogSource
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.work import WorkspaceDelete, WorkspaceStart, WorkspaceStop
from taskherd.runner import template
from taskherd.runner.agents.agentapi import AgentApiFollower
from taskherd.runner.agents.context import AgentContext, DeliveryUnknown, NotDelivered
from taskherd.runner.agents.self_reporting import SelfReporting
from taskherd.runner.agents.session import AgentSession
from taskherd.runner.agents.stdio import StdioFollower
from taskherd.runner.journal import Phase
from taskherd.runner.workspaces import environment, processes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from taskherd.runner.agents.context import Begin, Follower
    from taskherd.runner.context import RunnerContext
    from taskherd.runner.journal import Journal
    from taskherd.runner.outbox import Outbox
    from taskherd.runner.reporter import Reporter
    from taskherd.runner.template import Run
    from taskherd.runner.workspaces.folders import TaskFolder
    from taskherd.runner.workspaces.processes import AgentExit, ShimHandle

log = structlog.get_logger(__name__)

NOTICES = 2**41
"""Where the ids of log entries begin that the runner writes itself; milliseconds since the epoch are added."""
GONE = "The agent is not running."


class TaskWorkspace:
    """The workspace of one task."""

    def __init__(
        self,
        context: RunnerContext,
        folder: TaskFolder,
        journal: Journal,
        *,
        outbox: Outbox,
        reporter: Callable[[WorkspaceStart], Reporter],
        save: Callable[[], Awaitable[None]],
        once: Callable[[UUID, str], Awaitable[str | None]],
    ) -> None:
        self._context = context
        self._folder = folder
        self._journal = journal
        self._outbox = outbox
        self._reporter_for = reporter
        self._save = save
        self._once = once
        self._session: AgentSession | None = None
        self._notices = 0
        self.health: Health | None = None
        """The health of the agent's app when its build is done."""

    @property
    def running(self) -> bool:
        """Whether an agent runs."""
        return self._session is not None

    async def perform(
        self, request: WorkspaceStart | WorkspaceStop | WorkspaceDelete, reporter: Reporter
    ) -> str | None:
        """Do what is asked for; doing it again does no harm. In words what went wrong, None when nothing did."""
        match request:
            case WorkspaceStart():
                return await self._start(request, reporter)
            case WorkspaceStop():
                return await self._stop()
            case WorkspaceDelete():
                return await self._stop() or await self._remove()
            case _:
                assert_never(request)

    async def recover(self) -> None:
        """Take up the agent that an earlier runner started; where it has ended meanwhile, say how."""
        start = self._journal.start
        if start is None or self._journal.ended or self._is_over(start):
            return
        folder = self._folder.run(start.build_number)
        shim = await processes.adopt(folder)
        ran = folder.started.exists()
        if shim is not None:
            self._context.metrics.runner_adopted.labels("running").inc()
            self._begin(shim, start)
        elif ran and self._journal.transition == "start":
            exit_ = await asyncio.to_thread(processes.read_exit, folder)
            self._context.metrics.runner_adopted.labels("lost" if exit_.why == "lost" else "ended").inc()
            self._follower(template.parse(start.run), self._reporter_for(start))().conclude(exit_)
            await self._record_exit(exit_)

    async def deliver(self, text: str, begin: Begin) -> str | None:
        """Give the agent an input; in words why it did not take it, or that this is unknown."""
        session = self._session
        if session is None:
            return GONE
        try:
            await session.run_while_alive(session.follower.deliver(text, begin))
        except (NotDelivered, DeliveryUnknown) as error:
            return str(error)
        except OSError as error:
            return f"The runner could not note that it gives the input: {error}"
        return None

    def append_notice(self, reporter: Reporter, text: str) -> None:
        """Write something into the conversation that neither side said."""
        self._notices = max(self._notices + 1, round(self._context.now().timestamp() * 1_000))
        number = NOTICES + self._notices
        reporter.log([reporter.entry(number, LogSource.OUTPUT, f"taskherd: {text}")])

    async def detach(self) -> None:
        """Let the agent be: its shim keeps it, for the next runner to find."""
        session, self._session = self._session, None
        if session is not None:
            await session.detach()

    def _is_over(self, start: WorkspaceStart) -> bool:
        """Whether nothing of that build is to be found any more."""
        if self._journal.build_number == start.build_number:
            return self._journal.phase is Phase.FAILED
        return self._journal.phase is Phase.DONE

    async def _start(self, request: WorkspaceStart, reporter: Reporter) -> str | None:
        session = self._session
        if session is not None and session.reporter.build_number < request.build_number:
            await self._stop()
        try:
            run = template.parse(request.run)
            if self._session is None and not self._journal.ended:
                await self._launch(run, request, reporter)
        except (Malformed, OSError, ValueError, Unavailable) as error:
            return error.detail if isinstance(error, Malformed) else f"The agent could not be started: {error}"
        reporter.lifecycle(Lifecycle.STARTING)
        self.health = Health.INITIALIZING if run.agent == "agentapi" else Health.HEALTHY
        return None

    async def _launch(self, run: Run, request: WorkspaceStart, reporter: Reporter) -> None:
        if request.build_number > 1 and not any(self._folder.state.glob("run-*")):
            self.append_notice(
                reporter, "the workspace begins with an empty directory: this runner did not have it before."
            )
        self._folder.drop_runs()
        self._folder.prompt.write_text(request.prompt, encoding="utf-8", errors="replace")
        self._journal.port = _free_port() if run.agent == "agentapi" else None
        await self._save()
        shim = await processes.start(self._folder.run(request.build_number), self._spec(run, request))
        self._begin(shim, request)

    async def _stop(self) -> str | None:
        session = self._session
        if session is None:
            return None
        session.reporter.lifecycle(Lifecycle.SHUTTING_DOWN)
        exit_ = await session.stop()
        session.reporter.disconnected()
        session.reporter.lifecycle(Lifecycle.OFF)
        return f"{exit_.leftover} processes of the agent could not be killed." if exit_.leftover else None

    async def _remove(self) -> str | None:
        try:
            await asyncio.to_thread(self._folder.drop_work)
        except OSError as error:
            return f"The workspace could not be removed: {error}"
        return None

    def _begin(self, shim: ShimHandle, start: WorkspaceStart) -> None:
        reporter = self._reporter_for(start)
        follower = self._follower(template.parse(start.run), reporter)
        self._session = AgentSession(shim, follower, reporter, self._record_exit)

    async def _record_exit(self, exit_: AgentExit) -> None:
        """Note that the end of an agent was told."""
        start = self._journal.start
        self._session = None
        self._journal.ended = True
        self._context.metrics.runner_endings.labels(exit_.why).inc()
        if self._context.cgroups and start is not None:
            self._context.cgroups.drop(start.task_id, start.build_number)
        try:
            await self._save()
        except OSError as error:
            log.warning("journal can't be written", reason=str(error))

    def _spec(self, run: Run, request: WorkspaceStart) -> processes.RunSpec:
        context = self._context
        where = environment.LaunchPaths(self._folder.work, self._folder.prompt, context.api_url, self._journal.port)
        cwd = environment.workdir(run, where)
        cwd.mkdir(parents=True, exist_ok=True)
        limits = run.limits
        return processes.RunSpec(
            argv=environment.command(run, request, where),
            cwd=cwd,
            env=environment.variables(run, request, where, context.environ),
            grace=run.grace,
            timeout=limits.timeout,
            memory=limits.memory,
            cpu=limits.cpu,
            cgroup=context.cgroups.make(request.task_id, request.build_number, limits) if context.cgroups else None,
        )

    def _follower(self, run: Run, reporter: Reporter) -> Callable[[], Follower]:
        """What makes a follower of the agent of that build, anew each time it is called."""
        context = AgentContext(
            run=run,
            journal=self._journal,
            folder=self._folder.run(reporter.build_number),
            reporter=reporter,
            outbox=self._outbox,
            metrics=self._context.metrics,
            save=self._save,
            once=self._once,
        )
        match run.agent:
            case "stdio":
                return partial(StdioFollower, context)
            case "agentapi":
                return partial(AgentApiFollower, context)
            case "self":
                return partial(SelfReporting, context)
            case _:
                assert_never(run.agent)


def _free_port() -> int:
    """A port that is free now; should somebody take it before the agent does, the agent fails and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
