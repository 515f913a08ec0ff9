"""Encode messages without pamqp, and write all that are published at the same time with one write.

Library: aiormq, in the range that ``frame_reader`` supports.

Why: aiormq encodes each message with pamqp, keeps four objects for its confirm, and has a queue of ten writes for a
connection, so messages that are published together reach the broker in several parts. RabbitMQ uses several times as
much CPU for a message that comes alone as for one of a burst.

Replaced: ``Channel.basic_publish``, by ``FrameWriter``. Confirms and returned messages still arrive through aiormq.
``LibraryWriter`` does the same outside the range.

Gain, measured by ``python -m benchmarks patches`` on two shared cores: publishing a message of 400 bytes together with
63 others takes 30 µs of CPU instead of 220.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import lru_cache, partial
from itertools import count
from secrets import token_hex
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from aiormq.abc import ChannelFrame
from aiormq.channel import Returning
from pamqp import encode
from pamqp.commands import Basic

from taskherd.broker.patches import frame_reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiormq.channel import Channel

    from taskherd.broker.publisher import OutgoingMessage

PERSISTENT: Final = 2
"""The AMQP delivery mode of messages that survive a restart of the broker."""
_PERSISTENT_BYTE: Final = bytes((PERSISTENT,))

Confirm: TypeAlias = "asyncio.Future[Any]"
"""Done when the broker has confirmed a message; has aiormq's ``PublishError`` if the broker returned it."""

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_START = Struct(">BHI")
_PUBLISH = Struct(">HHH")
_SIZE = Struct(">HHQ")
_FLAGS = Struct(">H")
_MAX_SHORT: Final = 255
_BASIC, _PUBLISH_METHOD = 60, 40
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _CORRELATION_ID = 0x8000, 0x2000, 0x1000, 0x0400
_REPLY_TO, _EXPIRATION, _MESSAGE_ID, _USER_ID = 0x0200, 0x0100, 0x0080, 0x0010
"""The flags of the properties, which follow in this order."""

_CHECKS: Final = 20
"""Maximum number of checks for missing confirms within the time limit of a confirm."""

_ID_PREFIX: Final = token_hex(8)
_numbers = count()


def next_message_id() -> str:
    """Return a message id that no other attempt to publish has."""
    return f"{_ID_PREFIX}{next(_numbers):016x}"


class _Pending(NamedTuple):
    """A message that waits to be written; one that may be returned is then recognized by its id."""

    frames: bytes
    message_id: str | None
    confirm: Confirm


class FrameWriter:
    """A writer of messages to one channel, on which nothing else is published.

    What is published in one iteration of the event loop is written at once. A confirm that does not come within
    ``timeout`` seconds fails with ``TimeoutError``, at the next check (``_CHECKS``), and all that are missing fail when
    the channel is closed.
    """

    def __init__(self, channel: Channel, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout
        self._pending: list[_Pending] = []
        self._flushing: asyncio.Task[None] | None = None
        self._bursts: deque[tuple[float, int, int]] = deque()
        """Of each write, when it times out, and its first and last delivery tag."""
        self._expiry: asyncio.TimerHandle | None = None
        channel.closing.add_done_callback(self._fail_all)

    def publish(self, message: OutgoingMessage, user: str | None) -> Confirm:
        """Have a message written soon, on a channel with confirms. Raise ``ValueError`` if it cannot be encoded."""
        message_id = next_message_id()
        frames = encoded(message, self._channel.number, self._channel.max_content_size, message_id, user)
        confirm = self._channel.loop.create_future()
        self._pending.append(_Pending(frames, message_id if message.mandatory else None, confirm))
        self._flush_soon()
        return confirm

    async def write(self, messages: Sequence[OutgoingMessage]) -> None:
        """Write messages on a channel without confirms, and wait until the socket has taken them.

        Raises the same errors as aiormq. ``ValueError``: one of them cannot be encoded, and none is written.
        """
        channel = self._channel
        size = channel.max_content_size
        frames = [encoded(each, channel.number, size, next_message_id(), None) for each in messages]
        drained = channel.create_future()
        async with channel.lock:
            await channel.write_queue.put(ChannelFrame(b"".join(frames), False, drained))  # noqa: FBT003
        await drained

    def _flush_soon(self) -> None:
        if self._flushing is None and self._pending:
            self._flushing = asyncio.create_task(self._flush(), name="publish")

    async def _flush(self) -> None:
        """Write all messages that wait; if that fails, tell those who wait for their confirms."""
        try:
            async with asyncio.timeout(self._timeout), self._channel.lock:
                while self._pending:
                    await self._write_pending()
        except asyncio.CancelledError:
            self._fail_pending(ConnectionError("the connection was lost"))
            raise
        except Exception as error:  # noqa: BLE001 - raised where the confirms are awaited
            self._fail_pending(error)
        finally:
            self._flushing = None
            self._flush_soon()

    async def _write_pending(self) -> None:
        """Write the pending messages but those whose callers have given up. Only what was written counts as sent."""
        channel = self._channel
        self._pending = [each for each in self._pending if not each.confirm.done()]
        size = len(self._pending)
        if not size:
            return
        await channel.write_queue.put(ChannelFrame(b"".join([each.frames for each in self._pending]), False))  # noqa: FBT003
        first = channel.delivery_tag + 1
        for tag, each in enumerate(self._pending[:size], first):
            channel.confirmations[tag] = each.confirm
            if each.message_id is not None:
                channel.message_id_delivery_tag[each.message_id] = tag
                each.confirm.add_done_callback(partial(_forget, channel.message_id_delivery_tag, each.message_id))
        channel.delivery_tag += size
        del self._pending[:size]
        self._expire_later(first, channel.delivery_tag)

    def _expire_later(self, first: int, last: int) -> None:
        loop = self._channel.loop
        self._bursts.append((loop.time() + self._timeout, first, last))
        if self._expiry is None:
            self._expiry = loop.call_later(self._timeout, self._expire)

    def _expire(self) -> None:
        """Fail the confirms that did not come in time. Those that come later are ignored."""
        loop, confirmations = self._channel.loop, self._channel.confirmations
        now = loop.time()
        while self._bursts and self._bursts[0][0] <= now:
            _, first, last = self._bursts.popleft()
            for tag in range(first, last + 1):
                confirm = confirmations.get(tag)
                if confirm is not None and not confirm.done():
                    confirm.set_exception(TimeoutError())
                    confirmations[tag] = Returning()
        soon = now + self._timeout / _CHECKS
        self._expiry = loop.call_at(max(self._bursts[0][0], soon), self._expire) if self._bursts else None

    def _fail_all(self, closing: asyncio.Future[None]) -> None:
        """Fail the confirms of a closed channel."""
        if self._expiry is not None:
            self._expiry.cancel()
        reason = None if closing.cancelled() else closing.exception()
        error = reason if isinstance(reason, Exception) else ConnectionError("the connection was lost")
        missing = [each for each in self._channel.confirmations.values() if not isinstance(each, Returning)]
        _fail(missing, error)  # the others timed out, or their messages were returned
        self._channel.confirmations.clear()

    def _fail_pending(self, error: Exception) -> None:
        _fail([each.confirm for each in self._pending], error)
        self._pending.clear()


class LibraryWriter:
    """What ``FrameWriter`` does, with aiormq's own code."""

    def __init__(self, channel: Channel, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout

    def publish(self, message: OutgoingMessage, user: str | None) -> Confirm:
        """Publish a message, on a channel with confirms."""
        return asyncio.ensure_future(self._publish(message, user))

    async def write(self, messages: Sequence[OutgoingMessage]) -> None:
        """Write messages on a channel without confirms, and wait until the socket has taken them."""
        for message in messages:
            await _basic_publish(self._channel, message, None, wait=message is messages[-1])

    async def _publish(self, message: OutgoingMessage, user: str | None) -> None:
        async with asyncio.timeout(self._timeout):
            await _basic_publish(self._channel, message, user, wait=False)


class Writer(Protocol):
    """What ``FrameWriter`` and ``LibraryWriter`` have in common."""

    def publish(self, message: OutgoingMessage, user: str | None) -> Confirm:
        """Have a message written soon, on a channel with confirms."""
        ...

    async def write(self, messages: Sequence[OutgoingMessage]) -> None:
        """Write messages on a channel without confirms, and wait until the socket has taken them."""
        ...


def writer_of(channel: Channel, timeout: float) -> Writer:
    """Return a writer of messages to a channel, on which nothing else is published."""
    return FrameWriter(channel, timeout) if frame_reader.applies() else LibraryWriter(channel, timeout)


def _fail(confirms: Iterable[Confirm], error: Exception) -> None:
    for confirm in confirms:
        if not confirm.done():
            confirm.set_exception(error)


def _forget(tags: dict[str, int], message_id: str, _: Confirm) -> None:
    tags.pop(message_id, None)


async def _basic_publish(channel: Channel, message: OutgoingMessage, user: str | None, *, wait: bool) -> None:
    await channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=properties_of(message, user),
        mandatory=message.mandatory,
        wait=wait,
    )


def properties_of(message: OutgoingMessage, user: str | None) -> Basic.Properties:
    """Return the AMQP properties of a message that ``user`` publishes, as pamqp has them."""
    return Basic.Properties(
        content_type=message.content_type,
        headers=message.headers,
        delivery_mode=PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=_milliseconds(message.expiration),
        message_id=next_message_id(),
        user_id=user,
    )


def encoded(message: OutgoingMessage, channel: int, max_content: int, message_id: str, user: str | None) -> bytes:
    """Return the frames that publish a message on a channel. Raise ``ValueError`` if a name or id is too long.

    Args:
        message: the message.
        channel: the channel's number.
        max_content: maximum number of bytes of the body in a frame.
        message_id: the property of this name.
        user: the property ``user_id``.
    """
    body = message.body
    parts = [_publish_frame(channel, message.exchange, message.routing_key, message.mandatory)]
    header = _properties(message, message_id, user)
    parts += (_START.pack(_HEADER, channel, len(header) + 12), _SIZE.pack(_BASIC, 0, len(body)), header, _END)
    for start in range(0, len(body), max_content):
        part = body[start : start + max_content]
        parts += (_START.pack(_BODY, channel, len(part)), part, _END)
    return b"".join(parts)


@lru_cache(maxsize=1_024)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001
    names = _short(exchange) + _short(routing_key)
    payload = _PUBLISH.pack(_BASIC, _PUBLISH_METHOD, 0) + names + bytes((mandatory,))
    return _START.pack(_METHOD, channel, len(payload)) + payload + _END


def _properties(message: OutgoingMessage, message_id: str, user: str | None) -> bytes:
    """Return the flags of the properties that a message has, and the properties."""
    flags = _DELIVERY_MODE | _MESSAGE_ID
    parts: list[bytes] = []
    if message.content_type is not None:
        flags |= _CONTENT_TYPE
        parts.append(_short(message.content_type))
    if message.headers:
        flags |= _HEADERS
        parts.append(encode.field_table(message.headers))
    parts.append(_PERSISTENT_BYTE)
    for flag, text in (
        (_CORRELATION_ID, message.correlation_id),
        (_REPLY_TO, message.reply_to),
        (_EXPIRATION, _milliseconds(message.expiration)),
        (_MESSAGE_ID, message_id),
        (_USER_ID, user),
    ):
        if text is not None:
            flags |= flag
            parts.append(_short(text))
    return _FLAGS.pack(flags) + b"".join(parts)


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else str(max(1, round(seconds * 1000)))


def _short(text: str) -> bytes:
    """Return a short string of AMQP: its length in a byte, and its bytes."""
    value = text.encode()
    if len(value) > _MAX_SHORT:
        message = f"{text[:20]!r}… is longer than {_MAX_SHORT} bytes"
        raise ValueError(message)
    return bytes((len(value),)) + value
