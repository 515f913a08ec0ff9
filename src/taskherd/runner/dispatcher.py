"""The dispatcher: consume work requests, pass each to its task's supervisor, and acknowledge those accepted."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.work import WorkspaceStart, decode_request
from taskherd.runner import journal as journals
from taskherd.runner.journal import Journal
from taskherd.runner.requests import PendingRequest
from taskherd.runner.supervisor import TaskSupervisor
from taskherd.runner.workspaces import folders
from taskherd.runner.workspaces.folders import TaskFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.messages.work import WorkRequest
    from taskherd.runner.context import RunnerContext

log = structlog.get_logger(__name__)

BATCH = 100
"""Maximum number of deliveries taken from the consumer at a time."""
_POLL_INTERVAL = 0.05
"""Seconds between two looks whether all agents have ended."""
RESTART_AFTER = 5.0
"""Seconds before a supervisor that failed with an unexpected error is restarted."""


class Dispatcher:
    """The supervisors of all tasks of this runner."""

    def __init__(self, context: RunnerContext, consumer: Consumer) -> None:
        self._context = context
        self._consumer = consumer
        self._supervisors: dict[UUID, TaskSupervisor] = {}
        self._loops: dict[UUID, asyncio.Task[None]] = {}
        self._acks: set[asyncio.Task[bool]] = set()
        self._unaccepted: dict[tuple[int, int], PendingRequest] = {}
        """The requests that were passed to a supervisor, by the epoch and the tag of their delivery, in order."""
        self._left: dict[UUID, list[PendingRequest]] = {}
        """The requests that a supervisor which has failed did not accept; the next one of the task is given them."""
        self._restarting: set[UUID] = set()
        """The tasks whose next supervisor is made later."""
        self._detaching = False
        self._holds_starts = False
        self._draining = False

    @property
    def builds(self) -> dict[UUID, int]:
        """The latest build that this runner has accepted of each of its tasks."""
        builds = {task_id: supervisor.build_number for task_id, supervisor in self._supervisors.items()}
        return {task_id: number for task_id, number in builds.items() if number}

    @property
    def agents(self) -> int:
        """Number of running agents."""
        return sum(supervisor.running for supervisor in self._supervisors.values())

    @property
    def working(self) -> int:
        """Number of running agents that are not known to wait."""
        return sum(supervisor.is_working() for supervisor in self._supervisors.values())

    def adopt_tasks(self) -> int:
        """Start a supervisor for every task that an earlier runner left on this disk, and return their number."""
        for folder in folders.list_tasks(self._context.root):
            try:
                journal = journals.load(folder.journal)
                if journal is None or journal.task_id != folder.task_id:
                    log.warning("folder without a readable journal, ignored", folder=str(folder.path))
                    self._context.isolation.hold_user(folder.task_id, folder.owner())
                    continue
                self._add_supervisor(folder, journal)
            except OSError as error:
                self._context.isolation.hold_user(folder.task_id, folder.owner())
                self._restart_later(folder.task_id, str(error))
        return len(self._supervisors)

    def discard(self, task_id: UUID) -> bool:
        """Stop and remove a task that was deleted, without reports. Return False if that is done already."""
        return task_id in self._supervisors and self._supervisors[task_id].discard()

    def end_taken_over(self, task_id: UUID, build_number: int) -> None:
        """Stop the agent of a task that another runner has taken over, unless a later build was accepted here."""
        if task_id in self._supervisors:
            self._supervisors[task_id].end_taken_over(build_number)

    def heartbeats(self) -> Iterator[bytes]:
        """Yield an encoded heartbeat for every workspace that is up."""
        for supervisor in self._supervisors.values():
            heartbeat = supervisor.heartbeat()
            if heartbeat is not None:
                yield heartbeat

    async def run(self) -> None:
        """Dispatch requests until the consumer is stopped."""
        while deliveries := await self._consumer.next_batch(BATCH, 0):
            undecodable = [delivery for delivery in deliveries if not self._dispatch(delivery)]
            if undecodable:
                await self._consumer.ack(undecodable)

    async def update_gauges(self) -> None:
        """Keep the runner's gauges up to date."""
        while True:
            self._context.metrics.runner_tasks.set(len(self._supervisors))
            self._context.metrics.runner_agents.set(self.agents)
            self._context.metrics.runner_waiting_bytes.set(self._context.budget.used)
            await asyncio.sleep(1)

    def hold_starts(self) -> None:
        """Leave all starts that are not accepted yet to the next runner: they are not acknowledged."""
        self._holds_starts = True
        for supervisor in self._supervisors.values():
            supervisor.hold_starts()

    def drain(self, *, idle_only: bool = False) -> None:
        """Stop all agents and have them started again, or only those that wait for an input.

        In the first case no more requests are dispatched.
        """
        self.hold_starts()
        self._draining = self._draining or not idle_only
        for supervisor in self._supervisors.values():
            if not (idle_only and (supervisor.is_working() or supervisor.drained)):
                supervisor.drain()

    def kill_agents(self) -> None:
        """Cut short the grace time of all agents that are being stopped."""
        for supervisor in self._supervisors.values():
            supervisor.kill_agent()

    @property
    def drained(self) -> bool:
        """True if no agent is running, or about to be started or stopped."""
        return not self._restarting and all(supervisor.drained for supervisor in self._supervisors.values())

    async def wait_drained(self) -> None:
        """Wait until all agents have ended."""
        while not self.drained:  # noqa: ASYNC110 - see below
            await asyncio.sleep(_POLL_INTERVAL)  # supervisors come and go

    async def detach(self) -> None:
        """Stop all supervisors; their agents keep running."""
        self._detaching = True
        for loop in self._loops.values():
            loop.cancel()
        await asyncio.gather(*self._loops.values(), *self._acks, return_exceptions=True)

    def _dispatch(self, delivery: Delivery) -> bool:
        """Pass a request on and return whether it will be acknowledged later.

        An undecodable request is acknowledged at once: no runner can execute it. One that is left to the next runner is
        not acknowledged.
        """
        request = decode_request(delivery.body)
        if isinstance(request, InvalidMessage):
            log.warning("invalid request dropped", routing_key=delivery.routing_key, detail=request.detail)
            self._context.metrics.runner_requests.labels("unknown", "invalid").inc()
            return False
        if self._draining or (self._holds_starts and isinstance(request, WorkspaceStart)):
            return True
        only_copy = request.attempt == 1 and not delivery.redelivered
        pending = PendingRequest(request, partial(self._on_accepted, delivery), only_copy)
        self._unaccepted[delivery.epoch, delivery.delivery_tag] = pending
        self._submit(pending)
        return True

    def _on_accepted(self, delivery: Delivery) -> None:
        self._unaccepted.pop((delivery.epoch, delivery.delivery_tag), None)
        ack = asyncio.create_task(self._consumer.ack([delivery]), name="ack")
        self._acks.add(ack)
        ack.add_done_callback(self._acks.discard)

    def _submit(self, pending: PendingRequest) -> None:
        """Pass a request on to the supervisor of its task, or leave it to the next one if that cannot be made now."""
        task_id = pending.request.task_id
        try:
            supervisor = self._supervisor_of(pending.request)
        except OSError as error:
            if task_id not in self._left:  # else that was done when its supervisor failed
                self._restart_later(task_id, str(error))
            self._left.setdefault(task_id, []).append(pending)
        else:
            supervisor.submit(pending)

    def _supervisor_of(self, request: WorkRequest) -> TaskSupervisor:
        supervisor = self._supervisors.get(request.task_id)
        if supervisor is not None:
            return supervisor
        folder = TaskFolder(self._context.root, request.task_id)
        journal = journals.load(folder.journal)
        return self._add_supervisor(folder, journal or Journal(task_id=request.task_id, task_name=request.task_name))

    def _add_supervisor(self, folder: TaskFolder, journal: Journal) -> TaskSupervisor:
        supervisor = TaskSupervisor(self._context, folder, journal)
        self._supervisors[journal.task_id] = supervisor
        self._restarting.discard(journal.task_id)
        loop = asyncio.create_task(supervisor.run(), name=f"supervisor of {journal.task_id}")
        self._loops[journal.task_id] = loop
        loop.add_done_callback(partial(self._on_supervisor_end, journal.task_id))
        if self._holds_starts:
            supervisor.hold_starts()
        if self._draining:
            supervisor.drain()
        for pending in self._left.pop(journal.task_id, ()):
            supervisor.submit(pending)
        return supervisor

    def _on_supervisor_end(self, task_id: UUID, loop: asyncio.Task[None]) -> None:
        supervisor = self._supervisors.pop(task_id)
        del self._loops[task_id]
        if loop.cancelled():
            return
        if (error := loop.exception()) is not None:
            log.error("supervisor failed, restarting it", task_id=str(task_id), exc_info=error)
            self._left[task_id] = [each for each in self._unaccepted.values() if each.request.task_id == task_id]
            self._restart_later(task_id)
            return
        for pending in supervisor.take_pending():  # submitted while the supervisor was finishing
            self._submit(pending)

    def _restart_later(self, task_id: UUID, reason: str | None = None) -> None:
        """Make the next supervisor of a task later; ``reason``: why its files cannot be read now."""
        if reason is not None:
            log.error("cannot read the files of a task, trying again", task_id=str(task_id), reason=reason)
        self._restarting.add(task_id)
        asyncio.get_running_loop().call_later(RESTART_AFTER, self._restart, task_id)

    def _restart(self, task_id: UUID) -> None:
        """Add the next supervisor of a task, unless a request has done that, or there is nothing to be done."""
        self._restarting.discard(task_id)
        if task_id in self._supervisors or self._detaching:
            return
        folder = TaskFolder(self._context.root, task_id)
        try:
            journal = journals.load(folder.journal)
            if journal is not None and journal.task_id == task_id:
                self._add_supervisor(folder, journal)
            elif folder.journal.exists():
                self._restart_later(task_id, "its journal is damaged")
                self._restarting.discard(task_id)  # a drain does not wait for a journal to be repaired
            elif left := self._left.get(task_id):
                self._supervisor_of(left[0].request)
        except OSError as error:
            self._restart_later(task_id, str(error))
