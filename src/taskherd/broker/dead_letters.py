"""Publish, read, replay and purge messages in the dead-letter queue, passing headers through unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from pamqp import encode
from pamqp.commands import Basic

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publisher import JSON, OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.reply_queues import DIRECT
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldTable

    from taskherd.broker.topology import TopologyNames

MAX_PRODUCER_HEADERS = 32 * 1024
"""Maximum encoded size of a producer's headers that are sent again, in bytes.

A header frame larger than the negotiated frame size would cost the connection.
"""

MAX_HEADER_LEVELS = 16
"""Maximum number of levels of lists and tables in a producer's header that is sent again, so that no stack decides."""

_ROUTING_HEADERS = ("CC", "BCC")
"""Headers with further routing keys (https://www.rabbitmq.com/docs/sender-selected), which RabbitMQ accepts as lists.

A message of an AMQP 1.0 client may have others: they do not route there.
"""

_MAX_ROUTING_KEY_BYTES = 255
_ORDER_TIMEOUT = 5.0
"""Seconds after which no more of what was returned is taken, to keep the order."""


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


class Purged(NamedTuple):
    """How many dead letters were removed, and how many there were beyond those that were looked at."""

    removed: int
    beyond: int


OnReplayed: TypeAlias = Callable[[QueuedMessage, str | None], None]
"""Called with each message that was to be replayed, and the reason why it was kept, or None."""


class MayNotRead(Unavailable):
    """The RabbitMQ user may not read the dead letters."""


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

    ``routing_key``, ``producer_headers`` and the properties are those of the original message. What of them cannot be
    sent again is left out.
    """
    return OutgoingMessage(
        names.dead,
        routing_key if len(routing_key.encode("utf-8", "replace")) <= _MAX_ROUTING_KEY_BYTES else "",
        body,
        content_type=content_type,
        headers={**_sendable(producer_headers or {}), **headers},
        mandatory=True,
        reply_to=_sendable_reply_to(reply_to),
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
    messages: list[QueuedMessage] = []
    await browse(connection, names, messages.append, limit=limit)
    return messages


async def browse(
    connection: SupervisedConnection,
    names: TopologyNames,
    visit: Callable[[QueuedMessage], None],
    *,
    limit: int,
    more: Callable[[], bool] = lambda: True,
) -> int:
    """Visit up to ``limit`` dead letters, oldest first, while ``more()``; return how many were not visited.

    They stay in the queue, hidden from other readers until this ends. May raise ``Unavailable``, or ``MayNotRead``.
    """
    async with _reading(connection, names) as reader:
        async for message in reader.get(limit, more):
            visit(_queued(message))
        return reader.left


async def purge(
    connection: SupervisedConnection,
    names: TopologyNames,
    select: Callable[[QueuedMessage], bool] | None = None,
    *,
    limit: int,
) -> Purged:
    """Remove the selected dead letters among the first ``limit``, or all without ``select``."""
    if select is None:
        async with connection.temporary_channel() as channel:
            with map_errors("purging"):
                return Purged((await channel.queue_purge(names.dead)).message_count or 0, 0)
    removed = 0
    async with _reading(connection, names) as reader:
        async for message in reader.get(limit):
            if select(_queued(message)):
                await reader.ack(message)
                removed += 1
    return Purged(removed, reader.beyond)


async def replay(
    connection: SupervisedConnection,
    publisher: Publisher,
    names: TopologyNames,
    target_of: Callable[[QueuedMessage], ReplayTarget | None],
    on_replayed: OnReplayed,
    *,
    limit: int,
    more: Callable[[], bool] = lambda: True,
) -> int:
    """Publish the first ``limit`` dead letters to their targets while ``more()``; remove each once it is confirmed.

    Return how many there were beyond the limit. A dead letter for which ``target_of`` returns None is kept. A crash in
    between replays one twice, but loses none. May raise ``Unavailable``, or ``MayNotRead``.
    """
    async with _reading(connection, names) as reader:
        async for message in reader.get(limit, more):
            queued = _queued(message)
            target = target_of(queued)
            if target is None:
                continue
            obstacle = await _publish_again(publisher, queued, target)
            if obstacle is None:
                await reader.ack(message)
            on_replayed(queued, obstacle)
        return reader.beyond


async def _publish_again(publisher: Publisher, queued: QueuedMessage, target: ReplayTarget) -> str | None:
    """Publish a message to its target, and return why that is impossible, or None. May raise ``Unavailable``."""
    try:
        outcome = await publisher.publish(
            target.exchange,
            target.routing_key,
            queued.body,
            headers=_sendable(target.headers) or None,
            content_type=queued.content_type,
            mandatory=True,
            reply_to=_sendable_reply_to(queued.reply_to),
            correlation_id=queued.correlation_id,
        )
    except Unavailable as error:
        if isinstance(error.__cause__, ChannelAccessRefused):
            return "the RabbitMQ user may not publish to its original exchange"
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return "its original exchange no longer exists"
        raise
    if outcome is PublishOutcome.CONFIRMED:
        return None
    return "no queue is bound to its original exchange with its routing key"


class _Reader:
    """Takes messages out of the dead-letter queue.

    ``left`` is the number that was not taken, and ``beyond`` that of those beyond the limit when it began, as far as is
    known.
    """

    def __init__(self, channel: AbstractChannel, queue: str) -> None:
        self.left = self.beyond = 0
        self._channel = channel
        self._queue = queue
        self._took_returned = False

    async def get(self, limit: int, more: Callable[[], bool] = lambda: True) -> AsyncIterator[DeliveredMessage]:
        """Take up to ``limit`` messages, while ``more()``, and of those only that were there at the beginning.

        What is replayed and dead-lettered again at once is thus not taken again and again.
        """
        taken = 0
        while taken < limit and more():
            message = await self._get()
            if message is None:
                return
            if not taken:
                self.beyond = max(0, 1 + self.left - limit)
                limit = min(limit, 1 + self.left)
            taken += 1
            yield message

    async def take_returned(self) -> None:
        """Take all that was returned before: what returns to the queue comes after that, or the order would change.

        The others, which were never taken, come after both. After ``_ORDER_TIMEOUT`` it gives the order up.
        """
        now = asyncio.get_running_loop().time
        until = now() + _ORDER_TIMEOUT
        while self._took_returned and now() < until:
            await self._get()

    async def _get(self) -> DeliveredMessage | None:
        try:
            with map_errors(f"reading {self._queue}"):
                message = await self._channel.basic_get(self._queue, timeout=REQUEST_TIMEOUT)
        except Unavailable as error:
            if isinstance(error.__cause__, ChannelAccessRefused):
                raise MayNotRead(str(error)) from error
            raise
        if not isinstance(message.delivery, Basic.GetOk):
            self.left, self._took_returned = 0, False
            return None
        self.left, self._took_returned = message.delivery.message_count or 0, bool(message.delivery.redelivered)
        return message

    async def ack(self, message: DeliveredMessage) -> None:
        """Remove a message that was taken."""
        assert message.delivery_tag is not None
        with map_errors("acknowledging"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._channel.basic_ack(message.delivery_tag)


@asynccontextmanager
async def _reading(connection: SupervisedConnection, names: TopologyNames) -> AsyncIterator[_Reader]:
    """Read the dead letters during the block. At its end all that was not acknowledged is in its place again.

    A negative ack would put them at the end of a queue without a delivery limit
    (https://www.rabbitmq.com/docs/quorum-queues#repeated-requeues).
    """
    async with connection.temporary_channel() as channel:
        reader = _Reader(channel, names.dead)
        yield reader
        await reader.take_returned()


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


def _sendable_reply_to(queue: str | None) -> str | None:
    """Return the reply queue, or None for direct replies to this channel, which consumes none: RabbitMQ closes it."""
    return None if queue == DIRECT else queue


def _sendable(headers: Mapping[str, Any]) -> FieldTable:
    """Return the headers that RabbitMQ takes; none if they cannot be encoded, are too large or have too many levels."""
    table = {name: each for name, each in headers.items() if name not in _ROUTING_HEADERS or isinstance(each, list)}
    if _is_too_deep(table):
        return {}
    try:
        size = len(encode.field_table(table))
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        return {}
    return table if size <= MAX_PRODUCER_HEADERS else {}


def _is_too_deep(headers: Mapping[str, Any]) -> bool:
    """Return whether a header has more than ``MAX_HEADER_LEVELS``, of which the list or table that it is is one."""
    nested: list[Any] = [headers]
    for _ in range(MAX_HEADER_LEVELS + 1):
        values = [value for each in nested for value in (each.values() if isinstance(each, dict) else each)]
        nested = [value for value in values if isinstance(value, dict | list)]
    return bool(nested)
