"""Keeps one task: takes its requests one after the other, does each once, and says what became of it.

A request for a build is accepted when it is in the journal; from then on it will be done, by this runner or by the next
one that finds the journal. An input is accepted when its outcome is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import structlog

from taskherd.domain.reports import InputOutcome, JobStatus, Transition
from taskherd.messages.work import AgentInput, WorkspaceDelete, WorkspaceStart, WorkspaceStop
from taskherd.runner import journal as journals
from taskherd.runner.claims import Claim
from taskherd.runner.journal import InputDelivery, Journal, Phase
from taskherd.runner.outbox import Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from taskherd.runner.workspaces.workspace import TaskWorkspace

if TYPE_CHECKING:
    from taskherd.messages.work import WorkRequest
    from taskherd.runner.context import RunnerContext
    from taskherd.runner.workspaces.folders import TaskFolder

log = structlog.get_logger(__name__)

BuildRequest: TypeAlias = WorkspaceStart | WorkspaceStop | WorkspaceDelete
OnAccepted: TypeAlias = Callable[[], None]
"""Is called when a request may be acknowledged."""

UNKNOWN = "The runner ended while it gave the input to the agent: whether the agent took it is unknown."


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request, whom to tell that it was accepted, and whether this is for certain its only copy."""

    request: WorkRequest
    accepted: OnAccepted
    only_copy: bool = False


class TaskSupervisor:
    """The life of one task on this runner; `run` is all of it."""

    def __init__(self, context: RunnerContext, folder: TaskFolder, journal: Journal) -> None:
        self._context = context
        self._folder = folder
        self._journal = journal
        self._outbox = Outbox(folder.outbox, context.budget, context.due)
        self._saving = asyncio.Lock()
        self._soon: set[asyncio.Task[None]] = set()
        self._seqs = SequenceGenerator(journal, context.now, self._save_soon)
        self._workspace = TaskWorkspace(
            context,
            folder,
            journal,
            outbox=self._outbox,
            reporter=self.reporter_for,
            save=self._save,
            once=self._deliver_once,
        )
        self._builds: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self._inputs: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self._at_hand: set[UUID] = set()
        self._never_ours = False

    @property
    def task_id(self) -> UUID:
        """Which task this is."""
        return self._journal.task_id

    @property
    def running(self) -> bool:
        """Whether an agent runs."""
        return self._workspace.running

    def reporter_for(self, request: WorkRequest) -> Reporter:
        """What speaks for the build that a request is about."""
        kind = request.type.removeprefix("workspace.")
        transition = Transition.START if isinstance(request, AgentInput) else Transition(kind)
        return Reporter(
            request,
            transition=transition,
            runner=self._context.name,
            outbox=self._outbox,
            seqs=self._seqs,
            now=self._context.now,
        )

    def heartbeat(self) -> bytes | None:
        """A heartbeat, while the workspace is up."""
        start = self._journal.start
        return self.reporter_for(start).heartbeat() if self._journal.live and start is not None else None

    def submit(self, pending: PendingRequest) -> None:
        """Take a request, to be done in its turn."""
        request = pending.request
        if not isinstance(request, AgentInput):
            self._builds.put_nowait(pending)
        elif request.input_id in self._at_hand:
            pending.accepted()  # a repeat: the first of them is being worked on
        else:
            self._at_hand.add(request.input_id)
            self._inputs.put_nowait(pending)

    def take_pending(self) -> list[PendingRequest]:
        """Take back what was given and not begun."""
        queues = (self._builds, self._inputs)
        return [queue.get_nowait() for queue in queues for _ in range(queue.qsize())]

    def forget(self) -> None:
        """Take everything down, silently: no live task owns it."""
        self._outbox.discard()
        self._builds.put_nowait(PendingRequest(_delete_of(self._journal), lambda: None))

    async def run(self) -> None:
        """Finish what an earlier runner began, then take requests, until the task is gone from here."""
        inputs = asyncio.create_task(self._take_inputs(), name=f"inputs of {self.task_id}")
        try:
            await self._recover()
            while not self._over():
                await self._handle(await self._builds.get())
            if self._journal.build_number:
                await self._outbox.wait_empty()
                await asyncio.to_thread(self._folder.drop)
                for pending in self.take_pending():  # nothing can be done any more that was asked for after the delete
                    pending.accepted()
        finally:
            inputs.cancel()
            await asyncio.gather(inputs, *self._soon, return_exceptions=True)
            await self._workspace.detach()
            self._context.forget(self._outbox)
            self._outbox.close()

    async def _recover(self) -> None:
        await self._workspace.recover()
        unclear = [known for known, how in self._journal.inputs.items() if how is InputDelivery.DELIVERING]
        for input_id in unclear:
            self._journal.note(input_id, InputDelivery.FAILED)
            if self._journal.start is not None:
                self.reporter_for(self._journal.start).input(input_id, InputOutcome.FAILED, UNKNOWN)
        if unclear:
            await self._save()
        if self._journal.phase is Phase.ACCEPTED and self._journal.build_number:
            await self._perform(_accepted(self._journal))

    def _over(self) -> bool:
        """Whether the task was deleted, or was never ours: then nothing is kept of it."""
        journal = self._journal
        if not journal.build_number:
            return self._never_ours and self._builds.empty() and not self._at_hand
        return journal.transition == "delete" and journal.phase is Phase.DONE

    async def _handle(self, pending: PendingRequest) -> None:
        """Do one request, unless it was done before, or is another runner's."""
        request, journal = pending.request, self._journal
        assert not isinstance(request, AgentInput)
        if request.build_number <= journal.build_number:
            same = request.build_number == journal.build_number
            self._count(request.type, "repeated" if same and request.type.endswith(journal.transition) else "ignored")
            pending.accepted()
            return
        if isinstance(request, WorkspaceStart):
            claim = await self._context.claims.claim(request, sole=pending.only_copy)
            if claim is not Claim.WON:
                await self._yield_build(request, claim)
                pending.accepted()
                return
        journal.accept(request)
        try:
            self._folder.make()
            await self._save()
        except OSError as error:
            await self._reject(request, error)
        pending.accepted()
        if journal.phase is Phase.ACCEPTED:
            await self._perform(request)

    async def _yield_build(self, request: WorkspaceStart, claim: Claim) -> None:
        """Leave a build to another runner; an agent of ours of an earlier one is ended, since nobody hears it now."""
        self._count(request.type, claim.value)
        if not self._journal.build_number:
            self._never_ours = True
        elif claim is Claim.LOST:
            stop = WorkspaceStop(**{**_common(self._journal), "build_number": request.build_number})
            error = await self._workspace.perform(stop, self.reporter_for(stop))
            log.warning("another runner has taken the task over", task_id=str(self.task_id), trouble=error)
            self._journal.accept(stop)
            self._journal.phase = Phase.DONE
            await self._save_if_possible()

    async def _reject(self, request: BuildRequest, error: OSError) -> None:
        """Say that a start can't be done without room to note it; a stop or delete is done nevertheless."""
        log.warning("journal can't be written", task_id=str(request.task_id), reason=str(error))
        if isinstance(request, WorkspaceStart):
            self._journal.phase = Phase.FAILED
            self.reporter_for(request).build(JobStatus.FAILED, error=f"The runner can't note what it does: {error}")
            self._count(request.type, "failed")

    async def _perform(self, request: BuildRequest) -> None:
        reporter = self.reporter_for(request)
        reporter.build(JobStatus.RUNNING)
        error = await self._workspace.perform(request, reporter)
        self._journal.phase = Phase.FAILED if error else Phase.DONE
        if error:
            log.warning("build failed", task_id=str(request.task_id), type=request.type, reason=error)
            reporter.build(JobStatus.FAILED, error=error)
        else:
            reporter.build(JobStatus.SUCCEEDED, health=self._workspace.health)
        self._count(request.type, "failed" if error else "done")
        await self._save_if_possible()

    async def _take_inputs(self) -> None:
        while True:
            pending = await self._inputs.get()
            request = pending.request
            assert isinstance(request, AgentInput)
            if request.input_id not in self._journal.inputs:
                failed = await self._deliver_once(request.input_id, request.input)
                reporter = self.reporter_for(request)
                reporter.input(request.input_id, InputOutcome.FAILED if failed else InputOutcome.DELIVERED, failed)
                if failed:
                    self._workspace.append_notice(reporter, f"an input was not delivered: {failed}")
                self._count(request.type, "failed" if failed else "done")
                await self._save_if_possible()
            else:
                self._count(request.type, "repeated")
            self._at_hand.discard(request.input_id)
            pending.accepted()

    async def _deliver_once(self, input_id: UUID, text: str) -> str | None:
        """Give the agent an input, unless that was tried before; in words why it did not take it."""
        if input_id in self._journal.inputs:
            return None

        async def begin() -> None:
            self._journal.note(input_id, InputDelivery.DELIVERING)
            await self._save()

        failed = await self._workspace.deliver(text, begin)
        self._journal.note(input_id, InputDelivery.FAILED if failed else InputDelivery.DELIVERED)
        return failed

    async def _save(self) -> None:
        """Put the journal on disk; raises OSError."""
        if not self._journal.build_number:
            return  # nothing was accepted: it is not our task
        async with self._saving:
            content = self._journal.model_dump_json().encode()
            await asyncio.to_thread(journals.write, self._folder.journal, content)

    async def _save_if_possible(self) -> None:
        """Put the journal on disk. Where that fails it is tried with the next change; a repeat does no harm."""
        try:
            await self._save()
        except OSError as error:
            log.warning("journal can't be written", task_id=str(self.task_id), reason=str(error))

    def _save_soon(self) -> None:
        task = asyncio.create_task(self._save_if_possible())
        self._soon.add(task)
        task.add_done_callback(self._soon.discard)

    def _count(self, kind: str, outcome: str) -> None:
        self._context.metrics.runner_requests.labels(kind, outcome).inc()


def _accepted(journal: Journal) -> BuildRequest:
    """The request that the journal says was accepted and not done."""
    start = journal.start
    if journal.transition == "start" and start is not None:
        return start
    common = _common(journal)
    return WorkspaceDelete(**common) if journal.transition == "delete" else WorkspaceStop(**common)


def _delete_of(journal: Journal) -> WorkspaceDelete:
    """A delete that nobody asked for, after all that was."""
    return WorkspaceDelete(**{**_common(journal), "build_number": journal.build_number + 1})


def _common(journal: Journal) -> dict[str, Any]:
    """What the journal knows of a request; what it does not know nobody looks at."""
    nil = UUID(int=0)
    return {
        "request_id": nil,
        "attempt": 1,
        "task_id": journal.task_id,
        "task_name": journal.task_name,
        "owner": {"id": nil, "username": ""},
        "build_number": journal.build_number,
        "build_id": nil,
        "template_version_id": nil,
        "run": {},
    }
