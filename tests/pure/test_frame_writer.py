"""Which messages are written together, and what becomes of their confirms; on a channel without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Returning

from taskherd.broker.patches import frame_writer
from taskherd.broker.patches.frame_writer import FrameWriter, LibraryWriter, encoded, next_message_id, properties_of
from taskherd.broker.publisher import OutgoingMessage
from tests.harness.buffers import until
from tests.library_versions import pretended

MESSAGE = OutgoingMessage("exchange", "key", b"body")


class Clock:
    """An event loop whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def time(self) -> float:
        """Return the time in seconds."""
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of the real loop."""
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, call: Callable[[], None]) -> Any:
        """Note what is to be called."""
        self.timers.append((when, call))
        return SimpleNamespace(cancel=self._cancel)

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        """Note what is to be called."""
        return self.call_at(self.now + delay, call)

    def _cancel(self) -> None:
        self.cancelled += 1

    def ring(self) -> None:
        """Let the time of the only timer come."""
        ((self.now, call),) = self.timers
        self.timers.clear()
        call()


class Channel:
    """A channel whose writes a test may hold back or fail."""

    def __init__(self) -> None:
        self.number = 3
        self.max_content_size = 4_096
        self.loop = Clock()
        self.lock = asyncio.Lock()
        self.delivery_tag = 0
        self.confirmations: dict[int, Any] = {}
        self.message_id_delivery_tag: dict[str, int] = {}
        self.closing = asyncio.get_running_loop().create_future()
        self.write_queue = self
        self.writes: list[ChannelFrame] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.failure: Exception | None = None
        self.published: list[tuple[bytes, dict[str, Any]]] = []

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future."""
        return self.loop.create_future()

    async def put(self, frame: ChannelFrame) -> None:
        """Write frames."""
        await self.may_write.wait()
        if self.failure is not None:
            raise self.failure
        assert self.lock.locked()
        self.writes.append(frame)

    async def basic_publish(self, body: bytes, **options: Any) -> None:
        """Publish a message with the library's own code."""
        await self.may_write.wait()
        self.published.append((body, options))


def on_channel(timeout: float = 60) -> tuple[FrameWriter, Channel]:
    """Return a writer to a channel, and the channel."""
    channel = Channel()
    return FrameWriter(channel, timeout), channel  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number the messages of a test from 0."""
    monkeypatch.setattr(frame_writer, "next_message_id", map("id {}".format, iter(range(1_000))).__next__)


def frames(number: int, message: OutgoingMessage = MESSAGE, user: str | None = "alice") -> bytes:
    """Return the frames of the message with this number."""
    return encoded(message, 3, 4_096, f"id {number}", user)


def plain(*payloads: bytes) -> ChannelFrame:
    """Return one write with these frames."""
    return ChannelFrame(b"".join(payloads), False)  # noqa: FBT003 - as aiormq has it


def test_no_two_messages_have_the_same_id() -> None:
    """It has the process's own part, and a number."""
    ids = [next_message_id() for _ in range(3)]
    assert len({each[:16] for each in ids}) == 1
    numbers = [int(each[16:], 16) for each in ids]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert {len(each) for each in ids} == {32}


async def test_what_comes_during_a_write_is_the_next_one() -> None:
    """What was given up before it is written is left out, and has no tag."""
    writer, channel = on_channel()
    channel.may_write.clear()
    first = writer.publish(MESSAGE, None)
    await until(channel.lock.locked)
    flushing = writer._flushing
    given_up, kept = writer.publish(MESSAGE, None), writer.publish(MESSAGE, None)
    given_up.cancel()
    assert channel.confirmations == {}, "only what was written counts"
    assert writer._flushing is flushing, "no other task writes at the same time"
    channel.may_write.set()
    await until(lambda: len(channel.writes) == 2)
    assert channel.writes == [plain(frames(0, user=None)), plain(frames(2, user=None))]
    assert (channel.confirmations, channel.delivery_tag) == ({1: first, 2: kept}, 2)
    writer.publish(MESSAGE, None).cancel()
    await until(lambda: writer._flushing is None)
    assert (len(channel.writes), writer._pending) == (2, [])


async def test_a_message_that_cannot_be_encoded_is_not_written() -> None:
    """Nor those that were to be written with it without confirms."""
    writer, channel = on_channel()
    bad = replace(MESSAGE, routing_key="k" * 256)
    with pytest.raises(ValueError, match="is longer than 255 bytes"):
        writer.publish(bad, None)
    with pytest.raises(ValueError, match="is longer than 255 bytes"):
        await writer.write([MESSAGE, bad])
    assert (channel.writes, writer._pending, writer._flushing) == ([], [], None)


async def test_messages_without_confirms_are_one_write_that_is_waited_for() -> None:
    """Until the socket has taken it."""
    writer, channel = on_channel()
    writing = asyncio.create_task(writer.write([MESSAGE, replace(MESSAGE, body=b"other")]))
    await until(lambda: channel.writes)
    (write,) = channel.writes
    other = frames(1, replace(MESSAGE, body=b"other"), None)
    assert (write.payload, write.should_close) == (frames(0, user=None) + other, False)
    assert (channel.lock.locked(), writing.done(), channel.confirmations) == (False, False, {})
    write.drain()
    await asyncio.wait_for(writing, 30)


async def test_a_confirm_that_is_missing_fails_in_time() -> None:
    """Those that were written at the same time together; one that came is kept, and one that comes later ignored."""
    writer, channel = on_channel(5)
    clock, confirms = channel.loop, []
    for number, at in enumerate((100.0, 100.1, 103.0)):
        clock.now = at
        confirms += [writer.publish(MESSAGE, None), writer.publish(MESSAGE, None)]
        await until(lambda number=number: len(channel.writes) == number + 1)  # type: ignore[misc]
    assert [when for when, _ in clock.timers] == [105]
    confirms[1].set_result(None)
    clock.ring()
    assert [each.done() for each in confirms] == [True, True, False, False, False, False]
    assert isinstance(confirms[0].exception(), TimeoutError)
    assert isinstance(channel.confirmations[1], Returning)
    assert channel.confirmations[2] is confirms[1]
    assert [when for when, _ in clock.timers] == [105.25], "not at once, for there may be many"
    clock.ring()
    assert [each.done() for each in confirms] == [True] * 4 + [False] * 2
    del channel.confirmations[5]  # aiormq forgets one that is confirmed
    confirms[4].set_result(None)
    assert [when for when, _ in clock.timers] == [108]
    clock.ring()
    assert [type(each.exception()) for each in confirms[4:]] == [type(None), TimeoutError]
    assert clock.timers == []
    writer.publish(MESSAGE, None)
    await until(lambda: len(channel.writes) == 4)
    assert [when for when, _ in clock.timers] == [113]
    channel.closing.cancel()
    await until(lambda: channel.confirmations == {})
    assert clock.cancelled == 1
    assert [type(each.exception()) for each in confirms[2:4]] == [TimeoutError] * 2


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_channel_that_ends_without_a_reason_was_lost(*, cancelled: bool) -> None:
    """Its missing confirms fail; what was confirmed stays so, and what timed out is left alone."""
    writer, channel = on_channel()
    confirmed, missing = writer.publish(MESSAGE, None), writer.publish(MESSAGE, None)
    await until(lambda: channel.writes)
    channel.confirmations[3] = late = Returning()
    confirmed.set_result(None)
    if cancelled:
        channel.closing.cancel()
    else:
        channel.closing.set_result(None)
    with pytest.raises(ConnectionError, match="the connection was lost"):
        await asyncio.wait_for(missing, 30)
    assert (confirmed.exception(), late.done(), channel.confirmations) == (None, False, {})


async def test_a_channel_may_close_before_anything_was_published() -> None:
    """No confirm is missing, and no timer runs: its end changes nothing."""
    writer, channel = on_channel()
    channel.closing.set_result(None)
    await asyncio.sleep(0)
    assert (channel.confirmations, writer._expiry, channel.loop.cancelled) == ({}, None, 0)


async def test_a_write_that_takes_too_long_fails() -> None:
    """As one does that the socket refuses."""
    writer, channel = on_channel(0.01)
    async with channel.lock:
        late = writer.publish(MESSAGE, None)
        await asyncio.wait({late}, timeout=30)
        assert isinstance(late.exception(), TimeoutError)
    assert channel.writes == []


async def test_a_write_that_fails_is_told_to_all_that_wait() -> None:
    """One that is cancelled is one, too; what is published later is written."""
    writer, channel = on_channel(60)
    channel.failure = ConnectionResetError("reset")
    failed = [writer.publish(MESSAGE, None), writer.publish(MESSAGE, None)]
    await until(lambda: all(each.done() for each in failed))
    assert [each.exception() for each in failed] == [channel.failure] * 2
    channel.failure = None
    channel.may_write.clear()
    stopped = writer.publish(MESSAGE, None)
    await until(channel.lock.locked)
    flushing = writer._flushing
    assert flushing is not None
    flushing.cancel()
    with pytest.raises(ConnectionError, match="the connection was lost"):
        await asyncio.wait_for(stopped, 30)
    channel.may_write.set()
    assert (flushing.cancelled(), channel.writes) == (True, [])
    last = writer.publish(MESSAGE, None)
    await until(lambda: channel.writes)
    assert (channel.confirmations, last.done()) == ({1: last}, False)


async def test_what_comes_after_a_failed_write_is_written() -> None:
    """Although nothing else is published then."""
    writer, channel = on_channel()
    channel.may_write.clear()
    channel.failure = ConnectionResetError("reset")
    failed = writer.publish(MESSAGE, None)
    await until(channel.lock.locked)

    def publish_again(_: object) -> None:
        channel.failure = None
        writer.publish(MESSAGE, None)

    failed.add_done_callback(publish_again)
    channel.may_write.set()
    await until(lambda: channel.writes)
    assert (failed.exception() is None, channel.writes) == (False, [plain(frames(1, user=None))])


def test_a_writer_is_that_of_the_library_outside_its_range() -> None:
    """Both are for one channel."""

    def kind() -> type:
        channel: Any = SimpleNamespace(closing=SimpleNamespace(add_done_callback=lambda _: None))
        return type(frame_writer.writer_of(channel, 5))

    with pretended("aiormq", "7.2.4"):
        assert kind() is FrameWriter
    with pretended("aiormq", "7.3.0"), pytest.warns(RuntimeWarning, match="aiormq"):
        assert kind() is LibraryWriter


async def test_the_library_publishes_the_same_messages() -> None:
    """The last of several without confirms is waited for."""
    channel = Channel()
    writer = LibraryWriter(channel, 60)  # type: ignore[arg-type]
    full = OutgoingMessage("e", "k", b"full", "text/plain", {"h": 1}, True, 1.5, "replies", "7")  # noqa: FBT003
    common = {"exchange": "exchange", "routing_key": "key", "mandatory": False}
    await writer.write([MESSAGE, replace(MESSAGE, body=b"last")])
    plain_properties = [properties_of(MESSAGE, None) for _ in range(3)]
    for number, properties in enumerate(plain_properties[:2]):
        properties.message_id = f"id {number}"
    first, last = plain_properties[:2]
    assert channel.published == [
        (b"body", {**common, "properties": first, "wait": False}),
        (b"last", {**common, "properties": last, "wait": True}),
    ]
    await writer.publish(full, "alice")
    body, options = channel.published[2]
    properties = options.pop("properties")
    message_id = properties.message_id
    assert (body, options) == (b"full", {"exchange": "e", "routing_key": "k", "mandatory": True, "wait": False})
    assert {name: value for name, value in properties if value} == {
        "content_type": "text/plain", "headers": {"h": 1}, "delivery_mode": 2, "correlation_id": "7",
        "reply_to": "replies", "expiration": "1500", "message_id": message_id, "user_id": "alice",
    }  # fmt: skip
    assert message_id not in {first.message_id, last.message_id, None}


async def test_the_library_confirms_too_late() -> None:
    """What is not confirmed in time fails, as with the own writer."""
    channel = Channel()
    channel.may_write.clear()
    writer = LibraryWriter(channel, 0.01)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.publish(MESSAGE, None), 30)


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(None, None), (0.0, "1"), (0.0014, "1"), (0.0016, "2"), (60.0, "60000")]
)
def test_a_message_expires_in_whole_milliseconds(seconds: float | None, milliseconds: str | None) -> None:
    """One at least: at 0 it would expire unless it is consumed at once."""
    assert properties_of(replace(MESSAGE, expiration=seconds), None).expiration == milliseconds
