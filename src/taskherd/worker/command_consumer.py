"""Consume commands: all that wait are executed together, each is judged and answered by itself.

Commands have their own queue, so they do not wait behind reports. A batch is one transaction; after its commit the
replies are sent and the batch is acked; a command that cannot be executed becomes a dead letter first. A batch that
fails is halved until the command that makes it fail is found; each part is answered when it is committed. A command for
a task that another transaction keeps locked waits, unacked, until that is free, and those for other tasks go on.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import structlog

from taskherd.domain.commands import Answer, Interrupt
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages import replies
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.tracing import MAX_LINKS, extract
from taskherd.store.engine import DataError
from taskherd.worker.batch import Batch
from taskherd.worker.bisection import Bisection
from taskherd.worker.command_order import WaitingCommand, next_commands
from taskherd.worker.concurrency import BatchFootprint, BatchScheduler
from taskherd.worker.dead_letter_sender import DeadLetterSender
from taskherd.worker.dead_letters import untrusted_sender
from taskherd.worker.locked_tasks import RECHECK_EVERY, LockedTasks
from taskherd.worker.outgoing_replies import OutgoingReply, reply_queue, send_replies
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.dead_letter_sender import Rejected
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

MAX_COMMANDS = 200
"""Maximum number of commands that are executed in one transaction."""

SHARED_FOR = 0.5
"""Seconds after a command of another actor for which the batches of one with many stay small."""

MAX_WAITING = 2_000
"""Maximum number of unacked commands: an actor's turn comes among those."""

MAX_GROW = 0.02
"""Seconds for which a batch of one actor that is smaller than the running one waits for more commands.

So long it also waits after the latest replies, if it is to have ``FEW``: callers who got them send their next commands.
"""

FEW = 8
"""Number of commands of one actor up to which all that are in progress are to share one batch."""

MANY_FOR = 0.5
"""Seconds after more than ``FEW`` were in progress for which no batch waits for a few."""


class CommandConsumer:
    """Consumes commands until ``consumer`` is stopped."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay) -> None:
        """Create the consumer; ``run`` starts it."""
        self._consumer = consumer
        self._context = context
        self._relay = relay
        self._waiting: list[WaitingCommand] = []
        self._latest_actor: UUID | None = None
        self._shared_until = -math.inf
        self._executing: dict[int, UUID] = {}
        """The actor of each command that is executed now, by the identity of its delivery."""
        self._in_progress = 0
        """How many commands were executed at the same time when the latest batch began."""
        self._answered_at = self._many_until = -math.inf
        self._bisection = Bisection(context)
        self._locked = LockedTasks(context, consumer.wake)
        self._is_held_up = False
        """True while all waiting commands are for tasks that are locked or busy, or of actors who have enough."""
        self._dead_letters = DeadLetterSender(consumer, context)

    async def run(self) -> None:
        """Execute commands until consuming has stopped and the buffer is empty."""
        async with self._dead_letters.sending(), asyncio.TaskGroup() as group:
            watching = group.create_task(self._locked.watch(), name="locked tasks")
            try:
                scheduler = BatchScheduler(group)
                while await self._receive():
                    await scheduler.wait_slot(self._ready, 0.0 if self._is_shared() else MAX_GROW)
                    await self._wait_for_few()
                    if self._consumer.buffered:
                        await self._receive()
                    if not await self._start_batch(scheduler) and not await self._wait_for_free(scheduler):
                        break
            finally:
                watching.cancel()

    async def _start_batch(self, scheduler: BatchScheduler) -> bool:
        """Start to execute some of the waiting commands; return False if all have to wait for others or for locks."""
        busy = scheduler.tasks.union(self._locked.ids)
        running = Counter(self._executing.values())
        batch = next_commands(self._waiting, MAX_COMMANDS, busy=busy, running=running, shared=self._is_shared())
        chosen = {id(each.delivery) for each in batch}
        self._waiting = [each for each in self._waiting if id(each.delivery) not in chosen]
        if self._locked.ids:  # they may wait for long, and the broker redelivers those of a lost channel
            self._waiting = [each for each in self._waiting if self._consumer.holds(each.delivery)]
        if batch:
            self._note_in_progress(scheduler.in_flight + len(batch))
            self._executing.update({id(each.delivery): each.command.actor_id for each in batch})
            await scheduler.submit(_footprint(batch), partial(self._handle, batch))
        return bool(batch) or not self._waiting

    async def _wait_for_free(self, scheduler: BatchScheduler) -> bool:
        """Wait until one of them or another one may be executed; return False if none may before the worker stops."""
        if not self._consumer.has_stopped:
            self._is_held_up = True
            await self._consumer.wait_buffered(1, RECHECK_EVERY)
            self._is_held_up = False
        elif scheduler.in_flight:
            await scheduler.one_done()
        else:
            log.warning("commands abandoned, their tasks are locked", count=len(self._waiting))
            return False
        return True

    def _note_actor(self, actor: UUID) -> None:
        """Note the actor of a command; several actors send commands if it is not that of the one before."""
        if actor != self._latest_actor:
            if self._latest_actor is not None:
                self._shared_until = asyncio.get_running_loop().time() + SHARED_FOR
            self._latest_actor = actor

    def _is_shared(self) -> bool:
        """Return whether several actors send commands now."""
        return asyncio.get_running_loop().time() < self._shared_until

    @property
    def _executable(self) -> int:
        """Number of waiting commands whose tasks are not locked, as far as is known."""
        locked = self._locked.ids
        return sum(each.command.task_id not in locked for each in self._waiting) if locked else len(self._waiting)

    def _ready(self) -> int:
        """Return the number of commands that wait to be executed; 0 if they are to wait for the rest of a few."""
        ready = self._executable + self._consumer.buffered
        return 0 if self._are_few() and ready < self._in_progress else ready

    def _note_in_progress(self, count: int) -> None:
        """Note how many commands are executed now; for a while after many, a small batch is no sign of few callers."""
        self._in_progress = count
        if count > FEW:
            self._many_until = asyncio.get_running_loop().time() + MANY_FOR

    def _are_few(self) -> bool:
        """Return whether few commands were in progress, and not many a moment before."""
        return self._in_progress <= FEW and asyncio.get_running_loop().time() >= self._many_until

    async def _wait_for_few(self) -> None:
        """Wait for as many commands as were in progress before, if those were few of one actor."""
        if self._are_few() and not self._is_shared():
            remaining = self._answered_at + MAX_GROW - asyncio.get_running_loop().time()
            await self._consumer.wait_buffered(self._in_progress - self._executable, remaining)

    async def _receive(self) -> bool:
        """Take all buffered commands; wait for one if none is waiting. Return False after the last one."""
        while not (self._waiting or self._consumer.buffered or self._consumer.has_stopped):
            await self._consumer.wait_for_change()  # also until one that was set aside can be executed
        if self._waiting and not self._consumer.buffered:
            return True
        deliveries = await self._consumer.next_batch(MAX_WAITING, 0)
        await self._reject(list(self._decode(deliveries)))
        return bool(deliveries)

    def _decode(self, deliveries: Sequence[Delivery]) -> Iterator[Rejected]:
        """Append the commands in these deliveries to those that wait, and yield the invalid ones."""
        trusted = self._context.command_senders
        for delivery in deliveries:
            if trusted and delivery.sender not in trusted:
                self._context.metrics.commands.labels("unknown", "invalid").inc()
                invalid = untrusted_sender(delivery, "TASKHERD_COMMAND_SENDERS")
                log.warning("command of an untrusted sender rejected", detail=invalid.detail)
                yield delivery, invalid
                continue
            command = decode_command(delivery.body, delivery.original_length)
            if isinstance(command, InvalidMessage):
                self._context.metrics.commands.labels("unknown", "invalid").inc()
                yield delivery, command
            else:
                self._note_actor(command.actor_id)
                self._waiting.append(WaitingCommand(delivery, command))

    async def _handle(self, batch: Sequence[WaitingCommand], _previous: asyncio.Task[None] | None) -> None:
        """Execute commands, reply to them, ack, and have dead letters published."""
        try:
            with self._span(batch):
                await self._execute(batch)
        except Unavailable as error:
            log.warning("commands abandoned, the broker redelivers them", count=len(batch), reason=str(error))
        finally:
            self._note_executed(batch)

    def _note_executed(self, commands: Sequence[WaitingCommand]) -> None:
        """Note that these are not executed any more, so that others of their actors may be, and for their tasks."""
        for delivery, _ in commands:
            self._executing.pop(id(delivery), None)
        if self._is_held_up:
            self._consumer.wake()

    async def _execute(self, batch: Sequence[WaitingCommand]) -> None:
        """Execute and answer all commands. Raises ``Unavailable`` if the worker stops before."""
        commands = [command for _, command in batch]

        async def attempt(part: Sequence[int]) -> BatchResult:
            return await reconcile(self._context, Batch(commands=[commands[i] for i in part]), self._context.now())

        async def accept(part: Sequence[int], result: BatchResult) -> list[None]:
            executed = [batch[i] for i in part]
            self._context.failpoint(Failpoint.COMMAND_COMMITTED)
            if any(isinstance(command, Answer) for _, command in executed):
                self._context.failpoint(Failpoint.ANSWER_COMMITTED)
            if any(isinstance(command, Interrupt) for _, command in executed):
                self._context.failpoint(Failpoint.INTERRUPT_COMMITTED)
            await self._answer(executed, result)
            self._note_executed(executed)
            return [None] * len(executed)

        async def reject(index: int, error: Exception) -> None:
            delivery, command = batch[index]
            log.warning("command rejected", command_id=str(command.command_id), reason=repr(error)[:200])
            reason = DeadLetterReason.DATA_ERROR if isinstance(error, DataError) else DeadLetterReason.FAULT
            detail = "The command could not be processed."
            await self._reject([(delivery, InvalidMessage(None, reason, detail, delivery.body))])
            self._note_executed([batch[index]])

        def set_aside(part: Sequence[int]) -> list[None]:
            self._locked.add([commands[i].task_id for i in part])
            given_back = [batch[i] for i in part]
            self._waiting[:0] = given_back
            self._note_executed(given_back)
            return [None] * len(part)

        await self._bisection.run([command.task_id for command in commands], attempt, accept, reject, set_aside)

    def _offer(self, batch: Sequence[WaitingCommand], result: BatchResult) -> None:
        """Pass each change to the relay in the trace of its command."""
        self._relay.send(result.started_requests)
        if len(batch) == 1:
            self._relay.offer(result.changes, has_due_requests=result.has_due_requests)
            return
        deliveries = {command.task_id: delivery for delivery, command in batch}
        for change in result.changes:
            with self._context.tracing.span("command", parent=extract(deliveries[change.task.id].headers)):
                self._relay.offer([change], has_due_requests=False)
        self._relay.offer([], has_due_requests=result.has_due_requests)

    def _span(self, batch: Sequence[WaitingCommand]) -> AbstractContextManager[None]:
        """Return the span of a batch: a child of its command's span, or linked to those of its first commands."""
        traces = [extract(delivery.headers) for delivery, _ in batch[:MAX_LINKS]]
        if len(batch) == 1:
            return self._context.tracing.span("command", parent=traces[0])
        return self._context.tracing.span("commands", links=traces, commands=len(batch))

    async def _answer(self, executed: Sequence[WaitingCommand], results: BatchResult) -> None:
        """Reply to commands, have changes published, and ack. One refused without a reply_to becomes a dead letter."""
        answers: list[OutgoingReply] = []
        refused: list[Rejected] = []
        for (delivery, command), result in zip(executed, results.replies, strict=True):
            answers.append(OutgoingReply(delivery, result.body, result.repeated))
            self._context.metrics.commands.labels(command.type, result.outcome).inc()
            log.info("command handled", type=command.type, outcome=result.outcome, task_id=str(command.task_id))
            if result.refusal is not None and reply_queue(self._context, delivery) is None:
                detail = f"{result.refusal.status} {result.refusal.message}"
                reason = DeadLetterReason.COMMAND_REFUSED
                refused.append((delivery, InvalidMessage(None, reason, detail, delivery.body)))
        send_replies(self._context, answers)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._offer, executed, results)  # callers are waiting, so their replies are written first
        self._answered_at = loop.time()
        waiting = {id(delivery) for delivery, _ in refused}
        await self._consumer.ack([answer.delivery for answer in answers if id(answer.delivery) not in waiting])
        await self._dead_letters.add(refused)

    async def _reject(self, rejected: Sequence[Rejected]) -> None:
        """Reply to commands with an error, and have them published as dead letters."""
        answers = [OutgoingReply(delivery, replies.invalid_message_reply(invalid)) for delivery, invalid in rejected]
        send_replies(self._context, answers)
        await self._dead_letters.add(rejected)


def _footprint(batch: Sequence[WaitingCommand]) -> BatchFootprint:
    """Return the tasks of a batch: two batches of the same task are not executed at the same time."""
    alone = batch[0].delivery.possible_poison  # which has no others in its batch
    return BatchFootprint(frozenset(command.task_id for _, command in batch), len(batch), alone=alone)
