"""Send replies to commands and claims, and publish those that cannot be processed as dead letters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import structlog

from taskherd.broker.dead_letters import publish_dead_letters
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.reply_queues import is_direct, may_reply_to
from taskherd.errors import Unavailable
from taskherd.messages import replies
from taskherd.worker.dead_letters import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.broker.delivery import Delivery
    from taskherd.messages.decoding import InvalidMessage
    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

Rejected: TypeAlias = "tuple[Delivery, InvalidMessage]"
"""A delivery, and why it becomes a dead letter."""


class OutgoingReply(NamedTuple):
    """The reply to a delivery; ``repeated`` marks the reply to a command that was executed before."""

    delivery: Delivery
    body: bytes
    repeated: bool = False


def reply_queue(context: WorkerContext, delivery: Delivery) -> str | None:
    """Return the queue for the reply; None if the sender wants none, or named one that it may not write to."""
    queue = delivery.reply_to
    return queue if queue and may_reply_to(context.names, queue) else None


async def publish_replies(context: WorkerContext, answers: Sequence[OutgoingReply]) -> None:
    """Send the replies to deliveries with a reply_to. A reply is dropped if its queue is gone or may not be written to.

    Raises ``Unavailable`` if the broker is away when the worker stops; until then, unconfirmed replies are sent again.
    """
    messages: list[OutgoingMessage] = []
    for answer in answers:
        queue = reply_queue(context, answer.delivery)
        if queue is not None:
            messages.append(_outgoing(answer, queue))
        elif answer.delivery.reply_to:
            log.warning(
                "reply_to refused, reply dropped", reply_to=answer.delivery.reply_to, sender=answer.delivery.sender
            )

    async def publish() -> None:
        outcomes = await context.publisher.publish_many(messages)
        failed = [(m, o) for m, o in zip(messages, outcomes, strict=True) if isinstance(o, Unavailable)]
        unrouted = sum(outcome is PublishOutcome.UNROUTED for outcome in outcomes)
        if unrouted:
            log.info("reply queues are gone, replies dropped", count=unrouted)
        messages[:] = [message for message, _ in failed]
        if failed:
            raise failed[0][1]

    if messages:
        await context.until_stopped(publish, "broker")


def _outgoing(answer: OutgoingReply, queue: str) -> OutgoingMessage:
    return OutgoingMessage(
        "",
        queue,
        answer.body,
        headers={replies.REPEATED_HEADER: True} if answer.repeated else None,
        mandatory=not is_direct(queue),
        correlation_id=answer.delivery.correlation_id,
    )


async def publish_rejected(context: WorkerContext, rejected: Sequence[Rejected]) -> None:
    """Publish rejected deliveries as dead letters, and count them. Raises ``Unavailable`` as ``publish_replies``."""
    if not rejected:
        return
    messages = [dead_letter_of(context, delivery, invalid) for delivery, invalid in rejected]
    await context.until_stopped(partial(publish_dead_letters, context.publisher, messages), "broker")
    for _, invalid in rejected:
        context.metrics.dead_lettered.labels(invalid.reason.value).inc()
