"""Consume commands: one command, one transaction, one reply. They have a queue of their own, without a backlog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from taskherd.broker.dead_letters import publish_dead_letter
from taskherd.broker.publish import PublishOutcome
from taskherd.domain.handle_command import CommandRefused
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages import replies
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.observability.tracing import extract
from taskherd.store.engine import DataError
from taskherd.worker.batch import POISON, Batch
from taskherd.worker.dead_letters import dead_letter_of
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from taskherd.broker.consume import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.domain.commands import Command
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

AT_ONCE = 100


class CommandConsumer:
    """Consume commands until the intake ends."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay) -> None:
        """Begin with nothing in hand."""
        self._intake = consumer
        self._context = context
        self._relay = relay

    async def run(self) -> None:
        """Take commands in order until the intake has stopped and is empty."""
        while deliveries := await self._intake.batch(AT_ONCE, 0):
            for delivery in deliveries:
                try:
                    with self._context.tracing.span("command", parent=extract(delivery.headers)):
                        await self.handle(delivery)
                except Unavailable as error:
                    log.warning("command given back", reason=str(error))
                    continue
                await self._intake.ack([delivery])

    async def handle(self, delivery: Delivery) -> None:
        """Carry out a command and reply; an invalid one, or one refused without a reply_to, becomes a dead letter."""
        command = decode_command(delivery.body)
        if isinstance(command, InvalidMessage):
            self._context.metrics.commands.labels("unknown", "invalid").inc()
            await self._reply(delivery, replies.invalid_message_reply(command))
            await self._publish_dead_letter(delivery, command)
            return
        try:
            reply, repeated = await self._execute(command)
        except POISON as error:
            log.warning("command can't be taken", command_id=str(command.command_id), reason=repr(error)[:200])
            reason = DeadLetterReason.DATA_ERROR if isinstance(error, DataError) else DeadLetterReason.FAULT
            bad = InvalidMessage(None, reason, "The values of this command can't be taken.", delivery.body)
            await self._reply(delivery, replies.invalid_message_reply(bad))
            await self._publish_dead_letter(delivery, bad)
            return
        answer = replies.decode_reply(reply)
        outcome = "repeated" if repeated else "refused" if isinstance(answer, CommandRefused) else "accepted"
        self._context.metrics.commands.labels(command.type, outcome).inc()
        log.info("command", type=command.type, outcome=outcome, task_id=str(command.task_id))
        if delivery.reply_to:
            await self._reply(delivery, reply, repeated=repeated)
        elif isinstance(answer, CommandRefused):
            detail = f"{answer.status} {answer.message}"
            await self._publish_dead_letter(
                delivery, InvalidMessage(None, DeadLetterReason.COMMAND_REFUSED, detail, delivery.body)
            )

    async def _execute(self, command: Command) -> tuple[bytes, bool]:
        """Return the reply, and whether it was given before."""
        result = await self._context.until_stopped(
            lambda: reconcile(self._context, Batch(command=command), self._context.now()), "database"
        )
        self._relay.offer(result.changes, requested=result.requested)
        if result.reply is None:
            raise AssertionError
        return result.reply, result.repeated

    async def _reply(self, delivery: Delivery, reply: bytes, *, repeated: bool = False) -> None:
        """Send the reply if the command has a reply_to; it is dropped if no queue takes it, and marked if repeated."""
        if not delivery.reply_to:
            return
        published = await self._context.until_stopped(
            lambda: self._context.publisher.publish(
                "",
                delivery.reply_to or "",
                reply,
                headers={replies.REPEATED: True} if repeated else None,
                correlation_id=delivery.correlation_id,
                mandatory=True,
            ),
            "broker",
        )
        if published is PublishOutcome.UNROUTED:
            log.info("no queue took the reply", correlation_id=delivery.correlation_id)

    async def _publish_dead_letter(self, delivery: Delivery, bad: InvalidMessage) -> None:
        dead_letter = dead_letter_of(self._context.names, delivery, bad)
        await self._context.until_stopped(lambda: publish_dead_letter(self._context.publisher, dead_letter), "broker")
        self._context.metrics.dead_lettered.labels(bad.reason.value).inc()
