"""The frame reader, compared with aiormq's own."""

from __future__ import annotations

import asyncio
import struct

import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, AMQPError
from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from taskherd.broker.delivery import RawDelivery
from taskherd.broker.patches.frame_reader import TAG_PREFIX, FrameReader


def _message(channel: int, tag: str, number: int, *parts: bytes) -> list[bytes]:
    deliver = commands.Basic.Deliver(tag, number, False, "an exchange", "a key")  # noqa: FBT003 - as pamqp has it
    properties = commands.Basic.Properties(headers={"a": "b"}, correlation_id="c")
    header = ContentHeader(body_size=sum(map(len, parts)), properties=properties)
    frames: list[Frame | ContentHeader | ContentBody] = [deliver, header, *map(ContentBody, parts)]
    return [frame.marshal(each, channel) for each in frames]


async def _read(*frames: bytes, chunk: int = 7) -> list[tuple[int, object]]:
    """Return what the reader makes of the frames if they arrive ``chunk`` bytes at a time."""
    reader = asyncio.StreamReader()
    wire = b"".join(frames)
    receiver = FrameReader(reader)
    results: list[tuple[int, object]] = []

    async def read_frames() -> None:
        while True:
            _, channel, result = await receiver.get_frame()
            results.append((channel, result))

    reading = asyncio.create_task(read_frames())
    for start in range(0, len(wire), chunk):
        reader.feed_data(wire[start : start + chunk])
        await asyncio.sleep(0)
    reader.feed_eof()
    with pytest.raises(AMQPConnectionError):
        await reading
    return results


async def test_deliveries_are_assembled_from_interleaved_frames() -> None:
    """A body in any number of frames, with frames of other channels in between, arrives as it was sent."""
    tag = f"{TAG_PREFIX}1"
    long = _message(1, tag, 7, b"one ", b"two ", b"three")
    results = await _read(
        *_message(1, tag, 5), *long[:3], *_message(2, tag, 1, b"other"), *long[3:], *_message(1, tag, 9, b"short")
    )
    deliveries = [(channel, result) for channel, result in results if isinstance(result, RawDelivery)]
    assert [(channel, result.delivery_tag, result.body) for channel, result in deliveries] == [
        (1, 5, b""),
        (2, 1, b"other"),
        (1, 7, b"one two three"),
        (1, 9, b"short"),
    ]
    for _, result in deliveries:
        assert (result.consumer_tag.decode(), result.exchange, result.routing_key) == (tag, "an exchange", "a key")
        assert (result.headers, result.correlation_id, result.reply_to) == ({"a": "b"}, "c", None)
        assert not result.redelivered


async def test_a_channel_close_discards_a_partial_delivery() -> None:
    """A delivery whose channel is closed before its last frame is discarded; the close is returned."""
    tag = f"{TAG_PREFIX}1"
    close = frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), 1)
    results = await _read(*_message(1, tag, 1, b"cut", b"off")[:3], close)
    assert [result for _, result in results if isinstance(result, RawDelivery)] == []
    assert isinstance(results[-1][1], commands.Channel.Close)


async def test_deliveries_to_other_consumer_tags_are_left_to_aiormq() -> None:
    """Deliveries to consumer tags without the prefix are returned frame by frame, decoded."""
    results = await _read(*_message(1, "ctag1.0", 1, b"body"))
    assert [type(result) for _, result in results] == [commands.Basic.Deliver, ContentHeader, ContentBody]


@pytest.mark.parametrize(
    "wire",
    [
        b"".join(_message(1, "ctag1.0", 1, b"one", b"two")) + frame.marshal(Heartbeat(), 0),
        frame.marshal(commands.Connection.Tune(2047, 131_072, 60), 0) + frame.marshal(commands.Channel.OpenOk(), 9),
        ProtocolHeader(0, 9, 1).marshal(),
        frame.marshal(commands.Channel.OpenOk(), 1)[:-1] + b"\x00",
        struct.pack(">BHI", 1, 1, 4) + b"\xff\xff\xff\xff\xce",
        struct.pack(">BHI", 7, 1, 1) + b"x\xce",
        frame.marshal(commands.Channel.OpenOk(), 1)[:5],
        b"",
    ],
    ids=["message", "methods", "protocol header", "end marker", "unknown method", "unknown type", "cut", "empty"],
)
async def test_other_frames_are_read_as_by_aiormq(wire: bytes) -> None:
    """For all frames except assembled deliveries, both readers return the same results and raise the same errors."""
    assert await _outcome(FrameReader, wire) == await _outcome(FrameReceiver, wire)


async def _outcome(kind: type[FrameReader | FrameReceiver], wire: bytes) -> list[object]:
    """Return every frame that a reader returns for ``wire``, and the type of the error at its end."""
    reader = asyncio.StreamReader()
    reader.feed_data(wire)
    reader.feed_eof()
    outcomes: list[object] = []
    try:
        async for size, channel, result in kind(reader):
            outcomes.append((size, channel, frame.marshal(result, channel)))
    except AMQPError as error:
        outcomes.append(type(error))
    else:  # aiormq raises nothing if the stream ended before the next frame was requested
        outcomes.append(AMQPConnectionError)
    return outcomes
