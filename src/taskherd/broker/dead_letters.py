"""Publish, read, replay and purge messages in the dead-letter queue, passing headers through unchanged."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pamqp import encode
from pamqp.commands import Basic

from taskherd.broker.connection import REQUEST_TIMEOUT, SupervisedConnection, map_errors
from taskherd.broker.publisher import JSON, OutgoingMessage, Publisher, PublishOutcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldTable

    from taskherd.broker.topology import TopologyNames
    from taskherd.errors import Unavailable

MAX_PRODUCER_HEADERS = 32 * 1024
"""Maximum encoded size of a producer's headers that are sent again, in bytes.

A header frame larger than the negotiated frame size would cost the connection.
"""

_MAX_ROUTING_KEY_BYTES = 255


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message in the dead-letter queue; ``exchange`` and ``routing_key`` are those it was last published with."""

    body: bytes = field(repr=False)
    headers: Mapping[str, Any]
    exchange: str
    routing_key: str
    content_type: str | None
    message_id: str | None
    reply_to: str | None
    correlation_id: str | None
    sender: str | None


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """The exchange, routing key and headers with which to publish a message again."""

    exchange: str
    routing_key: str
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The number of messages that were replayed, and those that no queue accepted and that were kept."""

    count: int
    unrouted: tuple[QueuedMessage, ...]


def build_dead_letter(
    names: TopologyNames,
    routing_key: str,
    body: bytes,
    headers: Mapping[str, Any],
    *,
    producer_headers: Mapping[str, Any] | None = None,
    content_type: str | None = JSON,
    reply_to: str | None = None,
    correlation_id: str | None = None,
) -> OutgoingMessage:
    """Return the message to publish as a dead letter.

    ``routing_key``, ``producer_headers`` and the properties are those of the original message. A routing key or headers
    that cannot be sent again are left out.
    """
    return OutgoingMessage(
        names.dead,
        routing_key if len(routing_key.encode("utf-8", "replace")) <= _MAX_ROUTING_KEY_BYTES else "",
        body,
        content_type=content_type,
        headers={**_sendable(producer_headers or {}), **headers},
        mandatory=True,
        reply_to=reply_to,
        correlation_id=correlation_id,
    )


async def publish_dead_letters(publisher: Publisher, dead_letters: Sequence[OutgoingMessage]) -> list[str | None]:
    """Publish dead letters together. Return for each None if the broker has it in a queue, else the reason."""
    outcomes = await publisher.publish_many(dead_letters)
    return [_obstacle(outcome, each.exchange) for outcome, each in zip(outcomes, dead_letters, strict=True)]


def _obstacle(outcome: PublishOutcome | Unavailable, exchange: str) -> str | None:
    if outcome is PublishOutcome.CONFIRMED:
        return None
    if outcome is PublishOutcome.UNROUTED:
        return f"no queue is bound for dead letters; `taskherd topology apply` declares {exchange}"
    return str(outcome) or "not confirmed"


async def read(connection: SupervisedConnection, names: TopologyNames, limit: int) -> list[QueuedMessage]:
    """Return up to ``limit`` dead letters, oldest first, and leave them in the queue. May raise ``Unavailable``."""
    async with connection.temporary_channel() as channel:
        return [_queued(message) for message in [each async for each in _get(channel, names.dead, limit)]]


async def purge(
    connection: SupervisedConnection,
    names: TopologyNames,
    select: Callable[[QueuedMessage], bool] | None = None,
    *,
    limit: int,
) -> int:
    """Remove the selected dead letters among the first ``limit``, or all without ``select``; return their number."""
    async with connection.temporary_channel() as channel:
        if select is None:
            with map_errors("purging"):
                return (await channel.queue_purge(names.dead)).message_count or 0
        removed = 0
        async for message in _get(channel, names.dead, limit):
            if select(_queued(message)):
                await _ack(channel, message)
                removed += 1
        return removed


async def replay(
    connection: SupervisedConnection,
    publisher: Publisher,
    names: TopologyNames,
    target_of: Callable[[QueuedMessage], ReplayTarget | None],
    *,
    limit: int,
) -> ReplayResult:
    """Publish the first ``limit`` dead letters to their targets, and remove each one once it is confirmed.

    A dead letter for which ``target_of`` returns None is kept. A crash in between replays one twice, but loses none.
    May raise ``Unavailable``.
    """
    count, unrouted = 0, []
    async with connection.temporary_channel() as channel:
        async for message in _get(channel, names.dead, limit):
            queued = _queued(message)
            target = target_of(queued)
            if target is None:
                continue
            outcome = await publisher.publish(
                target.exchange,
                target.routing_key,
                queued.body,
                headers=_sendable(target.headers) or None,
                content_type=queued.content_type,
                mandatory=True,
                reply_to=queued.reply_to,
                correlation_id=queued.correlation_id,
            )
            if outcome is PublishOutcome.CONFIRMED:
                await _ack(channel, message)
                count += 1
            else:
                unrouted.append(queued)
    return ReplayResult(count, tuple(unrouted))


def _queued(message: DeliveredMessage) -> QueuedMessage:
    properties = message.header.properties
    return QueuedMessage(
        body=message.body,
        headers=properties.headers or {},
        exchange=message.exchange or "",
        routing_key=message.routing_key or "",
        content_type=properties.content_type or None,
        message_id=properties.message_id or None,
        reply_to=properties.reply_to or None,
        correlation_id=properties.correlation_id or None,
        sender=properties.user_id or None,
    )


def _sendable(headers: Mapping[str, Any]) -> FieldTable:
    """Return the headers, or none if they cannot be encoded or are too large."""
    table = dict(headers)
    try:
        size = len(encode.field_table(table))
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return {}
    return table if size <= MAX_PRODUCER_HEADERS else {}


async def _get(channel: AbstractChannel, queue: str, limit: int) -> AsyncIterator[DeliveredMessage]:
    for _ in range(limit):
        with map_errors(f"reading {queue}"):
            message = await channel.basic_get(queue, timeout=REQUEST_TIMEOUT)
        if isinstance(message.delivery, Basic.GetEmpty):
            return
        yield message


async def _ack(channel: AbstractChannel, message: DeliveredMessage) -> None:
    assert message.delivery_tag is not None
    with map_errors("acknowledging"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await channel.basic_ack(message.delivery_tag)
