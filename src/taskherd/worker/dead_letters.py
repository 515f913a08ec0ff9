"""Build the dead letter for a delivery that was invalid or rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.broker.dead_letters import build_dead_letter
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import Origin, encode, producer_headers
from taskherd.messages.decoding import InvalidMessage

if TYPE_CHECKING:
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import OutgoingMessage
    from taskherd.worker.context import WorkerContext


def untrusted_sender(delivery: Delivery, setting: str) -> InvalidMessage:
    """Return why a message is refused whose sender the ``setting`` does not name."""
    sender = delivery.sender
    found = "The property user_id is missing" if sender is None else f"The property user_id is {sender[:64]!r}"
    detail = f"{found}; expected a user in {setting}."
    return InvalidMessage(None, DeadLetterReason.UNTRUSTED_SENDER, detail, delivery.body, delivery.original_length)


def dead_letter_of(context: WorkerContext, delivery: Delivery, invalid: InvalidMessage) -> OutgoingMessage:
    """Return the dead letter for ``delivery``, or for the element of it that is ``invalid``."""
    origin = Origin(delivery.queue, delivery.exchange, delivery.routing_key)
    body, headers = encode(
        invalid.body,
        invalid.reason,
        invalid.detail,
        origin,
        index=invalid.index,
        length=invalid.length,
        time=context.now(),
        sender=delivery.sender,
    )
    return build_dead_letter(
        context.names,
        delivery.routing_key,
        body,
        headers,
        producer_headers=producer_headers(delivery.headers),
        content_type=delivery.properties.content_type or None,
        reply_to=delivery.reply_to,
        correlation_id=delivery.correlation_id,
    )
