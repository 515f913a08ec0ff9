"""Publish with confirms; the result states whether the message was routed to a queue."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from uuid import uuid4

from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from taskherd.broker.connection import REQUEST_TIMEOUT, SupervisedConnection, map_errors
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from aiormq.channel import Channel
    from pamqp.common import FieldTable

JSON = "application/json"
PERSISTENT = 2
"""The AMQP delivery mode of messages that survive a restart of the broker."""
MAX_IN_FLIGHT = 256
"""Maximum number of messages that wait for their confirm at the same time."""
MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024
"""Maximum total size of the bodies that ``publish_many`` sends at the same time."""
_MAX_UNCONFIRMED = 100
"""Number of missing confirms after which a connection is aborted."""


class PublishOutcome(Enum):
    """The result of publishing a message that the broker confirmed."""

    CONFIRMED = "confirmed"
    UNROUTED = "unrouted"
    """It was mandatory and routed to no queue; the broker has dropped it."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish; if it is not consumed within ``expiration`` seconds, its queue expires it."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    content_type: str | None = JSON
    headers: FieldTable | None = None
    mandatory: bool = False
    expiration: float | None = None
    reply_to: str | None = None
    correlation_id: str | None = None


@dataclass(slots=True)
class _Confirms:
    """When the last confirm arrived on a connection, in seconds of the loop's clock, and how many are missing."""

    latest_at: float = 0.0
    missing: int = 0


class Publisher:
    """A publisher on ``connection``, which must not be used for consuming.

    Every failure is ``Unavailable`` and leaves the outcome unknown: the message may still arrive. Each attempt has its
    own message id, by which aiormq distinguishes returned messages; ids that must be stable over repeats belong in the
    body or in a header.
    """

    def __init__(self, connection: SupervisedConnection, *, identified: bool = False) -> None:
        """Create a publisher; if ``identified``, each message names its user in the property ``user_id``.

        The broker refuses a message that names another user than the connection's
        (https://www.rabbitmq.com/docs/validated-user-id), so a consumer can rely on it.
        """
        self._connection = connection
        self._user = connection.user if identified else None
        self._prepare: Callable[[Channel], Awaitable[None]] | None = None
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._confirms = _Confirms()

    def on_own_channel(self, prepare: Callable[[Channel], Awaitable[None]]) -> Publisher:
        """Return a publisher like this one, on the same connection, that calls ``prepare`` with each new channel."""
        publisher = Publisher(self._connection)
        publisher._user = self._user
        publisher._confirms = self._confirms
        publisher._prepare = prepare
        return publisher

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        headers: FieldTable | None = None,
        content_type: str | None = JSON,
        mandatory: bool = False,
        expiration: float | None = None,
        reply_to: str | None = None,
        correlation_id: str | None = None,
    ) -> PublishOutcome:
        """Publish one message; see ``send``."""
        return await self.send(
            OutgoingMessage(
                exchange, routing_key, body, content_type, headers, mandatory, expiration, reply_to, correlation_id
            )
        )

    async def send(self, message: OutgoingMessage) -> PublishOutcome:
        """Publish ``message`` and wait for the confirm. Raise ``Unavailable`` if none arrives in time."""
        async with self._slots:
            began = asyncio.get_running_loop().time()
            channel = await self._open_channel()
            try:
                with map_errors("publishing"):
                    async with asyncio.timeout(REQUEST_TIMEOUT):
                        published = await _publish(channel, message, self._user)
            except Unavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    self._drop_if_stuck(began)
                raise
            self._confirms.latest_at = asyncio.get_running_loop().time()
            return published

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Publish ``messages`` concurrently, in order, and return the outcome of each, in the same order."""
        outcomes: list[PublishOutcome | Unavailable] = []
        for chunk in _chunks(messages):
            for outcome in await asyncio.gather(*map(self.send, chunk), return_exceptions=True):
                if not isinstance(outcome, (PublishOutcome, Unavailable)):
                    raise outcome
                outcomes.append(outcome)
        return outcomes

    async def close(self) -> None:
        """Close the channel, but not the connection, within ``REQUEST_TIMEOUT``."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await _close(channel)

    async def _open_channel(self) -> Channel:
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._open_new_channel()
                self._confirms.missing = 0
            return self._channel

    async def _open_new_channel(self) -> Channel:
        channel = await self._connection.channel(confirms=True)
        if self._prepare is not None:
            try:
                await self._prepare(channel)
            except BaseException:
                await _close(channel)
                raise
        return channel

    def _drop_if_stuck(self, began: float) -> None:
        """Abort the connection if nothing was confirmed since ``began``: it may be stuck, and its buffer only grows.

        A connection that still confirms other messages is kept until too many confirms are missing.
        """
        self._confirms.missing += 1
        if self._confirms.latest_at < began or self._confirms.missing >= _MAX_UNCONFIRMED:
            self._connection.drop()


def _chunks(messages: Sequence[OutgoingMessage]) -> Iterator[Sequence[OutgoingMessage]]:
    """Split ``messages`` into runs that may be in flight at the same time."""
    start = size = 0
    for end, message in enumerate(messages):
        if end > start and (end - start >= MAX_IN_FLIGHT or size + len(message.body) > MAX_BYTES_IN_FLIGHT):
            yield messages[start:end]
            start, size = end, 0
        size += len(message.body)
    if start < len(messages):
        yield messages[start:]


async def _publish(channel: Channel, message: OutgoingMessage, user: str | None) -> PublishOutcome:
    try:
        await channel.basic_publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            properties=properties_of(message, user),
            mandatory=message.mandatory,
            wait=False,
        )
    except PublishError:
        return PublishOutcome.UNROUTED
    except DeliveryError as error:
        raise Unavailable("publishing: the broker refused the message") from error
    return PublishOutcome.CONFIRMED


async def _close(channel: Channel) -> None:
    with suppress(Unavailable), map_errors("closing a channel"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await channel.close()


def properties_of(message: OutgoingMessage, user: str | None = None) -> Basic.Properties:
    """Return the AMQP properties of a message that ``user`` publishes."""
    return Basic.Properties(
        content_type=message.content_type,
        headers=message.headers,
        delivery_mode=PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration is None else str(max(1, round(message.expiration * 1000))),
        message_id=uuid4().hex,
        user_id=user,
    )
