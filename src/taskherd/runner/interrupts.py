"""The interrupts of one task: carry each out once, whatever becomes of the runner, and report the outcome.

An interrupt is accepted when it is in the journal. The next runner that finds it there carries it out again, unless the
outcome is there, too: that may have been reported, and the agent may have been given its next turn since.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.domain.reports import InterruptOutcome
from taskherd.messages.work import AgentInterrupt
from taskherd.observability.failpoints import Failpoint
from taskherd.runner.agents.context import NotInterrupted
from taskherd.runner.journal import AcceptedInterrupt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from taskherd.runner.inputs import TaskInputs
    from taskherd.runner.journal import Journal
    from taskherd.runner.reporter import Reporter
    from taskherd.runner.requests import PendingRequest
    from taskherd.runner.workspaces.workspace import TaskWorkspace

log = structlog.get_logger(__name__)

INPUT_TIMEOUT: Final = 5.0
"""Seconds to wait for the delivery of an input that was sent before the interrupt, which is then interrupted too."""
NOT_RUNNING: Final = "The agent is not running."
UNEXPECTED: Final = "The runner failed to carry out the interrupt; its log says why."
NOTICES: Final = {
    InterruptOutcome.STOPPED: "the agent was interrupted.",
    InterruptOutcome.FAILED: "the interrupt failed: {}",
}
"""The notices in the task's log, by outcome."""


class TaskInterrupts:
    """The interrupts of one task's agent; ``run`` carries them out, one after the other."""

    def __init__(
        self,
        journal: Journal,
        inputs: TaskInputs,
        *,
        start_reporter: Callable[[int], Reporter],
        save: Callable[[], Awaitable[None]],
        failpoint: Callable[[Failpoint], None],
        count: Callable[[str, str], None],
    ) -> None:
        """``save`` writes the journal if possible."""
        self._journal = journal
        self._inputs = inputs
        self._start_reporter = start_reporter
        self._save = save
        self._failpoint = failpoint
        self._count = count
        self._queue: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self._pending: set[UUID] = set() if journal.interrupt is None else {journal.interrupt.interrupt_id}

    def submit(self, pending: PendingRequest) -> None:
        """Queue an interrupt."""
        request = pending.request
        assert isinstance(request, AgentInterrupt)
        if request.interrupt_id in self._pending or request.interrupt_id in self._journal.ended_interrupts:
            self._count(request.type, "repeated")
            pending.on_accepted()
        else:
            self._pending.add(request.interrupt_id)
            self._queue.put_nowait(pending)

    def take_pending(self) -> list[PendingRequest]:
        """Remove and return the interrupts that were submitted and not started."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    @property
    def pending(self) -> bool:
        """True while an interrupt waits or is being carried out."""
        return bool(self._pending)

    async def run(self, workspace: TaskWorkspace) -> None:
        """Finish the interrupt that an earlier runner accepted, then carry out interrupts until cancelled."""
        if self._journal.interrupt is not None:
            await self._carry_out(workspace, self._journal.interrupt, recovered=True)
        while True:
            pending = await self._queue.get()
            request = pending.request
            assert isinstance(request, AgentInterrupt)
            at_work = workspace.is_at_work(request.build_number) or self._inputs.pending
            accepted = AcceptedInterrupt(
                interrupt_id=request.interrupt_id, build_number=request.build_number, at_work=at_work
            )
            self._journal.interrupt = accepted
            await self._save()
            self._failpoint(Failpoint.INTERRUPT_RECORD)
            pending.on_accepted()
            await self._carry_out(workspace, accepted)

    async def _carry_out(
        self, workspace: TaskWorkspace, accepted: AcceptedInterrupt, *, recovered: bool = False
    ) -> None:
        """Carry out an interrupt, and report the outcome; what is ``recovered`` may have been carried out before."""
        if accepted.outcome is None:
            outcome, detail = await self._end_turns(workspace, accepted)
            if recovered and accepted.at_work and outcome is InterruptOutcome.ENDED:
                outcome, detail = InterruptOutcome.STOPPED, None
            self._failpoint(Failpoint.INTERRUPT_OUTCOME)
            accepted.outcome, accepted.detail = outcome, detail
            await self._save()
        outcome, detail = accepted.outcome, accepted.detail
        reporter = self._start_reporter(accepted.build_number)
        reporter.interrupted(accepted.interrupt_id, outcome, detail)
        if outcome in NOTICES:
            workspace.append_notice(reporter, NOTICES[outcome].format(detail))
        self._failpoint(Failpoint.INTERRUPT_REPORT)
        self._journal.record_interrupt(accepted.interrupt_id)
        self._pending.discard(accepted.interrupt_id)
        failed = outcome is InterruptOutcome.FAILED
        self._count("agent.interrupt", "failed" if failed else "done")
        await self._save()

    async def _end_turns(
        self, workspace: TaskWorkspace, accepted: AcceptedInterrupt
    ) -> tuple[InterruptOutcome, str | None]:
        """End what the agent does, and then what an input begins that was sent before. Also an error is an outcome."""
        waiting = self._inputs.waiting
        try:
            outcomes = {await workspace.interrupt(accepted.build_number)}
            if waiting and await self._inputs.wait_delivered(waiting, INPUT_TIMEOUT):
                outcomes.add(await workspace.interrupt(accepted.build_number))
        except NotInterrupted as error:
            return InterruptOutcome.FAILED, str(error)
        except Exception:
            log.exception("interrupt failed", task_id=str(self._journal.task_id))
            return InterruptOutcome.FAILED, UNEXPECTED
        if InterruptOutcome.STOPPED in outcomes:
            return InterruptOutcome.STOPPED, None
        return InterruptOutcome.ENDED, None if workspace.running else NOT_RUNNING
