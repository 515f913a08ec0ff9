"""The publisher: what it returns for was confirmed by the broker, and says whether any queue took it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from uuid import uuid4

from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from taskherd.broker.connection import TIMEOUT, SupervisedConnection, map_errors
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiormq.channel import Channel
    from pamqp.common import FieldTable

JSON = "application/json"
PERSISTENT = 2
MAX_IN_FLIGHT = 256
MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024
_MAX_UNANSWERED = 100


class PublishOutcome(Enum):
    """What became of a message that the broker confirmed."""

    CONFIRMED = "confirmed"
    UNROUTED = "unrouted"
    """It was mandatory and no queue took it; the broker has dropped it."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish; with `expiration`, in seconds, the broker drops it when it was not taken by then."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=False)
    content_type: str | None = JSON
    headers: FieldTable | None = None
    mandatory: bool = False
    expiration: float | None = None
    reply_to: str | None = None
    correlation_id: str | None = None


class Publisher:
    """Publishes on `link`, which nothing else should consume on.

    Every failure is `Unavailable`, and means that the outcome is unknown: the message may still arrive. Each attempt
    gets a message id of its own, since aiormq tells returned messages apart by it; what is to be stable over repeats
    belongs in the body or a header.
    """

    def __init__(self, connection: SupervisedConnection) -> None:
        self._link = connection
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._answered_at = 0.0
        self._unanswered = 0

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
        """Publish one message, as `send`."""
        return await self.send(
            OutgoingMessage(
                exchange, routing_key, body, content_type, headers, mandatory, expiration, reply_to, correlation_id
            )
        )

    async def send(self, message: OutgoingMessage) -> PublishOutcome:
        """Publish `message` and return when the broker has confirmed it; raises `Unavailable` within seconds."""
        async with self._slots:
            began = asyncio.get_running_loop().time()
            channel = await self._open_channel()
            try:
                with map_errors("publishing"):
                    async with asyncio.timeout(TIMEOUT):
                        published = await _publish(channel, message)
            except Unavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    self._give_up_if_stuck(began)
                raise
            self._answered_at = asyncio.get_running_loop().time()
            return published

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Publish `messages` at once, in order, and return the outcome of each, in the same order."""
        outcomes: list[PublishOutcome | Unavailable] = []
        for chunk in _chunks(messages):
            for outcome in await asyncio.gather(*map(self.send, chunk), return_exceptions=True):
                if not isinstance(outcome, (PublishOutcome, Unavailable)):
                    raise outcome
                outcomes.append(outcome)
        return outcomes

    async def close(self) -> None:
        """Close the channel, within seconds; the link stays."""
        channel, self._channel = self._channel, None
        if channel is not None:
            with suppress(Unavailable), map_errors("closing a channel"):
                async with asyncio.timeout(TIMEOUT):
                    await channel.close()

    async def _open_channel(self) -> Channel:
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.channel(confirms=True)
                self._unanswered = 0
            return self._channel

    def _give_up_if_stuck(self, began: float) -> None:
        """Cut a connection on which nothing was confirmed since `began`: it may stay stuck, and its buffer only grows.

        One that still confirms other messages lives on, until too many were never answered.
        """
        self._unanswered += 1
        if self._answered_at < began or self._unanswered >= _MAX_UNANSWERED:
            self._link.drop()


def _chunks(messages: Sequence[OutgoingMessage]) -> Iterator[Sequence[OutgoingMessage]]:
    """Cut `messages` into runs that may be in flight together."""
    start = size = 0
    for end, message in enumerate(messages):
        if end > start and (end - start >= MAX_IN_FLIGHT or size + len(message.body) > MAX_BYTES_IN_FLIGHT):
            yield messages[start:end]
            start, size = end, 0
        size += len(message.body)
    if start < len(messages):
        yield messages[start:]


async def _publish(channel: Channel, message: OutgoingMessage) -> PublishOutcome:
    try:
        await channel.basic_publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            properties=_properties(message),
            mandatory=message.mandatory,
            wait=False,
        )
    except PublishError:
        return PublishOutcome.UNROUTED
    except DeliveryError as error:
        raise Unavailable("publishing: the broker refused the message") from error
    return PublishOutcome.CONFIRMED


def _properties(message: OutgoingMessage) -> Basic.Properties:
    return Basic.Properties(
        content_type=message.content_type,
        headers=message.headers,
        delivery_mode=PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration is None else str(max(1, round(message.expiration * 1000))),
        message_id=uuid4().hex,
    )
