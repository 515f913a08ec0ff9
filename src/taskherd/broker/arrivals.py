"""The fast way in: frames are cut from all that the socket gave, and deliveries need neither a queue nor a task.

aiormq awaits its stream nine times for a message of three frames, hands each frame through a queue to another task, and
starts a task for each message. That is more than half of what a message costs it, so two things are replaced:

- `aiormq.connection.FrameReceiver`: reads what is there and cuts frames from it, and decodes the frames of a delivery,
  of which there are as many as of messages, by hand. All other frames are decoded by pamqp.
- the `put` of the queue that a channel's frames go through: deliveries are put together right there and handed on by a
  plain call. All other frames take their way as before, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

import aiormq.connection
import pamqp.frame
from aiormq.abc import AbstractChannel
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError, ProtocolSyntaxError
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

CHUNK = 128 * 1024
_AROUND = 8
"""Bytes of a frame around its payload: type, channel and length before it, one that marks the end after it."""

_START = Struct(">BHI")
_METHOD, _BODY, _END = 1, 3, 0xCE
_DELIVER = Basic.Deliver.index.to_bytes(4)
_TAG = Struct(">QB")

Receive = Callable[[Basic.Deliver, Basic.Properties, bytes], None]


class Frames(FrameReceiver):
    """Reads frames, each as soon as it is there whole."""

    _held = b""
    _at = 0

    async def get_frame(self) -> Any:
        """Return weight, channel and frame; raises as aiormq's own."""
        while True:
            ready = len(self._held) - self._at
            if ready >= _AROUND:
                kind, channel, length = _START.unpack_from(self._held, self._at)
                if not self.started and self._held.startswith(b"AMQP"):
                    raise ProtocolSyntaxError("Unexpected AMQP protocol header")
                if ready >= length + _AROUND:
                    self.started = True
                    start = self._at
                    self._at = end = start + length + _AROUND
                    return _frame(kind, channel, self._held[start:end])
            await self._read()

    async def _read(self) -> None:
        try:
            chunk = await self.reader.read(CHUNK)
        except OSError as error:
            raise AMQPConnectionError(f"Server communication error: {error!r}") from error
        if not chunk:
            raise AMQPConnectionError("Server connection unexpectedly closed")
        self._held = self._held[self._at :] + chunk
        self._at = 0


def _frame(kind: int, channel: int, frame: bytes) -> tuple[int, int, Any]:
    if frame[-1] != _END:
        raise InvalidFrameError("Last byte error")
    if kind == _BODY:
        return len(frame), channel, ContentBody(frame[7:-1])
    try:
        if kind == _METHOD and frame[7:11] == _DELIVER:
            return len(frame), channel, _deliver(frame)
        return pamqp.frame.unmarshal(frame)
    except (PAMQPException, IndexError) as error:
        raise InvalidFrameError(str(error)) from error


def _deliver(frame: bytes) -> Basic.Deliver:
    said = Basic.Deliver()
    said.consumer_tag, at = _text(frame, 11)
    said.delivery_tag, flags = _TAG.unpack_from(frame, at)
    said.redelivered = bool(flags & 1)
    said.exchange, at = _text(frame, at + _TAG.size)
    said.routing_key, at = _text(frame, at)
    return said


def _text(frame: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + frame[at]
    return frame[at + 1 : end].decode("utf-8", "backslashreplace"), end


class Arrivals:
    """Puts the deliveries of one channel together and hands each to the `receivers` entry of its consumer tag."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.receivers: dict[str, Receive] = {}
        self._queue_up = channel.frames.put
        self._deliver: Basic.Deliver | None = None
        self._header: ContentHeader | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        channel.frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        if self._deliver is None:
            if type(frame) is Basic.Deliver and frame.consumer_tag in self.receivers:
                self._deliver = frame
            else:
                await self._queue_up(item)
            return
        if type(frame) is ContentBody:
            self._parts.append(frame.value)
            self._missing -= len(frame.value)
        elif type(frame) is ContentHeader:
            self._header = frame
            self._missing = frame.body_size
        else:  # a close, in the middle of a message that will not be whole any more
            self._deliver, self._header, self._parts = None, None, []
            await self._queue_up(item)
            return
        if self._missing <= 0:
            self._hand_on()

    def _hand_on(self) -> None:
        deliver, header, parts = self._deliver, self._header, self._parts
        self._deliver, self._header, self._parts = None, None, []
        if deliver is not None and header is not None:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            self.receivers[str(deliver.consumer_tag)](deliver, header.properties, body)


def install() -> None:
    """Replace aiormq's frame receiver, for the whole process; doing it again changes nothing."""
    aiormq.connection.FrameReceiver = Frames  # type: ignore[misc]
