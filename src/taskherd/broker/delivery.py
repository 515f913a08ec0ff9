"""Delivered messages, from raw frames or as decoded by aiormq."""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd.broker.patches.pamqp_patches import DELIVERY_COUNT, UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiormq.abc import DeliveredMessage

MAX_BODY_BYTES: Final = 1024 * 1024
"""Size of a body beyond which a consumer that limits bodies keeps only its beginning; as in ``messages.limits``."""

TRUNCATED_BYTES: Final = 64 * 1024
"""Size of the beginning that is kept; as in ``messages.limits``."""

POISON_FROM = 3
"""Number of redeliveries from which a message may be the cause of its consumers' failures."""

_TAG_AT = 11
"""Offset of the consumer tag in a deliver frame; the first byte of each string there is its length."""

_TAG_AND_FLAGS = Struct(">QB")


class Delivery(ABC):
    """A message as delivered; the consumer sets ``queue`` and ``epoch``.

    ``epoch`` identifies the channel, because a delivery tag is valid only on the channel of the delivery.
    ``original_length`` is the size in bytes of a body of which only the beginning was kept, None for a complete one;
    ``size`` is the number of bytes that are kept, with the header unless aiormq has decoded it, and ``settled`` is True
    once it is acknowledged.
    """

    __slots__ = ("body", "delivery_tag", "epoch", "original_length", "queue", "redelivered", "settled", "size")

    def __init__(
        self, body: bytes, delivery_tag: int, *, redelivered: bool, original_length: int | None = None
    ) -> None:
        self.body = body
        self.size = len(body)
        self.original_length = original_length
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.epoch = 0
        self.settled = False
        self.queue = ""

    @property
    @abstractmethod
    def exchange(self) -> str:
        """The exchange that the message was published to."""

    @property
    @abstractmethod
    def routing_key(self) -> str:
        """The routing key that the message was published with."""

    @property
    @abstractmethod
    def properties(self) -> Basic.Properties:
        """The AMQP properties; empty if they cannot be decoded."""

    @property
    @abstractmethod
    def may_have_trace(self) -> bool:
        """True if the headers may contain a trace."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """The AMQP headers; empty if they cannot be decoded."""
        return self.properties.headers or {}

    @property
    def reply_to(self) -> str | None:
        """The queue for the reply."""
        return self.properties.reply_to or None

    @property
    def correlation_id(self) -> str | None:
        """The id that the reply must carry."""
        return self.properties.correlation_id or None

    @property
    def sender(self) -> str | None:
        """The RabbitMQ user that published the message, checked by the broker; None if the publisher did not say."""
        return self.properties.user_id or None

    @property
    def delivery_count(self) -> int:
        """Number of earlier failed deliveries, as counted by the quorum queue."""
        count = self.headers.get(DELIVERY_COUNT, 0)
        return count if isinstance(count, int) else 0

    @property
    def possible_poison(self) -> bool:
        """True if the message was redelivered so often that it may be poison and must be processed alone."""
        return self.redelivered and self.delivery_count >= POISON_FROM


class RawDelivery(Delivery):
    """A delivery whose frames are decoded on access: 4 µs of CPU for a message of 330 bytes instead of 12."""

    __slots__ = ("_deliver", "_header", "_properties")

    def __init__(self, deliver: bytes, header: bytes, body: bytes, original_length: int | None = None) -> None:
        """Create a delivery from its complete ``deliver`` and ``header`` frames."""
        tag, flags = _TAG_AND_FLAGS.unpack_from(deliver, _TAG_AT + 1 + deliver[_TAG_AT])
        super().__init__(body, tag, redelivered=bool(flags & 1), original_length=original_length)
        self.size += len(header)
        self._deliver = deliver
        self._header = header
        self._properties: Basic.Properties | None = None

    @property
    def consumer_tag(self) -> bytes:
        """The tag of the consumer that received the message."""
        return self._deliver[_TAG_AT + 1 : _TAG_AT + 1 + self._deliver[_TAG_AT]]

    @property
    def exchange(self) -> str:
        """The exchange that the message was published to."""
        return _text(self._deliver, self._exchange_at)

    @property
    def routing_key(self) -> str:
        """The routing key that the message was published with."""
        at = self._exchange_at
        return _text(self._deliver, at + 1 + self._deliver[at])

    @property
    def properties(self) -> Basic.Properties:
        """The AMQP properties; empty if they cannot be decoded."""
        if self._properties is None:
            header = ContentHeader()
            try:
                header.unmarshal(self._header[7:-1])
                self._properties = header.properties
            except UNDECODABLE:  # only if pamqp's own decoders run, see ``patches.pamqp_patches``
                self._properties = Basic.Properties()
        return self._properties

    @property
    def may_have_trace(self) -> bool:
        """True if the undecoded headers mention a trace."""
        return b"traceparent" in self._header

    @property
    def _exchange_at(self) -> int:
        return _TAG_AT + 1 + self._deliver[_TAG_AT] + _TAG_AND_FLAGS.size


class DecodedDelivery(Delivery):
    """A delivery that aiormq decoded, for versions of aiormq that the patches do not support."""

    __slots__ = ("_message",)

    def __init__(self, message: DeliveredMessage) -> None:
        assert message.delivery_tag is not None
        super().__init__(message.body, message.delivery_tag, redelivered=bool(message.redelivered))
        self._message = message

    @property
    def exchange(self) -> str:
        """The exchange that the message was published to."""
        return self._message.exchange or ""

    @property
    def routing_key(self) -> str:
        """The routing key that the message was published with."""
        return self._message.routing_key or ""

    @property
    def properties(self) -> Basic.Properties:
        """The AMQP properties."""
        return self._message.header.properties

    @property
    def may_have_trace(self) -> bool:
        """True if the headers contain a trace."""
        return "traceparent" in self.headers


def _text(frame: bytes, at: int) -> str:
    return frame[at + 1 : at + 1 + frame[at]].decode("utf-8", "backslashreplace")
