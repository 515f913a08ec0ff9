"""The inputs of one task: deliver each to the agent at most once, in order, and report the outcome."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from taskherd.domain.reports import InputOutcome
from taskherd.messages.work import AgentInput
from taskherd.runner.journal import InputDelivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from uuid import UUID

    from taskherd.runner.journal import Journal
    from taskherd.runner.reporter import Reporter
    from taskherd.runner.requests import PendingRequest
    from taskherd.runner.workspaces.workspace import TaskWorkspace

log = structlog.get_logger(__name__)

INTERRUPTED = (
    "The runner stopped while it was delivering the input. It is unknown whether the agent received it: "
    "check the agent's output before you send it again."
)
"""Detail of an input whose delivery an earlier runner did not complete."""
UNEXPECTED = (
    "The runner failed while it was delivering the input; its log says why. "
    "It is unknown whether the agent received it."
)
"""Detail of an input whose delivery failed with an unexpected error."""
RESTART_TIMEOUT = 60.0
"""Seconds that an input for a drained agent waits for its next start on this runner."""


class TaskInputs:
    """The inputs that one task's agent has not received yet; ``run`` delivers them."""

    def __init__(
        self,
        journal: Journal,
        *,
        start_reporter: Callable[[int], Reporter],
        save: Callable[[], Awaitable[None]],
        count: Callable[[str, str], None],
    ) -> None:
        self._journal = journal
        self._start_reporter = start_reporter
        self._save = save
        self._count = count
        self._queue: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self._pending: set[UUID] = set()
        self._draining = False
        self._decided = asyncio.Condition()
        self._accepted = asyncio.Event()
        self._accepted.set()

    @property
    def pending(self) -> bool:
        """True while an input waits or is being delivered."""
        return bool(self._pending)

    @property
    def waiting(self) -> frozenset[UUID]:
        """The inputs that wait or are being delivered."""
        return frozenset(self._pending)

    def submit(self, pending: PendingRequest) -> None:
        """Queue an input for delivery."""
        request = pending.request
        assert isinstance(request, AgentInput)
        if request.input_id in self._pending:
            pending.on_accepted()  # a repeat of one that is in progress
        else:
            self._pending.add(request.input_id)
            self._queue.put_nowait(pending)

    def take_pending(self) -> list[PendingRequest]:
        """Remove and return the inputs that were submitted and not started."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def hold(self) -> None:
        """Let inputs wait until ``resume``, because the agent is to be started again."""
        self._accepted.clear()

    def drain(self) -> None:
        """Let inputs wait without a limit: they are left to the next runner."""
        self._draining = True
        self.hold()

    def resume(self) -> None:
        """Deliver inputs again."""
        self._accepted.set()

    def fail_interrupted(self) -> bool:
        """Report inputs whose delivery an earlier runner did not finish as failed. Return whether there are any.

        Not so the prompt: the worker knows no such input, and the agent's follower finds out what became of it.
        """
        inputs, prompt_id = self._journal.inputs, self._journal.prompt_id
        unfinished = [input_id for input_id in inputs if inputs[input_id] is InputDelivery.DELIVERING]
        interrupted = [input_id for input_id in unfinished if input_id != prompt_id]
        for input_id in interrupted:
            self._journal.record_input(input_id, InputDelivery.FAILED)
            if self._journal.start is not None:
                reporter = self._start_reporter(self._journal.start.build_number)
                reporter.input(input_id, InputOutcome.FAILED, INTERRUPTED)
        return bool(interrupted)

    async def run(self, workspace: TaskWorkspace, save_if_possible: Callable[[], Awaitable[None]]) -> None:
        """Deliver inputs until cancelled."""
        while True:
            pending = await self._queue.get()
            await self._wait_restarted()
            request = pending.request
            assert isinstance(request, AgentInput)
            if request.input_id not in self._journal.inputs:
                error = await self._deliver_safely(workspace, request.input_id, request.input)
                if request.input_id in self._journal.inputs:
                    self._report(workspace, request, error)
                    await save_if_possible()
                else:
                    self._count(request.type, "ignored")  # the worker sends it again to the next agent
            else:
                self._count(request.type, "repeated")
            self._pending.discard(request.input_id)
            pending.on_accepted()
            async with self._decided:
                self._decided.notify_all()

    def _report(self, workspace: TaskWorkspace, request: AgentInput, error: str | None) -> None:
        """Report the outcome of an input."""
        reporter = self._start_reporter(request.build_number)
        reporter.input(request.input_id, InputOutcome.FAILED if error else InputOutcome.DELIVERED, error)
        if error:
            workspace.append_notice(reporter, f"input delivery failed: {error}")
        self._count(request.type, "failed" if error else "done")

    async def wait_delivered(self, waiting: Collection[UUID], seconds: float) -> bool:
        """Wait until these inputs are delivered or failed. Return whether any was delivered in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._decided:
                await self._decided.wait_for(lambda: self._pending.isdisjoint(waiting))
        return any(self._journal.inputs.get(each) is InputDelivery.DELIVERED for each in waiting)

    async def deliver_once(self, workspace: TaskWorkspace, input_id: UUID, text: str) -> str | None:
        """Deliver an input at most once.

        Return an error message, or None if it was delivered or a delivery was attempted before. Nothing is recorded of
        an input that the agent did not get because an interrupt has ended it: the worker keeps it for the next one.
        """
        if input_id in self._journal.inputs:
            return None

        async def record_attempt() -> None:
            self._journal.record_input(input_id, InputDelivery.DELIVERING)
            await self._save()

        error = await workspace.deliver(text, record_attempt)
        if error and self._journal.interrupted and input_id not in self._journal.inputs:
            return error
        self._journal.record_input(input_id, InputDelivery.FAILED if error else InputDelivery.DELIVERED)
        return error

    async def _wait_restarted(self) -> None:
        """Wait until a drained agent was started again: at most ``RESTART_TIMEOUT``, or until this runner ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self._draining else RESTART_TIMEOUT):
                await self._accepted.wait()

    async def _deliver_safely(self, workspace: TaskWorkspace, input_id: UUID, text: str) -> str | None:
        """Deliver an input at most once; also an unexpected error is an outcome, so that later inputs are delivered."""
        try:
            return await self.deliver_once(workspace, input_id, text)
        except Exception:
            log.exception("input delivery failed", task_id=str(self._journal.task_id), input_id=str(input_id))
            self._journal.record_input(input_id, InputDelivery.FAILED)
            return UNEXPECTED
