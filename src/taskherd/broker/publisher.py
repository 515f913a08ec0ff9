"""Publish with confirms; the result states whether the message was routed to a queue."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from aiormq.exceptions import DeliveryError, PublishError

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.patches.frame_writer import writer_of
from taskherd.broker.requests import REQUEST_TIMEOUT, close_channel, map_errors
from taskherd.broker.shared_work import SharedWork
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from aiormq.channel import Channel
    from pamqp.common import FieldTable

    from taskherd.broker.patches.frame_writer import Confirm, Writer

JSON = "application/json"
MAX_IN_FLIGHT = 256
"""Maximum number of messages that wait for their confirm at the same time."""
MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024
"""Maximum total size of the bodies that ``publish_many`` sends at the same time."""
_MAX_UNCONFIRMED = 100
"""Number of missing confirms after which a connection is aborted."""


class Unconfirmed(Unavailable):
    """The broker refused a message, or did not confirm it or those before it in time.

    Perhaps only one of the queues that they go to takes none.
    """


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

    def note(self, confirm: Confirm) -> None:
        """Note the time of a confirm, also one of a message that was returned."""
        if not confirm.cancelled() and isinstance(confirm.exception(), PublishError | None):
            self.latest_at = asyncio.get_running_loop().time()


class _Slots(asyncio.Semaphore):
    """A semaphore that knows how many may acquire it at once."""

    def has(self, count: int) -> bool:
        """Return whether so many can be acquired without waiting."""
        return self._value >= count and not self.locked()


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
        self._writer: Writer | None = None
        self._opening = SharedWork("opening a channel", self._open)
        self._slots = _Slots(MAX_IN_FLIGHT)
        self._collecting = asyncio.Semaphore(1)
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
        """Publish a message and wait for the confirm. Raise ``Unavailable`` if it is not sent and confirmed in time."""
        if self._slots.locked():
            async with _waiting_for_slots(REQUEST_TIMEOUT):
                await self._slots.acquire()
        else:
            await self._slots.acquire()  # at once
        try:
            writer = await self._open_writer()
            began = asyncio.get_running_loop().time()
            return await self._outcome(self._start(writer, message), began)
        finally:
            self._slots.release()

    async def start(self, message: OutgoingMessage, on_failed: Callable[[], None]) -> bool:
        """Publish ``message`` without waiting for the confirm, if nothing has to be waited for before; return whether.

        ``on_failed`` is called if the broker does not confirm the message in time, refuses it, or has no queue for it.
        """
        if self._writer is None or self._channel is None or self._channel.is_closed or self._slots.locked():
            return False
        await self._slots.acquire()  # at once
        began = asyncio.get_running_loop().time()

        def end(confirm: Confirm) -> None:
            self._slots.release()
            error = ConnectionError() if confirm.cancelled() else confirm.exception()
            if isinstance(error, TimeoutError):
                self._drop_if_stuck(began)
            if error is not None:
                on_failed()

        try:
            self._start(self._writer, message).add_done_callback(end)
        except BaseException:
            self._slots.release()
            raise
        return True

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Publish ``messages`` together, in order, and return the outcome of each, in the same order."""
        outcomes: list[PublishOutcome | Unavailable] = []
        try:
            for chunk in _chunks(messages):
                await self._acquire_slots(len(chunk))
                outcomes += await self._send_together(chunk)
        except Unavailable as error:  # the others would only wait as long, too
            outcomes += [error] * (len(messages) - len(outcomes))
        return outcomes

    async def _acquire_slots(self, count: int) -> None:
        """Acquire several slots. Raise ``Unconfirmed`` if they are not free in time.

        Messages that are stuck have theirs for ``REQUEST_TIMEOUT``, and those behind them are to be sent after that.
        """
        if self._slots.has(count) and not self._collecting.locked():
            await self._collect_slots(count)  # at once
        else:
            async with _waiting_for_slots(2 * REQUEST_TIMEOUT):
                await self._collect_slots(count)

    async def _collect_slots(self, count: int) -> None:
        """Acquire several slots. Only one caller does at a time, or two could wait for each other's."""
        async with self._collecting:
            acquired = 0
            try:
                while acquired < count:
                    await self._slots.acquire()
                    acquired += 1
            except BaseException:
                self._release_slots(acquired)
                raise

    def _release_slots(self, count: int) -> None:
        for _ in range(count):
            self._slots.release()

    async def _send_together(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Send messages, each of which has a slot until it is confirmed: one that is stuck holds only its own.

        Raise ``Unavailable`` if there is no channel to send them on.
        """
        confirms: list[Confirm] = []
        try:
            writer = await self._open_writer()
            began = asyncio.get_running_loop().time()
            for message in messages:
                confirms.append(self._start(writer, message))
                confirms[-1].add_done_callback(lambda _: self._slots.release())
            await asyncio.wait(confirms)
            return [await self._outcome_or_error(confirm, began) for confirm in confirms]
        finally:
            self._release_slots(len(messages) - len(confirms))
            for confirm in confirms:
                confirm.cancel()

    def _start(self, writer: Writer, message: OutgoingMessage) -> Confirm:
        confirm = writer.publish(message, self._user)
        confirm.add_done_callback(self._confirms.note)
        return confirm

    async def _outcome_or_error(self, confirm: Confirm, began: float) -> PublishOutcome | Unavailable:
        try:
            return await self._outcome(confirm, began)
        except Unavailable as error:
            return error

    async def _outcome(self, confirm: Confirm, began: float) -> PublishOutcome:
        try:
            await confirm
        except PublishError:
            return PublishOutcome.UNROUTED
        except DeliveryError as error:
            raise Unconfirmed("publishing: the broker refused the message") from error
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, TimeoutError):
                self._drop_if_stuck(began)
            with map_errors("publishing", timeout=Unconfirmed):
                raise
        return PublishOutcome.CONFIRMED

    async def close(self) -> None:
        """Close the channel, but not the connection, within ``REQUEST_TIMEOUT``. Who waits for it is refused."""
        await self._opening.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await close_channel(channel)

    async def _open_writer(self) -> Writer:
        """Return the writer to the channel. If there is none, all callers wait for the same attempt to open one."""
        if self._channel is None or self._channel.is_closed:
            return await self._opening.result()
        assert self._writer is not None
        return self._writer

    async def _open(self) -> Writer:
        channel = await self._open_new_channel()
        self._channel, self._writer = channel, writer_of(channel, REQUEST_TIMEOUT)
        self._confirms.missing = 0
        return self._writer

    async def _open_new_channel(self) -> Channel:
        channel = await self._connection.channel(confirms=True)
        if self._prepare is not None:
            try:
                await self._prepare(channel)
            except BaseException:
                await close_channel(channel)
                raise
        return channel

    def _drop_if_stuck(self, began: float) -> None:
        """Abort the connection if nothing was confirmed since ``began``: it may be stuck, and its buffer only grows.

        A connection that still confirms other messages is kept until too many confirms are missing.
        """
        self._confirms.missing += 1
        if self._confirms.latest_at < began or self._confirms.missing >= _MAX_UNCONFIRMED:
            self._connection.drop()


@asynccontextmanager
async def _waiting_for_slots(limit: float) -> AsyncIterator[None]:
    """Raise ``Unconfirmed`` if the block takes longer than so many seconds."""
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError:
        raise Unconfirmed(f"publishing: {MAX_IN_FLIGHT} messages before it were not confirmed in time") from None


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
