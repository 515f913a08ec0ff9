"""Dead letters: reasons, headers, and the encoding and decoding of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import format_rfc3339
from taskherd.messages.limits import MAX_BODY_BYTES, TRUNCATED_BYTES

MAX_DETAIL = 500
"""Maximum length of a detail, in characters."""

PREFIX: Final = "x-taskherd-"
_RABBITMQ_DEATHS: Final = ("x-death", "x-first-death-", "x-last-death-")
_RABBITMQ_PREFIXES: Final = (
    *_RABBITMQ_DEATHS,
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
)
_LAST_DEATH: Final = "x-last-death-"
_MAX_ROUTING_KEY_BYTES: Final = 255

MEANINGS: Mapping[DeadLetterReason, str] = {
    DeadLetterReason.NOT_JSON: "The body is not JSON in UTF-8, or is nested too deeply.",
    DeadLetterReason.TOO_LARGE: "The body is larger than 1 MiB; its first 64 KiB are kept.",
    DeadLetterReason.TOO_MANY: "The array has more than 1,000 reports.",
    DeadLetterReason.UNKNOWN_TYPE: "The type is not one of this contract.",
    DeadLetterReason.INVALID: "A field is missing or invalid.",
    DeadLetterReason.BUILD_CONFLICT: "A build report has another transition than the build with its number.",
    DeadLetterReason.BUILD_OUT_OF_RANGE: "A build number more than 1,000 above the highest that the worker requested.",
    DeadLetterReason.UNKNOWN_INPUT: "An outcome was reported for an input the task does not have.",
    DeadLetterReason.UNTRUSTED_SENDER: "Its property user_id is missing, or names a user that may not send it.",
    DeadLetterReason.USAGE_OVERFLOW: "Usage of a 17th model of a build, or beyond what the total of a task can hold.",
    DeadLetterReason.REQUESTS_OVERFLOW: "A request of an agent whose task has 100 open ones already.",
    DeadLetterReason.PARKED_EXPIRED: "A report whose task was not created within parked_ttl, or rejected it.",
    DeadLetterReason.PARKED_OVERFLOW: "Too many reports are parked for the task already.",
    DeadLetterReason.COMMAND_REFUSED: "A command that was refused and has no reply_to.",
    DeadLetterReason.DATA_ERROR: "The database rejected a value.",
    DeadLetterReason.FAULT: "Processing failed because of a bug in taskherd; replay it once that is fixed.",
    DeadLetterReason.REJECTED: "Written by RabbitMQ (in x-death): a consumer rejected it.",
    DeadLetterReason.EXPIRED: "Written by RabbitMQ (in x-death): it had expired.",
    DeadLetterReason.MAXLEN: "Written by RabbitMQ (in x-death): its queue was full.",
    DeadLetterReason.DELIVERY_LIMIT: "Written by RabbitMQ (in x-death): it was delivered too often.",
    DeadLetterReason.UNKNOWN: "The message has no header with a reason.",
}


class DeadLetterHeaders(BaseModel):
    """The headers of a dead letter; its body is the original message, or one element of an array.

    A message that RabbitMQ dead-lettered has none of these, but RabbitMQ's ``x-death``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    reason: DeadLetterReason = Field(alias=f"{PREFIX}reason")
    detail: str = Field("", alias=f"{PREFIX}detail", max_length=MAX_DETAIL)
    index: int | None = Field(None, alias=f"{PREFIX}index", ge=0, description="Index in the array it arrived in.")
    length: int | None = Field(
        None, alias=f"{PREFIX}length", description="Original size of the body in bytes, if it was truncated."
    )
    exchange: str | None = Field(None, alias=f"{PREFIX}exchange", description="Exchange it was published to.")
    routing_key: str | None = Field(None, alias=f"{PREFIX}routing-key")
    queue: str | None = Field(None, alias=f"{PREFIX}queue", description="Queue it was consumed from.")
    time: str | None = Field(None, alias=f"{PREFIX}time", description="When it was dead-lettered, in RFC 3339.")
    sender: str | None = Field(
        None, alias=f"{PREFIX}sender", description="RabbitMQ user that sent it, if the message named one."
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """The queue that a message was consumed from, and the exchange and routing key that it was published with."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the dead-letter queue; ``id`` is the same each time it is read.

    ``length`` is the original size of the body in bytes; ``headers`` are those that the producer set; ``time`` is when
    it was dead-lettered, in UTC, None if that is unknown. ``sender`` is the RabbitMQ user that sent it, checked by the
    broker, None if the message did not name it; ``sender_checked`` is False if RabbitMQ dead-lettered it, before a
    worker could judge its sender.
    """

    id: str
    reason: str
    detail: str
    origin: Origin
    index: int | None
    length: int
    body: bytes = field(repr=False)
    headers: Mapping[str, Any] = field(default_factory=dict)
    time: datetime | None = None
    sender: str | None = None
    sender_checked: bool = True

    @property
    def truncated(self) -> bool:
        """True if only the beginning of the body was kept."""
        return self.length > len(self.body)

    @property
    def replay_obstacle(self) -> str | None:
        """The reason why it cannot be published to its origin again, or None."""
        if self.truncated:
            return "only the beginning of its body was kept"
        if not self.origin.exchange and not self.origin.routing_key:
            return "its origin is unknown"
        if len(self.origin.routing_key.encode("utf-8", "replace")) > _MAX_ROUTING_KEY_BYTES:
            return "its routing key is too long to be sent"
        return None

    @property
    def doubt(self) -> str | None:
        """The reason why it is replayed only if a person names it, who then vouches for it, or None."""
        if self.reason == DeadLetterReason.UNTRUSTED_SENDER:
            return "it came from no trusted sender; if you trust what it asks for, name its id"
        if not self.sender_checked:
            return "no worker has checked its sender; if you trust what it asks for, name its id"
        return None


class StoredMessage(Protocol):
    """The parts of a message from the dead-letter queue that ``decode`` reads."""

    @property
    def body(self) -> bytes:
        """The body."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """All headers."""

    @property
    def exchange(self) -> str:
        """The exchange that it was last published to."""

    @property
    def routing_key(self) -> str:
        """The routing key that it was last published with."""

    @property
    def message_id(self) -> str | None:
        """The message id that its publisher chose."""

    @property
    def sender(self) -> str | None:
        """The RabbitMQ user that published it, checked by the broker; None if its publisher did not say."""


def encode(
    body: bytes,
    reason: DeadLetterReason,
    detail: str,
    origin: Origin,
    *,
    index: int | None = None,
    length: int | None = None,
    time: datetime | None = None,
    sender: str | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """Return the body and the headers of a dead letter.

    A body larger than 1 MiB is truncated to its first 64 KiB.

    Args:
        body: the original body, or one element of it.
        reason: its code.
        detail: an explanation for people; truncated to ``MAX_DETAIL`` characters.
        origin: where the message was published and consumed.
        index: the index of the element in the array it arrived in.
        length: the original size in bytes, if ``body`` was truncated before.
        time: when it is dead-lettered, with a time zone.
        sender: the RabbitMQ user that sent it, as the broker has checked it.
    """
    if len(body) > MAX_BODY_BYTES:
        body, length = body[:TRUNCATED_BYTES], len(body) if length is None else length
    headers = DeadLetterHeaders(
        reason=reason,
        detail=_truncate(detail),
        index=index,
        length=length,
        exchange=origin.exchange,
        routing_key=origin.routing_key,
        queue=origin.queue,
        time=None if time is None else format_rfc3339(time),
        sender=sender,
    )
    return body, headers.model_dump(mode="json", by_alias=True, exclude_none=True)


def decode(message: StoredMessage) -> DeadLetter:
    """Decode a dead letter that taskherd published or that RabbitMQ dead-lettered; never raises.

    Of the latter only what RabbitMQ wrote counts: its producer chose all other headers, also those named like ours.
    """
    headers = message.headers
    if not _is_from_broker(headers) and f"{PREFIX}reason" in headers:
        return _decode_own(message)
    reason = str(headers.get(f"{_LAST_DEATH}reason", DeadLetterReason.UNKNOWN.value))
    origin = Origin("", "", "")  # published straight to the dead letters
    if f"{_LAST_DEATH}queue" in headers:
        queue, exchange = (str(headers.get(f"{_LAST_DEATH}{name}", "")) for name in ("queue", "exchange"))
        origin = Origin(queue, exchange, message.routing_key)
    return DeadLetter(
        id=_id(message, reason, origin),
        reason=reason,
        detail=_broker_detail(message),
        origin=origin,
        index=None,
        length=len(message.body),
        body=message.body,
        headers=producer_headers(headers),
        time=_time(_last_death(headers).get("time")),
        sender=message.sender,
        sender_checked=False,
    )


def _decode_own(message: StoredMessage) -> DeadLetter:
    """Decode a dead letter that taskherd published."""
    headers = message.headers
    reason = str(headers[f"{PREFIX}reason"])
    origin = Origin(*(str(headers.get(f"{PREFIX}{name}", "")) for name in ("queue", "exchange", "routing-key")))
    index, length, sender = (headers.get(f"{PREFIX}{name}") for name in ("index", "length", "sender"))
    return DeadLetter(
        id=_id(message, reason, origin),
        reason=reason,
        detail=str(headers.get(f"{PREFIX}detail", "")),
        origin=origin,
        index=index if isinstance(index, int) else None,
        length=length if isinstance(length, int) else len(message.body),
        body=message.body,
        headers=producer_headers(headers),
        time=_time(headers.get(f"{PREFIX}time")),
        sender=sender if isinstance(sender, str) else None,
    )


def _time(value: object) -> datetime | None:
    """Return the time of taskherd's header (RFC 3339) or RabbitMQ's (an AMQP timestamp), or None if it is invalid."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time.astimezone(UTC) if isinstance(time, datetime) else None
    except (ValueError, OverflowError):
        return None


def producer_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that the producer set: all except taskherd's and RabbitMQ's."""
    return {name: value for name, value in headers.items() if not name.startswith((PREFIX, *_RABBITMQ_PREFIXES))}


def _is_from_broker(headers: Mapping[str, Any]) -> bool:
    """Return whether RabbitMQ dead-lettered the message: taskherd never publishes a header of these names."""
    return any(name.startswith(_RABBITMQ_DEATHS) for name in headers)


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of ``x-death`` for the last queue and reason, or an empty one.

    RabbitMQ may take over entries that a producer wrote (https://github.com/rabbitmq/rabbitmq-server/pull/11339), with
    any exchange and time. It writes the ``x-last-death-*`` headers itself each time, and they replace a producer's.
    """
    deaths = headers.get("x-death")
    last = (headers.get(f"{_LAST_DEATH}queue"), headers.get(f"{_LAST_DEATH}reason"))
    for death in deaths if isinstance(deaths, list) else ():
        if isinstance(death, dict) and (death.get("queue"), death.get("reason")) == last:
            return death
    return {}


def _broker_detail(message: StoredMessage) -> str:
    if not _is_from_broker(message.headers):
        return "no reason was given"
    sender = "a user that is not known" if message.sender is None else f"the user {message.sender[:64]!r}"
    return f"dead-lettered by the broker, sent by {sender}"


def _id(message: StoredMessage, reason: str, origin: Origin) -> str:
    digest = hashlib.sha256()
    for part in (message.message_id or "", reason, origin.queue, origin.routing_key):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(message.body)
    return digest.hexdigest()[:12]


def _truncate(detail: str) -> str:
    clean = detail.encode("utf-8", "replace").decode()
    return clean if len(clean) <= MAX_DETAIL else clean[: MAX_DETAIL - 1] + "…"
