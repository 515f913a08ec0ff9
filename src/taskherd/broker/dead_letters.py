"""Dead letters: how one is made, and how those that wait are listed, replayed and purged."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pamqp import encode
from pamqp.commands import Basic

from taskherd.broker.connection import TIMEOUT, SupervisedConnection, map_errors
from taskherd.broker.patches.pamqp_patches import DELIVERY_COUNT
from taskherd.broker.publish import JSON, OutgoingMessage, Publisher, PublishOutcome
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldTable

    from taskherd.broker.delivery import Delivery
    from taskherd.broker.topology import TopologyNames

MAX_BODY = 1024 * 1024
"""Bytes of a body that are kept whole."""
TRUNCATED_BODY = 64 * 1024
"""Bytes that are kept of a longer one."""
MAX_DETAIL = 2000
OWN = "x-taskherd-"
REASON, DETAIL = f"{OWN}reason", f"{OWN}detail"
QUEUE, EXCHANGE, ROUTING_KEY = f"{OWN}queue", f"{OWN}exchange", f"{OWN}routing-key"
INDEX, LENGTH = f"{OWN}index", f"{OWN}length"
_MAX_HEADERS = 32 * 1024
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", DELIVERY_COUNT, "x-acquired-count", "x-opt-")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from, and what of its properties a replay needs."""

    queue: str
    exchange: str
    routing_key: str
    headers: Mapping[str, Any] = field(default_factory=dict)
    content_type: str | None = JSON
    reply_to: str | None = None
    correlation_id: str | None = None


def origin_of(delivery: Delivery) -> Origin:
    """Return the origin of what came as `delivery`."""
    return Origin(
        queue=delivery.queue,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
        headers=delivery.headers,
        content_type=delivery.properties.content_type or None,
        reply_to=delivery.reply_to,
        correlation_id=delivery.correlation_id,
    )


def build_dead_letter(
    names: TopologyNames,
    body: bytes,
    reason: str,
    detail: str,
    origin: Origin,
    *,
    index: int | None = None,
    length: int | None = None,
) -> OutgoingMessage:
    """Return the dead letter for `body`, unchanged up to 1 MiB; of a longer one the first 64 KiB and its length.

    `reason` is a short stable code, `detail` for people. `index` is the place of an element in the array that it came
    in; `length` the true length where `body` is only the beginning.
    """
    if len(body) > MAX_BODY:
        body, length = body[:TRUNCATED_BODY], len(body) if length is None else length
    headers: FieldTable = {
        **_producers(origin.headers),
        REASON: reason,
        DETAIL: _cut(detail),
        QUEUE: origin.queue,
        EXCHANGE: origin.exchange,
        ROUTING_KEY: origin.routing_key,
    }
    if index is not None:
        headers[INDEX] = index
    if length is not None:
        headers[LENGTH] = length
    return OutgoingMessage(
        names.dead,
        _fits(origin.routing_key),
        body,
        content_type=origin.content_type,
        headers=headers,
        mandatory=True,
        reply_to=origin.reply_to,
        correlation_id=origin.correlation_id,
    )


async def publish_dead_letter(  # noqa: PLR0917 - in the order in which a letter reads
    publisher: Publisher,
    names: TopologyNames,
    body: bytes,
    reason: str,
    detail: str,
    origin: Origin,
    *,
    index: int | None = None,
    length: int | None = None,
) -> None:
    """Publish the dead letter for `body`, as `build_dead_letter` makes it.

    Raises `Unavailable` unless it is safe in the queue.
    """
    dead_letter = build_dead_letter(names, body, reason, detail, origin, index=index, length=length)
    if await publisher.send(dead_letter) is PublishOutcome.UNROUTED:
        raise Unavailable(f"no queue takes dead letters; `taskherd topology apply` declares {names.dead}")


async def publish_dead_letters(publisher: Publisher, letters: list[OutgoingMessage]) -> None:
    """Publish letters at once and take those that are safe off the list; raises `Unavailable` if any is left on it."""
    outcomes = await publisher.publish_many(letters)
    left = [each for each, outcome in zip(letters, outcomes, strict=True) if outcome is not PublishOutcome.CONFIRMED]
    letters[:] = left
    if left:
        raise Unavailable(f"{len(left)} dead letters are not safe yet")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One that waits in the queue; `id` is the same each time it is read."""

    id: str
    reason: str
    detail: str
    origin: Origin
    index: int | None
    length: int
    body: bytes = field(repr=False)

    @property
    def truncated(self) -> bool:
        """Whether only the beginning of the body was kept, so that it can't be replayed."""
        return self.length > len(self.body)


async def read(connection: SupervisedConnection, names: TopologyNames, limit: int) -> list[DeadLetter]:
    """Return up to `limit` dead letters, oldest first, and leave them in the queue; raises `Unavailable`."""
    async with _temporary_channel(connection) as channel:
        return [parse(message) for message in [each async for each in _get(channel, names.dead, limit)]]


async def purge(
    connection: SupervisedConnection, names: TopologyNames, ids: Collection[str] = (), *, limit: int
) -> int:
    """Remove those with `ids` among the first `limit`, or with none given all there are; return how many."""
    async with _temporary_channel(connection) as channel:
        if not ids:
            with map_errors("purging"):
                return (await channel.queue_purge(names.dead)).message_count or 0
        removed = 0
        async for message in _get(channel, names.dead, limit):
            if parse(message).id in ids:
                await _ack(channel, message)
                removed += 1
        return removed


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did: how many went back to where they came from, and why others stayed, by id."""

    count: int
    stayed: Mapping[str, str]


async def replay(
    connection: SupervisedConnection,
    publisher: Publisher,
    names: TopologyNames,
    ids: Collection[str] = (),
    *,
    reason: str | None = None,
    limit: int,
) -> Replayed:
    """Publish dead letters to where they came from, and remove each when that is confirmed; raises `Unavailable`.

    Of the first `limit` those with `ids` and `reason`, where given. What dies in between is replayed twice, never lost.
    """
    count, stayed = 0, {}
    async with _temporary_channel(connection) as channel:
        async for message in _get(channel, names.dead, limit):
            dead_letter = parse(message)
            if (ids and dead_letter.id not in ids) or (reason is not None and dead_letter.reason != reason):
                continue
            obstacle = await _send_back(publisher, dead_letter)
            if obstacle is None:
                await _ack(channel, message)
                count += 1
            else:
                stayed[dead_letter.id] = obstacle
    return Replayed(count, stayed)


async def _send_back(publisher: Publisher, dead_letter: DeadLetter) -> str | None:
    """Publish `dead_letter` to its origin and return None, or why that is impossible."""
    origin = dead_letter.origin
    if dead_letter.truncated:
        return "only its beginning was kept"
    if not origin.exchange and not origin.routing_key:
        return "it does not say where it came from"
    if _fits(origin.routing_key) != origin.routing_key:
        return "its routing key can't be sent again"
    published = await publisher.publish(
        origin.exchange,
        origin.routing_key,
        dead_letter.body,
        headers=_producers(origin.headers) or None,
        content_type=origin.content_type,
        mandatory=True,
        reply_to=origin.reply_to,
        correlation_id=origin.correlation_id,
    )
    return None if published is PublishOutcome.CONFIRMED else "no queue takes it where it came from"


def parse(message: DeliveredMessage) -> DeadLetter:
    """Return what `message` says, ours or one that the broker dead-lettered (`x-death`)."""
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    death = _first_death(headers)
    ours = REASON in headers
    origin = Origin(
        queue=str(headers.get(QUEUE, "") if ours else death.get("queue", "")),
        exchange=str(headers.get(EXCHANGE, "") if ours else death.get("exchange", message.exchange or "")),
        routing_key=str(headers.get(ROUTING_KEY, "") if ours else _first(death.get("routing-keys"), message)),
        headers=_producers(headers),
        content_type=properties.content_type or None,
        reply_to=properties.reply_to or None,
        correlation_id=properties.correlation_id or None,
    )
    reason = str(headers[REASON] if ours else death.get("reason", "unknown"))
    detail = str(headers.get(DETAIL, "")) if ours else _broker_reason(death)
    index, length = headers.get(INDEX), headers.get(LENGTH)
    return DeadLetter(
        id=_id(message, reason, origin),
        reason=reason,
        detail=detail,
        origin=origin,
        index=index if isinstance(index, int) else None,
        length=length if isinstance(length, int) else len(message.body),
        body=message.body,
    )


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the oldest entry of `x-death`, the one about the queue where the message died first."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[-1], dict):
        return deaths[-1]
    return {}


def _broker_reason(death: Mapping[str, Any]) -> str:
    return f"dead-lettered by the broker, {death.get('count', 1)} time(s)" if death else "no reason was given"


def _first(routing_keys: Any, message: DeliveredMessage) -> Any:
    if isinstance(routing_keys, list) and routing_keys:
        return routing_keys[0]
    return message.routing_key or ""


def _id(message: DeliveredMessage, reason: str, origin: Origin) -> str:
    digest = hashlib.sha256()
    for part in (message.header.properties.message_id or "", reason, origin.queue, origin.routing_key):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(message.body)
    return digest.hexdigest()[:12]


def _producers(headers: Mapping[str, Any]) -> FieldTable:
    """Return the headers that the producer set, or none where they are too large or strange to be sent again.

    A header frame over the negotiated size would cost the connection, so ours must always fit.
    """
    kept = {name: value for name, value in headers.items() if not name.startswith((OWN, *_BROKERS))}
    try:
        size = len(encode.field_table(kept))
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return {}
    return kept if size <= _MAX_HEADERS else {}


def _cut(detail: str) -> str:
    clean = detail.encode("utf-8", "replace").decode()
    return clean if len(clean) <= MAX_DETAIL else clean[: MAX_DETAIL - 1] + "…"


def _fits(routing_key: str) -> str:
    return routing_key if len(routing_key.encode("utf-8", "replace")) <= 255 else ""  # noqa: PLR2004 - AMQP's bound


@asynccontextmanager
async def _temporary_channel(connection: SupervisedConnection) -> AsyncIterator[AbstractChannel]:
    """Give a channel, and close it in the end: what was got on it and not acked then goes back to its place."""
    channel = await connection.channel()
    try:
        yield channel
    finally:
        with map_errors("closing a channel"):
            async with asyncio.timeout(TIMEOUT):
                await channel.close()


async def _get(channel: AbstractChannel, queue: str, limit: int) -> AsyncIterator[DeliveredMessage]:
    for _ in range(limit):
        with map_errors(f"reading {queue}"):
            message = await channel.basic_get(queue, timeout=TIMEOUT)
        if isinstance(message.delivery, Basic.GetEmpty):
            return
        yield message


async def _ack(channel: AbstractChannel, message: DeliveredMessage) -> None:
    assert message.delivery_tag is not None
    with map_errors("acknowledging"):
        async with asyncio.timeout(TIMEOUT):
            await channel.basic_ack(message.delivery_tag)
