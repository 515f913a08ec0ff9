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
    said: list[Frame | ContentHeader | ContentBody] = [deliver, header, *map(ContentBody, parts)]
    return [frame.marshal(each, channel) for each in said]


async def _read(*frames: bytes, chunk: int = 7) -> list[tuple[int, object]]:
    """What comes of the frames when the socket gives a few bytes at a time."""
    reader = asyncio.StreamReader()
    wire = b"".join(frames)
    receiver = FrameReader(reader)
    found: list[tuple[int, object]] = []

    async def take() -> None:
        while True:
            _, channel, said = await receiver.get_frame()
            found.append((channel, said))

    taking = asyncio.create_task(take())
    for start in range(0, len(wire), chunk):
        reader.feed_data(wire[start : start + chunk])
        await asyncio.sleep(0)
    reader.feed_eof()
    with pytest.raises(AMQPConnectionError):
        await taking
    return found


async def test_deliveries_are_put_together_whatever_lies_between_their_frames() -> None:
    """A body in no, one or several frames, and with other channels' frames between them, comes as it was sent."""
    tag = f"{TAG_PREFIX}1"
    long = _message(1, tag, 7, b"one ", b"two ", b"three")
    found = await _read(
        *_message(1, tag, 5), *long[:3], *_message(2, tag, 1, b"other"), *long[3:], *_message(1, tag, 9, b"short")
    )
    whole = [(channel, said) for channel, said in found if isinstance(said, RawDelivery)]
    assert [(channel, said.delivery_tag, said.body) for channel, said in whole] == [
        (1, 5, b""),
        (2, 1, b"other"),
        (1, 7, b"one two three"),
        (1, 9, b"short"),
    ]
    for _, said in whole:
        assert (said.consumer_tag.decode(), said.exchange, said.routing_key) == (tag, "an exchange", "a key")
        assert (said.headers, said.correlation_id, said.reply_to) == ({"a": "b"}, "c", None)
        assert not said.redelivered


async def test_a_close_in_the_middle_of_a_delivery_ends_it() -> None:
    """The rest of a message whose channel is closed never comes; the close does."""
    tag = f"{TAG_PREFIX}1"
    close = frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), 1)
    found = await _read(*_message(1, tag, 1, b"cut", b"off")[:3], close)
    assert [said for _, said in found if isinstance(said, RawDelivery)] == []
    assert isinstance(found[-1][1], commands.Channel.Close)


async def test_deliveries_of_others_are_left_to_aiormq() -> None:
    """Only our consumer tags are put together; other frames come one by one, decoded."""
    found = await _read(*_message(1, "ctag1.0", 1, b"body"))
    assert [type(said) for _, said in found] == [commands.Basic.Deliver, ContentHeader, ContentBody]


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
async def test_frames_come_out_as_aiormq_reads_them(wire: bytes) -> None:
    """For every frame but those of our deliveries, our reader gives what aiormq's gives and fails as it fails."""
    assert await _outcome(FrameReader, wire) == await _outcome(FrameReceiver, wire)


async def _outcome(kind: type[FrameReader | FrameReceiver], wire: bytes) -> list[object]:
    """Every frame that a reader returns for ``wire``, and the type of the error that ends it."""
    reader = asyncio.StreamReader()
    reader.feed_data(wire)
    reader.feed_eof()
    outcomes: list[object] = []
    try:
        async for size, channel, said in kind(reader):
            outcomes.append((size, channel, frame.marshal(said, channel)))
    except AMQPError as error:
        outcomes.append(type(error))
    else:  # aiormq ends without an error where the stream had ended before it was asked for the next frame
        outcomes.append(AMQPConnectionError)
    return outcomes
