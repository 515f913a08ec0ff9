"""The runner: takes requests off its queues, hands each to its task's keeper, acknowledges what was accepted."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.work import decode_request
from taskherd.runner import journal
from taskherd.runner.journal import Journal
from taskherd.runner.supervisor import PendingRequest, TaskSupervisor
from taskherd.runner.workspaces import folders
from taskherd.runner.workspaces.folders import TaskFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskherd.broker.consume import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.messages.work import WorkRequest
    from taskherd.runner.context import RunnerContext

log = structlog.get_logger(__name__)

AT_ONCE = 100
AGAIN_AFTER = 5.0
"""Seconds after which a task is taken up again that something unforeseen happened to."""


class Dispatcher:
    """All tasks of this runner."""

    def __init__(self, context: RunnerContext, consumer: Consumer) -> None:
        self._context = context
        self._intake = consumer
        self._supervisors: dict[UUID, TaskSupervisor] = {}
        self._lives: dict[UUID, asyncio.Task[None]] = {}
        self._acks: set[asyncio.Task[bool]] = set()
        self._leaving = False

    @property
    def tasks(self) -> list[UUID]:
        """The tasks that have a place here."""
        return list(self._supervisors)

    def adopt(self) -> int:
        """Take up every task that an earlier runner left on this disk; how many."""
        for found in folders.list_tasks(self._context.root):
            known = journal.load(found.journal)
            if known is None or known.task_id != found.task_id:
                log.warning("a folder without a journal is left as it is", folder=str(found.path))
                continue
            self._add_supervisor(found, known)
        return len(self._supervisors)

    def forget(self, task_id: UUID) -> None:
        """Clean up after a task that is no more."""
        if task_id in self._supervisors:
            self._supervisors[task_id].forget()

    def heartbeats(self) -> Iterator[bytes]:
        """A heartbeat of everyone who is up."""
        for supervisor in self._supervisors.values():
            beat = supervisor.heartbeat()
            if beat is not None:
                yield beat

    async def run(self) -> None:
        """Take requests until the intake is stopped."""
        while deliveries := await self._intake.batch(AT_ONCE, 0):
            done = [delivery for delivery in deliveries if not self._dispatch(delivery)]
            if done:
                await self._intake.ack(done)

    async def watch(self) -> None:
        """Keep the numbers up to date."""
        while True:
            self._context.metrics.runner_tasks.set(len(self._supervisors))
            self._context.metrics.runner_agents.set(
                sum(supervisor.running for supervisor in self._supervisors.values())
            )
            self._context.metrics.runner_waiting_bytes.set(self._context.budget.used)
            await asyncio.sleep(1)

    async def detach(self) -> None:
        """Follow no more; the agents go on."""
        self._leaving = True
        for life in self._lives.values():
            life.cancel()
        await asyncio.gather(*self._lives.values(), *self._acks, return_exceptions=True)

    def _dispatch(self, delivery: Delivery) -> bool:
        """Hand a request on; whether it will be acknowledged later. One that can't be read nobody can ever do."""
        request = decode_request(delivery.body)
        if isinstance(request, InvalidMessage):
            log.warning("a request can't be read", routing_key=delivery.routing_key, detail=request.detail)
            self._context.metrics.runner_requests.labels("unknown", "invalid").inc()
            return False
        sole = request.attempt == 1 and not delivery.redelivered
        self._supervisor(request).submit(PendingRequest(request, partial(self._accepted, delivery), sole))
        return True

    def _accepted(self, delivery: Delivery) -> None:
        ack = asyncio.create_task(self._intake.ack([delivery]), name="ack")
        self._acks.add(ack)
        ack.add_done_callback(self._acks.discard)

    def _supervisor(self, request: WorkRequest) -> TaskSupervisor:
        known = self._supervisors.get(request.task_id)
        if known is not None:
            return known
        place = TaskFolder(self._context.root, request.task_id)
        read = journal.load(place.journal)
        return self._add_supervisor(place, read or Journal(task_id=request.task_id, task_name=request.task_name))

    def _add_supervisor(self, place: TaskFolder, known: Journal) -> TaskSupervisor:
        supervisor = TaskSupervisor(self._context, place, known)
        self._supervisors[known.task_id] = supervisor
        life = asyncio.create_task(supervisor.run(), name=f"keeper of {known.task_id}")
        self._lives[known.task_id] = life
        life.add_done_callback(partial(self._on_supervisor_end, known.task_id))
        return supervisor

    def _on_supervisor_end(self, task_id: UUID, life: asyncio.Task[None]) -> None:
        supervisor = self._supervisors.pop(task_id)
        del self._lives[task_id]
        if life.cancelled():
            return
        if (error := life.exception()) is not None:
            log.error("keeping a task failed, it is taken up again", task_id=str(task_id), exc_info=error)
            asyncio.get_running_loop().call_later(AGAIN_AFTER, self._again, task_id)
            return
        for pending in supervisor.take_pending():  # came while it was ending
            self._supervisor(pending.request).submit(pending)

    def _again(self, task_id: UUID) -> None:
        place = TaskFolder(self._context.root, task_id)
        read = journal.load(place.journal)
        if task_id not in self._supervisors and read is not None and not self._leaving:
            self._add_supervisor(place, read)
