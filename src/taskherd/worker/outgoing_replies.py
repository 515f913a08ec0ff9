"""Send replies to commands and claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from taskherd.broker.publisher import OutgoingMessage
from taskherd.broker.reply_queues import may_reply_to
from taskherd.messages import replies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.broker.delivery import Delivery
    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)


class OutgoingReply(NamedTuple):
    """The reply to a delivery; ``repeated`` marks the reply to a command that was executed before."""

    delivery: Delivery
    body: bytes
    repeated: bool = False


def reply_queue(context: WorkerContext, delivery: Delivery) -> str | None:
    """Return the queue for the reply; None if the sender wants none, or named one that it may not write to."""
    queue = delivery.reply_to
    return queue if queue and may_reply_to(context.names, queue) else None


def send_replies(context: WorkerContext, answers: Sequence[OutgoingReply]) -> None:
    """Send the replies to deliveries with a reply_to. A reply is dropped if its queue is gone or may not be written to.

    No confirm is awaited, because it could wait for the queue of a single caller on a hung node, and the commands of
    all others with it. A caller that gets no reply sends its message again, and gets the recorded one.
    """
    for answer in answers:
        queue = reply_queue(context, answer.delivery)
        if queue is not None:
            context.replies.offer(_outgoing(answer, queue))
        elif answer.delivery.reply_to:
            log.warning(
                "reply_to refused, reply dropped", reply_to=answer.delivery.reply_to, sender=answer.delivery.sender
            )


def _outgoing(answer: OutgoingReply, queue: str) -> OutgoingMessage:
    return OutgoingMessage(
        "",
        queue,
        answer.body,
        headers={replies.REPEATED_HEADER: True} if answer.repeated else None,
        correlation_id=answer.delivery.correlation_id,
    )
