"""Fill a queue fast: write prepared AMQP frames to a socket and wait until all messages are confirmed.

A client library would take longer to fill the queue than the contenders take to empty it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pamqp import base, commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

CHANNEL = 1
CHUNK = 256 * 1024
HEADER = 7
"""Bytes of a frame before its payload: type, channel, length."""

TIMEOUT = 1800.0
"""Seconds until all messages must be confirmed."""

TICK = 0.01
"""Seconds between two writes of a steady stream."""

_PROPERTIES = commands.Basic.Properties(content_type="application/json", delivery_mode=2)


@dataclass(frozen=True, slots=True)
class Backlog:
    """Messages, encoded once and published as often as needed."""

    count: int
    frames: bytes


def marshal(exchange: str, messages: Iterable[tuple[str, bytes]]) -> Backlog:
    """Encode messages, each a routing key and a body, as frames that publish them to the exchange."""
    parts: list[bytes] = []
    count = 0
    for routing_key, body in messages:
        count += 1
        parts.append(frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key), CHANNEL))
        parts.append(frame.marshal(ContentHeader(body_size=len(body), properties=_PROPERTIES), CHANNEL))
        parts.append(frame.marshal(ContentBody(body), CHANNEL))
    return Backlog(count, b"".join(parts))


async def publish_steadily(
    amqp_url: str,
    exchange: str,
    messages: Iterator[tuple[str, bytes]],
    rate: int,
    on_sent: Callable[[int], None],
    *,
    tick: float = TICK,
) -> None:
    """Publish ``rate`` messages per second until none is left; call ``on_sent`` with the number sent so far.

    ``tick`` is the time in seconds between two writes.
    """
    async with _channel(amqp_url) as (reader, writer):
        confirming = asyncio.create_task(_confirmed(reader, None))
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        try:
            while True:
                due = int((loop.time() - began) * rate) - sent
                backlog = marshal(exchange, islice(messages, due))
                sent += backlog.count
                on_sent(sent)
                writer.write(backlog.frames)
                await writer.drain()
                if backlog.count < due or confirming.done():
                    break
                await asyncio.sleep(tick)
        finally:
            confirming.cancel()


async def publish(amqp_url: str, backlog: Backlog) -> None:
    """Publish the backlog and return when the broker has confirmed all of it."""
    async with asyncio.timeout(TIMEOUT), _channel(amqp_url) as (reader, writer):
        confirmed = asyncio.create_task(_confirmed(reader, backlog.count))
        for start in range(0, len(backlog.frames), CHUNK):
            writer.write(backlog.frames[start : start + CHUNK])
            await writer.drain()
        await confirmed


async def _confirmed(reader: _Frames, count: int | None) -> None:
    floor, above = 0, set[int]()
    while count is None or floor + len(above) < count:
        ack = await reader.next()
        if not isinstance(ack, commands.Basic.Ack):
            message = f"the broker did not confirm a backlog: {ack!r}"
            raise TypeError(message)
        if ack.multiple:
            floor = max(floor, ack.delivery_tag)
            above = {tag for tag in above if tag > floor}
        else:
            above.add(ack.delivery_tag)


class _Frames:
    """The frames received from a socket."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = b""

    async def next(self) -> object:
        while True:
            if len(self._buffer) >= HEADER:
                size = int.from_bytes(self._buffer[3:7]) + HEADER + 1
                if len(self._buffer) >= size:
                    _, _, unmarshalled = frame.unmarshal(self._buffer[:size])
                    self._buffer = self._buffer[size:]
                    return unmarshalled
            chunk = await self._reader.read(65536)
            if not chunk:
                message = "the broker closed the connection while a backlog was published"
                raise ConnectionError(message)
            self._buffer += chunk


@asynccontextmanager
async def _channel(amqp_url: str) -> AsyncIterator[tuple[_Frames, asyncio.StreamWriter]]:
    url = urlsplit(amqp_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 5672)
    frames = _Frames(reader)
    try:
        writer.write(ProtocolHeader(0, 9, 1).marshal())
        await frames.next()
        response = f"\0{unquote(url.username or 'guest')}\0{unquote(url.password or 'guest')}"
        _send(writer, commands.Connection.StartOk({}, "PLAIN", response, "en_US"), 0)
        tune = await frames.next()
        assert isinstance(tune, commands.Connection.Tune)
        _send(writer, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        _send(writer, commands.Connection.Open(unquote(url.path[1:]) or "/"), 0)
        await frames.next()
        for opening in (commands.Channel.Open(), commands.Confirm.Select()):
            _send(writer, opening, CHANNEL)
            await frames.next()
        yield frames, writer
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, method: base.Frame, channel: int) -> None:
    writer.write(frame.marshal(method, channel))
