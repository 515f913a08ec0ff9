"""The frame reader, compared with aiormq's own."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc

import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, AMQPError, InvalidFrameError
from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from taskherd.broker.delivery import MAX_BODY_BYTES, TRUNCATED_BYTES, RawDelivery
from taskherd.broker.patches.frame_reader import LIMITED_TAG_PREFIX, TAG_PREFIX, FrameReader


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
        *_message(1, tag, 5), *long[:3], *_message(2, tag, 1, b"other"), *long[3:], *_message(1, tag, 9, b"short"),
        *_message(1, tag, 10, b"two ", b"parts"), *_message(1, tag, 11, b"1"), *_message(1, tag, 12, b"", b"2"),
    )  # fmt: skip
    deliveries = [(channel, result) for channel, result in results if isinstance(result, RawDelivery)]
    assert [(channel, result.delivery_tag, result.body) for channel, result in deliveries] == [
        (1, 5, b""),
        (2, 1, b"other"),
        (1, 7, b"one two three"),
        (1, 9, b"short"),
        (1, 10, b"two parts"),
        (1, 11, b"1"),
        (1, 12, b"2"),
    ]
    for _, result in deliveries:
        assert (result.consumer_tag.decode(), result.exchange, result.routing_key) == (tag, "an exchange", "a key")
        assert (result.headers, result.correlation_id, result.reply_to) == ({"a": "b"}, "c", None)
        assert not result.redelivered


def _pieces(body: bytes, size: int) -> list[bytes]:
    """Return the body in pieces of ``size`` bytes, as a broker with this frame size sends it."""
    return [body[start : start + size] for start in range(0, len(body), size)]


@pytest.mark.parametrize("frame_size", [5000, TRUNCATED_BYTES - 1, TRUNCATED_BYTES, 131_064])
@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 3 * MAX_BODY_BYTES])
async def test_only_the_beginning_of_a_body_that_is_too_large_is_kept(size: int, frame_size: int) -> None:
    """One byte beyond the limit is too large. The message is complete otherwise, and the next one follows it."""
    body = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    tag = f"{LIMITED_TAG_PREFIX}1"
    results = await _read(
        *_message(1, tag, 5, *_pieces(body, frame_size)), *_message(1, tag, 6, b"next"), chunk=128 * 1024
    )
    too_large, following = (result for _, result in results if isinstance(result, RawDelivery))
    if size > MAX_BODY_BYTES:
        assert (too_large.body, too_large.original_length) == (body[:TRUNCATED_BYTES], size)
    else:
        assert (too_large.body, too_large.original_length) == (body, None)
    assert (too_large.delivery_tag, too_large.headers, too_large.routing_key) == (5, {"a": "b"}, "a key")
    assert (following.delivery_tag, following.body, following.original_length) == (6, b"next", None)


async def test_no_more_of_a_body_is_held_than_is_kept() -> None:
    """While a body that is too large arrives, the reader drops what is beyond its beginning."""
    frames = _message(1, f"{LIMITED_TAG_PREFIX}1", 1, *_pieces(bytes(4 * MAX_BODY_BYTES), 100_000))
    reader = asyncio.StreamReader()
    receiver = FrameReader(reader)
    for each in frames[:-1]:
        reader.feed_data(each)
    tracemalloc.start()
    try:
        for _ in frames[2:-1]:
            await receiver.get_frame()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < TRUNCATED_BYTES + 4 * 128 * 1024  # and what is read at once


async def test_bodies_for_other_consumers_are_not_truncated() -> None:
    """Only consumer tags that say so have limited bodies: a reply or a request of a runner may be larger."""
    body = bytes(2 * MAX_BODY_BYTES)
    results = await _read(*_message(1, f"{TAG_PREFIX}1", 5, *_pieces(body, 100_000)), chunk=128 * 1024)
    [delivery] = [result for _, result in results if isinstance(result, RawDelivery)]
    assert (delivery.body, delivery.original_length) == (body, None)


async def test_a_channel_close_discards_a_partial_delivery() -> None:
    """A delivery whose channel is closed before its last frame is discarded; its number may be used again."""
    tag = f"{TAG_PREFIX}1"
    close = frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), 1)
    results = await _read(*_message(1, tag, 1, b"cut", b"off")[:3], close, *_message(1, tag, 1, b"again"))
    (closed,) = [result for _, result in results if isinstance(result, commands.Channel.Close)]
    assert (closed.reply_code, closed.reply_text) == (404, "NOT_FOUND")
    assert [result.body for _, result in results if isinstance(result, RawDelivery)] == [b"again"]


async def test_deliveries_to_other_consumer_tags_are_left_to_aiormq() -> None:
    """Deliveries to consumer tags without the prefix are returned frame by frame, decoded."""
    results = await _read(*_message(1, "ctag1.0", 1, b"body"))
    assert [type(result) for _, result in results] == [commands.Basic.Deliver, ContentHeader, ContentBody]


_DELIVER = commands.Basic.Deliver(f"{TAG_PREFIX}1", 1, False, "e", "k")  # noqa: FBT003 - as pamqp has it
CONFIRMS = (
    commands.Basic.Ack(2**63 - 1, multiple=True),
    commands.Basic.Nack(8, multiple=True),
    commands.Basic.Ack(9, multiple=False),
    commands.Basic.Nack(10, multiple=False),
    commands.Basic.Reject(11),
)


@pytest.mark.parametrize(
    "wire",
    [
        b"".join(_message(1, "ctag1.0", 1, b"one", b"two")) + frame.marshal(Heartbeat(), 0),
        frame.marshal(commands.Connection.Tune(2047, 131_072, 60), 0) + frame.marshal(commands.Channel.OpenOk(), 9),
        b"".join(frame.marshal(each, 1) for each in CONFIRMS),
        b"".join(_message(1, "ctag1.0", 1, frame.marshal(commands.Basic.Ack(1), 1)[7:-1])),
        b"".join(_message(1, "ctag1.0", 1, frame.marshal(_DELIVER, 1)[7:-1])),
        frame.marshal(commands.Basic.ConsumeOk(f"{TAG_PREFIX}1"), 1) + frame.marshal(Heartbeat(), 0),
        ProtocolHeader(0, 9, 1).marshal(),
        frame.marshal(commands.Channel.OpenOk(), 1)[:-1] + b"\x00",
        struct.pack(">BHI", 1, 1, 4) + b"\xff\xff\xff\xff\xce",
        struct.pack(">BHI", 7, 1, 1) + b"x\xce",
        frame.marshal(commands.Channel.OpenOk(), 1)[:5],
        b"",
    ],
    ids=[
        "message",
        "methods",
        "confirms",
        "body like a confirm",
        "body like a delivery",
        "consumer",
        "protocol header",
        "end marker",
        "unknown method",
        "unknown type",
        "cut",
        "empty",
    ],
)
async def test_other_frames_are_read_as_by_aiormq(wire: bytes) -> None:
    """For all frames except assembled deliveries, both readers return the same results and raise the same errors."""
    assert await _outcome(FrameReader, wire) == await _outcome(FrameReceiver, wire)


async def test_a_frame_whose_arguments_are_cut_off_is_invalid() -> None:
    """The connection cannot go on after it: what comes next would be read from the wrong place."""
    for arguments in (struct.pack(">HH", 60, 21), commands.Basic.Ack.index.to_bytes(4) + b"\x00"):
        reader = asyncio.StreamReader()
        reader.feed_data(struct.pack(">BHI", 1, 1, len(arguments)) + arguments + b"\xce")
        with pytest.raises(InvalidFrameError):
            await FrameReader(reader).get_frame()


async def test_a_protocol_header_is_one_only_at_the_beginning() -> None:
    """Later, the bytes are the start of a frame of an unknown kind, as for aiormq."""
    for kind in (FrameReader, FrameReceiver):
        reader = asyncio.StreamReader()
        receiver = kind(reader)
        reader.feed_data(frame.marshal(Heartbeat(), 0))
        assert (await receiver.get_frame())[:2] == (8, 0)
        reader.feed_data(ProtocolHeader(0, 9, 1).marshal())
        reader.feed_eof()
        with pytest.raises(AMQPConnectionError, match="Server connection unexpectedly closed"):
            await receiver.get_frame()


async def test_a_socket_that_fails_is_a_lost_connection() -> None:
    """The error has the reason of the system."""
    reader = asyncio.StreamReader()
    reader.set_exception(ConnectionResetError("reset by peer"))
    with pytest.raises(AMQPConnectionError, match="reset by peer"):
        await FrameReader(reader).get_frame()


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
