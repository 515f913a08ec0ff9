"""The fast way in: frames are cut from all that the socket gave, and deliveries need neither a queue nor a task.

aiormq awaits its stream nine times for a message of three frames, hands each frame through a queue to another task, and
starts a task for each message. That is more than half of what a message costs it, so two things are replaced:

- `aiormq.connection.FrameReceiver`: reads what is there and cuts frames from it. The frames of a delivery to a consumer
  tag of ours are put together right there, undecoded; all other frames are decoded by pamqp.
- the `put` of the queue that a channel's frames go through: our deliveries are handed on by a plain call. All other
  frames take their way as before, in order.
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
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException

from taskherd.broker.delivery import Delivery

CHUNK = 128 * 1024
TAG_PREFIX = "taskherd."
"""What the consumer tags begin with whose deliveries are put together here."""

_AROUND = 8
"""Bytes of a frame around its payload: type, channel and length before it, one that marks the end after it."""

_START = Struct(">BHI")
_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 0xCE
_DELIVER = Basic.Deliver.index.to_bytes(4)
_OURS = TAG_PREFIX.encode()
_SIZE = Struct(">Q")
_SIZE_AT = 11
"""Where a content header says how long the body is."""

_MORE = object()
"""Handed through aiormq for each frame of a body that goes on, so that it sees that the connection lives."""

Receive = Callable[[Delivery], None]


class Frames(FrameReceiver):
    """Reads frames, each as soon as it is there whole, and deliveries of ours, each as one."""

    _held = b""
    _at = 0

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self._begun: dict[int, _Begun] = {}

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
                    frame = self._take(kind, channel, self._held[start:end])
                    if frame is not None:
                        return end - start, channel, frame
                    continue
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

    def _take(self, kind: int, channel: int, frame: bytes) -> Any:
        """The frame, or the delivery of ours that it is the last of; None where the rest is still to come."""
        if frame[-1] != _END:
            raise InvalidFrameError("Last byte error")
        begun = self._begun.get(channel)
        if begun is None:
            if kind == _METHOD and frame.startswith(_OURS, 12) and frame[7:11] == _DELIVER:
                self._begun[channel] = _Begun(frame)
                return None
            return _decoded(frame)
        if kind == _HEADER:
            begun.header = frame
            (begun.missing,) = _SIZE.unpack_from(frame, _SIZE_AT)
        elif kind == _BODY:
            part = frame[7:-1]
            begun.missing -= len(part)
            begun.parts.append(part)
            if begun.missing > 0:
                return _MORE
        else:  # a close, in the middle of a message that will not be whole any more
            del self._begun[channel]
            return _decoded(frame)
        if begun.missing > 0:
            return None
        del self._begun[channel]
        body = begun.parts[0] if len(begun.parts) == 1 else b"".join(begun.parts)
        return Delivery(begun.deliver, begun.header, body)


class _Begun:
    """A delivery of which not all frames are there."""

    __slots__ = ("deliver", "header", "missing", "parts")

    def __init__(self, deliver: bytes) -> None:
        self.deliver = deliver
        self.header = b""
        self.parts: list[bytes] = []
        self.missing = 0


def _decoded(frame: bytes) -> Any:
    try:
        return pamqp.frame.unmarshal(frame)[2]
    except (PAMQPException, IndexError) as error:
        raise InvalidFrameError(str(error)) from error


class Arrivals:
    """Hands each delivery of one channel to the `receivers` entry of its consumer tag."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.receivers: dict[bytes, Receive] = {}
        self._queue_up = channel.frames.put
        channel.frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        if type(frame) is Delivery:
            self.receivers[frame.consumer_tag](frame)
        elif frame is not _MORE:
            await self._queue_up(item)


def install() -> None:
    """Replace aiormq's frame receiver, for the whole process; doing it again changes nothing."""
    aiormq.connection.FrameReceiver = Frames  # type: ignore[misc]
