"""Consume commands: one command, one transaction, one reply.

Commands have their own queue, so they do not wait behind reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from taskherd.broker.dead_letters import publish_dead_letter
from taskherd.broker.publisher import PublishOutcome
from taskherd.domain.handle_command import CommandRefused
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages import replies
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.observability.tracing import extract
from taskherd.store.engine import DataError
from taskherd.worker.batch import MESSAGE_ERRORS, Batch
from taskherd.worker.dead_letters import dead_letter_of
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.domain.commands import Command
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

MAX_DELIVERIES = 100
"""Maximum number of commands that are taken from the buffer at a time."""


class CommandConsumer:
    """Consumes commands until ``consumer`` is stopped."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay) -> None:
        """Create the consumer; ``run`` starts it."""
        self._consumer = consumer
        self._context = context
        self._relay = relay

    async def run(self) -> None:
        """Execute commands in order until consuming has stopped and the buffer is empty."""
        while await self._consume_once():
            continue

    async def _consume_once(self) -> int:
        """Execute and ack the next commands, and return their number; 0 after the last one."""
        deliveries = await self._consumer.next_batch(MAX_DELIVERIES, 0)
        for delivery in deliveries:
            try:
                with self._context.tracing.span("command", parent=extract(delivery.headers)):
                    await self._handle(delivery)
            except Unavailable as error:
                log.warning("command abandoned, the broker redelivers it", reason=str(error))
                continue
            await self._consumer.ack([delivery])
        return len(deliveries)

    async def _handle(self, delivery: Delivery) -> None:
        """Execute a command and reply. An invalid one, or one refused without a reply_to, becomes a dead letter."""
        command = decode_command(delivery.body)
        if isinstance(command, InvalidMessage):
            self._context.metrics.commands.labels("unknown", "invalid").inc()
            await self._reject(delivery, command)
            return
        try:
            reply, repeated = await self._execute(command)
        except MESSAGE_ERRORS as error:
            log.warning("command rejected", command_id=str(command.command_id), reason=repr(error)[:200])
            reason = DeadLetterReason.DATA_ERROR if isinstance(error, DataError) else DeadLetterReason.FAULT
            detail = "The command could not be processed."
            await self._reject(delivery, InvalidMessage(None, reason, detail, delivery.body))
            return
        decoded = replies.decode_reply(reply)
        outcome = "repeated" if repeated else "refused" if isinstance(decoded, CommandRefused) else "accepted"
        self._context.metrics.commands.labels(command.type, outcome).inc()
        log.info("command handled", type=command.type, outcome=outcome, task_id=str(command.task_id))
        if delivery.reply_to:
            await self._reply(delivery, reply, repeated=repeated)
        elif isinstance(decoded, CommandRefused):
            detail = f"{decoded.status} {decoded.message}"
            await self._publish_dead_letter(
                delivery, InvalidMessage(None, DeadLetterReason.COMMAND_REFUSED, detail, delivery.body)
            )

    async def _execute(self, command: Command) -> tuple[bytes, bool]:
        """Return the reply, and whether it is the recorded reply of an earlier execution."""
        result = await self._context.until_stopped(
            lambda: reconcile(self._context, Batch(command=command), self._context.now()), "database"
        )
        self._relay.offer(result.changes, has_new_requests=result.has_new_requests)
        if result.reply is None:
            raise AssertionError
        return result.reply, result.repeated

    async def _reply(self, delivery: Delivery, reply: bytes, *, repeated: bool = False) -> None:
        """Send the reply if the command has a reply_to, and mark a repeated one. Drop it if the reply queue is gone."""
        if not delivery.reply_to:
            return
        published = await self._context.until_stopped(
            lambda: self._context.publisher.publish(
                "",
                delivery.reply_to or "",
                reply,
                headers={replies.REPEATED_HEADER: True} if repeated else None,
                correlation_id=delivery.correlation_id,
                mandatory=True,
            ),
            "broker",
        )
        if published is PublishOutcome.UNROUTED:
            log.info("reply queue is gone, reply dropped", correlation_id=delivery.correlation_id)

    async def _reject(self, delivery: Delivery, invalid: InvalidMessage) -> None:
        """Reply with an error and publish the command as a dead letter."""
        await self._reply(delivery, replies.invalid_message_reply(invalid))
        await self._publish_dead_letter(delivery, invalid)

    async def _publish_dead_letter(self, delivery: Delivery, invalid: InvalidMessage) -> None:
        dead_letter = dead_letter_of(self._context.names, delivery, invalid)
        await self._context.until_stopped(
            lambda: publish_dead_letter(self._context.publisher, dead_letter),
            "broker",
        )
        self._context.metrics.dead_lettered.labels(invalid.reason.value).inc()
