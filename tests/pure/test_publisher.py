"""Publishing with confirms and without, when confirms are late, missing or refused; without a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd import retry
from taskherd.broker import publisher as publishers
from taskherd.broker import unconfirmed
from taskherd.broker.publisher import OutgoingMessage, Publisher, PublishOutcome, Unconfirmed
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.broker.unconfirmed import UnconfirmedPublisher
from taskherd.errors import Unavailable

MIB = 1024 * 1024


class Channel:
    """A channel that is open until it is closed."""

    is_closed = False

    async def close(self) -> None:
        """Close it."""
        self.is_closed = True


class Connection:
    """A connection without a broker, which opens channels unless it fails."""

    user = "alice"

    def __init__(self) -> None:
        self.drops = 0
        self.channels: list[Channel] = []
        self.confirms: list[bool] = []
        self.failure: Exception | None = None

    def drop(self) -> None:
        """Count it."""
        self.drops += 1

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel."""
        if self.failure is not None:
            raise self.failure
        self.confirms.append(confirms)
        self.channels.append(Channel())
        return self.channels[-1]


class Writer:
    """A writer whose messages are confirmed when a test says so."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.messages: list[OutgoingMessage] = []
        self.users: list[str | None] = []
        self.confirms: list[asyncio.Future[None]] = []
        self.writes: list[list[OutgoingMessage]] = []

    def publish(self, message: OutgoingMessage, user: str | None) -> asyncio.Future[None]:
        """Note a message, and return when it is confirmed."""
        if self.failure is not None:
            raise self.failure
        self.messages.append(message)
        self.users.append(user)
        self.confirms.append(asyncio.get_running_loop().create_future())
        return self.confirms[-1]

    async def write(self, messages: list[OutgoingMessage]) -> None:
        """Note messages that are not confirmed."""
        if self.failure is not None:
            raise self.failure
        self.writes.append(messages)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Return the writer of all channels."""
    made = Writer()
    for module in (publishers, unconfirmed):
        monkeypatch.setattr(module, "writer_of", lambda *_: made)
    return made


@pytest.fixture
def connection() -> Connection:
    """Return a connection without a broker."""
    return Connection()


def publisher_on(connection: Connection, **options: Any) -> Publisher:
    """Return a publisher on a connection."""
    return Publisher(connection, **options)  # type: ignore[arg-type]


def message(body: bytes = b"{}") -> OutgoingMessage:
    """Return a message with this body."""
    return OutgoingMessage("exchange", "key", body)


async def steps() -> None:
    """Let other tasks do what they can do now."""
    for _ in range(10):
        await asyncio.sleep(0)


RETURNED = PublishError(DeliveredMessage(Basic.Return(), ContentHeader(), b"", None), Basic.Ack())  # type: ignore[arg-type]
REFUSED = DeliveryError(None, Basic.Nack())


@pytest.mark.parametrize(
    ("confirm", "outcome", "drops"),
    [
        (None, PublishOutcome.CONFIRMED, 0),
        (RETURNED, PublishOutcome.UNROUTED, 0),
        (REFUSED, "Unconfirmed: publishing: the broker refused the message", 0),
        (TimeoutError(), "Unconfirmed: publishing: no answer in time", 1),
        (ConnectionResetError("reset"), "Unavailable: publishing: reset", 0),
        (asyncio.CancelledError(), "Unavailable: publishing: the connection was lost", 0),
    ],
)
async def test_what_becomes_of_a_message(
    writer: Writer, connection: Connection, confirm: BaseException | None, outcome: object, drops: int
) -> None:
    """Alone or among others; a connection that confirms nothing any more is dropped."""
    publisher = publisher_on(connection)
    sending = asyncio.create_task(publisher.send(message()))
    together = asyncio.create_task(publisher.publish_many([message(), message()]))
    await steps()
    for future in writer.confirms:
        if isinstance(confirm, asyncio.CancelledError):
            future.cancel()
        elif confirm is not None:
            future.set_exception(confirm)
        else:
            future.set_result(None)
    results: list[object] = [*await asyncio.gather(sending, return_exceptions=True), *await together]
    told = [each if isinstance(each, PublishOutcome) else f"{type(each).__name__}: {each}" for each in results]
    assert told == [outcome] * 3
    assert connection.drops == 3 * drops
    assert (len(connection.channels), connection.confirms) == (1, [True])
    assert publisher._slots._value == 256


async def test_a_message_is_published_as_it_is(writer: Writer, connection: Connection) -> None:
    """With the user of its connection, if that is wanted, also on a channel of its own."""
    publisher = publisher_on(connection, identified=True)
    prepared: list[object] = []

    async def prepare(channel: object) -> None:
        prepared.append(channel)

    own = publisher.on_own_channel(prepare)
    for each in (publisher, own, publisher_on(connection)):
        sending = asyncio.create_task(each.publish("exchange", "key", b"body"))
        await steps()
        writer.confirms[-1].set_result(None)
        assert await sending is PublishOutcome.CONFIRMED
    assert writer.messages == [message(b"body")] * 3
    assert not writer.messages[0].mandatory
    assert writer.users == ["alice", "alice", None]
    assert prepared == [connection.channels[1]]
    await own.close()
    await own.close()
    assert [channel.is_closed for channel in connection.channels] == [False, True, False]


async def test_all_that_a_message_may_have_is_published(writer: Writer, connection: Connection) -> None:
    """Each in its place."""
    publisher = publisher_on(connection)
    sending = asyncio.create_task(
        publisher.publish(
            "events", "task.created", b"body", headers={"h": 1}, content_type="text/plain", mandatory=True,
            expiration=1.5, reply_to="replies", correlation_id="7",
        )
    )  # fmt: skip
    await steps()
    writer.confirms[0].set_result(None)
    assert await sending is PublishOutcome.CONFIRMED
    assert writer.messages == [
        OutgoingMessage(
            exchange="events", routing_key="task.created", body=b"body", content_type="text/plain", headers={"h": 1},
            mandatory=True, expiration=1.5, reply_to="replies", correlation_id="7",
        )
    ]  # fmt: skip


async def test_a_channel_that_cannot_be_prepared_is_closed(writer: Writer, connection: Connection) -> None:
    """The next message opens another one."""
    problems = [Unavailable("no replies")]

    async def prepare(_: object) -> None:
        if problems:
            raise problems.pop()

    publisher = publisher_on(connection).on_own_channel(prepare)
    with pytest.raises(Unavailable, match="no replies"):
        await publisher.send(message())
    assert [channel.is_closed for channel in connection.channels] == [True]
    sending = asyncio.create_task(publisher.send(message()))
    await steps()
    writer.confirms[-1].set_result(None)
    assert await sending is PublishOutcome.CONFIRMED
    connection.channels[-1].is_closed = True
    again = asyncio.create_task(publisher.send(message()))
    await steps()
    assert len(connection.channels) == 3
    again.cancel()
    await asyncio.wait({again})


async def test_messages_are_sent_in_chunks(writer: Writer, connection: Connection) -> None:
    """Of up to 256 messages, or 8 MiB; a larger message is one by itself."""

    def sizes(*bodies: int) -> list[int]:
        return [len(chunk) for chunk in publishers._chunks([message(bytes(size)) for size in bodies])]

    assert sizes(*[1] * 600) == [256, 256, 88]
    assert sizes(*[1] * 512) == [256, 256]
    assert sizes() == []
    assert sizes(9 * MIB, 1) == [1, 1]
    assert sizes(4 * MIB, 4 * MIB, 1) == [2, 1]
    assert sizes(4 * MIB, 4 * MIB - 1, 1, 8 * MIB, 9 * MIB, 1) == [3, 1, 1, 1]
    publisher = publisher_on(connection)
    sending = asyncio.create_task(publisher.publish_many([message(b"%d" % number) for number in range(300)]))
    await steps()
    assert len(writer.messages) == 256
    for future in writer.confirms[:200]:
        future.set_result(None)
    await steps()
    assert len(writer.messages) == 256, "the first ones are not all confirmed"
    for future in writer.confirms[200:]:
        future.set_result(None)
    await steps()
    for future in writer.confirms[256:]:
        future.set_result(None)
    assert await sending == [PublishOutcome.CONFIRMED] * 300
    assert [each.body for each in writer.messages] == [b"%d" % number for number in range(300)]


async def test_as_many_messages_wait_for_their_confirm(writer: Writer, connection: Connection) -> None:
    """One that is started takes a slot, too, and is not started without one; each gives it back at its end."""
    publisher = publisher_on(connection)
    failed: list[int] = []
    assert not await publisher.start(message(), lambda: failed.append(-1)), "there is no channel yet"
    sending = asyncio.create_task(publisher.publish_many([message()] * 254))
    await steps()
    for number in range(2):
        assert await publisher.start(message(), lambda number=number: failed.append(number))  # type: ignore[misc]
    assert not await publisher.start(message(), lambda: failed.append(-1)), "there is no slot"
    waiting = asyncio.create_task(publisher.send(message()))
    many = asyncio.create_task(publisher.publish_many([message()] * 3))
    await steps()
    assert len(writer.messages) == 256
    many.cancel()
    writer.confirms[254].set_result(None)
    writer.confirms[255].set_exception(ConnectionResetError("reset"))
    await steps()
    assert failed == [1]
    for future in writer.confirms:
        if not future.done():
            future.set_result(None)
    await steps()
    if not writer.confirms[-1].done():
        writer.confirms[-1].set_result(None)
    assert (await sending, await waiting) == ([PublishOutcome.CONFIRMED] * 254, PublishOutcome.CONFIRMED)
    assert many.cancelled()
    assert publisher._slots._value == 256


async def test_a_message_that_cannot_be_written_leaves_no_slot_taken(writer: Writer, connection: Connection) -> None:
    """Alone, started, or among others; those before it are given up with it."""
    publisher = publisher_on(connection)
    await publisher._open_writer()
    writer.failure = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await publisher.send(message())
    with pytest.raises(ValueError, match="a bug"):
        await publisher.start(message(), lambda: None)
    with pytest.raises(ValueError, match="a bug"):
        await publisher.publish_many([message()] * 3)
    connection.channels[0].is_closed = True
    assert not await publisher.start(message(), lambda: None)
    connection.failure = Unavailable("no broker")
    outcomes = await publisher.publish_many([message()] * 3)
    assert [str(outcome) for outcome in outcomes] == ["no broker"] * 3
    assert publisher._slots._value == 256


async def test_messages_that_nobody_waits_for_any_more_are_given_up(writer: Writer, connection: Connection) -> None:
    """Their slots are free again."""
    publisher = publisher_on(connection)
    sending = asyncio.create_task(publisher.publish_many([message()] * 3))
    await steps()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await steps()
    assert [future.cancelled() for future in writer.confirms] == [True] * 3
    assert publisher._slots._value == 256
    first = asyncio.create_task(publisher.publish_many([message()] * 255))
    await steps()
    second = asyncio.create_task(publisher.publish_many([message()] * 3))
    await steps()
    assert publisher._slots._value == 0, "the second has one of three"
    second.cancel()
    await steps()
    assert publisher._slots._value == 1
    first.cancel()
    await asyncio.wait({first, second})
    await steps()
    assert publisher._slots._value == 256


async def test_a_connection_that_confirms_others_is_kept_for_a_time(writer: Writer, connection: Connection) -> None:
    """Until 100 confirms are missing since its channel was opened; messages that were started count, too."""
    publisher = publisher_on(connection)
    await publisher._open_writer()
    confirms = publisher._confirms
    began = asyncio.get_running_loop().time()
    confirms.latest_at = began
    for missing in range(1, 101):
        publisher._drop_if_stuck(began)
        assert (confirms.missing, connection.drops) == (missing, int(missing == 100))
    connection.channels[0].is_closed = True
    await publisher._open_writer()
    assert confirms.missing == 0
    publisher._drop_if_stuck(began)
    assert connection.drops == 1
    publisher._drop_if_stuck(began + 1)
    assert connection.drops == 2
    assert await publisher.start(message(), lambda: None)
    writer.confirms[-1].set_exception(TimeoutError())
    await steps()
    assert (confirms.missing, connection.drops) == (3, 3)


async def test_when_a_confirm_came_last() -> None:
    """Also one that refuses a message, or says that it was returned; not one that is missing."""
    loop = asyncio.get_running_loop()
    for outcome, counts in (
        (None, True),
        (RETURNED, True),
        (REFUSED, isinstance(REFUSED, PublishError)),
        (TimeoutError(), False),
        (asyncio.CancelledError(), False),
    ):
        confirms = publishers._Confirms()
        assert (confirms.latest_at, confirms.missing) == (0, 0)
        future: asyncio.Future[Any] = loop.create_future()
        if isinstance(outcome, asyncio.CancelledError):
            future.cancel()
        elif outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)
        confirms.note(future)
        assert (confirms.latest_at > 0) is counts
        if not future.cancelled():
            future.exception()


async def test_what_may_be_lost_waits_within_bounds(writer: Writer, connection: Connection) -> None:
    """The latest messages, and up to 32 MiB of them; they are sent together, up to a hundred at a time."""
    publisher = UnconfirmedPublisher(connection, max_waiting=3)  # type: ignore[arg-type]
    for size in (1, 2, 3, 4):
        publisher.offer(message(bytes(size)))
    assert [len(each.body) for each in publisher._waiting] == [2, 3, 4]
    publisher.offer(message(bytes(32 * MIB - 7)))
    assert [len(each.body) for each in publisher._waiting] == [3, 4, 32 * MIB - 7]
    publisher.offer(message(b"x" * 3))
    assert [len(each.body) for each in publisher._waiting] == [4, 32 * MIB - 7, 3], "that is all"
    publisher.offer(message(bytes(7)))
    assert [len(each.body) for each in publisher._waiting] == [3, 7]
    many = UnconfirmedPublisher(connection)  # type: ignore[arg-type]
    for number in range(1_001):
        many.offer(message(b"%d" % number))
    many.stop()
    async with asyncio.timeout(20):
        await many.run()
    assert [len(write) for write in writer.writes] == [100] * 10
    assert writer.writes[0][0].body == b"1"
    assert connection.confirms == [False]


async def test_what_cannot_be_written_is_lost_and_told(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was to be written together; a channel that was lost is replaced. Waits grow with failures in a row."""
    waits: list[int] = []

    def wait(failures: int) -> float:
        waits.append(failures)
        return 0

    monkeypatch.setattr(retry, "delay", wait)
    told: list[str] = []
    publisher = UnconfirmedPublisher(connection, told.append)  # type: ignore[arg-type]
    running = asyncio.create_task(publisher.run())
    writer.failure = ConnectionResetError("reset")
    for number in range(2):
        publisher.offer(message(b"%d" % number))
        await steps()
    assert told == ["publishing without a confirm: reset"] * 2
    writer.failure = None
    publisher.offer(message(b"2"))
    await steps()
    writer.failure = TimeoutError()
    connection.channels[0].is_closed = True
    publisher.offer(message(b"3"))
    await steps()
    assert told[2:] == ["publishing without a confirm: no answer in time"]
    assert waits == [1, 2, 1]
    assert len(connection.channels) == 2
    publisher.stop()
    async with asyncio.timeout(20):
        await running
    assert [[each.body for each in write] for write in writer.writes] == [[b"2"]]


async def test_messages_that_are_sent_at_the_same_time_open_one_channel(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after it was lost; a publisher that was closed starts nothing, but opens another one when it has to send."""
    opened = connection.channel

    async def open_slowly(*, confirms: bool = False) -> Channel:
        await asyncio.sleep(0)
        return await opened(confirms=confirms)

    monkeypatch.setattr(connection, "channel", open_slowly)
    publisher = publisher_on(connection)
    for number in (1, 2):
        sending = [asyncio.create_task(publisher.send(message(b"%d" % each))) for each in range(3)]
        await steps()
        assert len(connection.channels) == number
        for confirm in writer.confirms[-3:]:
            confirm.set_result(None)
        assert await asyncio.gather(*sending) == [PublishOutcome.CONFIRMED] * 3
        connection.channels[-1].is_closed = True
    await publisher.close()
    assert not await publisher.start(message(b"started"), lambda: None)
    last = asyncio.create_task(publisher.send(message(b"last")))
    await steps()
    writer.confirms[-1].set_result(None)
    assert await last is PublishOutcome.CONFIRMED
    assert len(connection.channels) == 3


async def test_each_failure_to_connect_costs_the_oldest_message(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is sent once there is a connection; when stopping, one failure costs all."""
    waits: list[int] = []

    def delay(failures: int) -> float:
        waits.append(failures)
        connection.failure = Unavailable("still no broker") if failures == 1 else None
        return 0

    monkeypatch.setattr(retry, "delay", delay)
    connection.failure = Unavailable("no broker")
    told: list[str] = []
    publisher = UnconfirmedPublisher(connection, told.append)  # type: ignore[arg-type]
    for number in range(5):
        publisher.offer(message(b"%d" % number))
    running = asyncio.create_task(publisher.run())
    for _ in range(5):
        await steps()
    assert (told, waits) == (["no broker", "still no broker"], [1, 2])
    assert [[each.body for each in write] for write in writer.writes] == [[b"2", b"3", b"4"]]
    assert publisher._bytes == 0
    connection.channels[0].is_closed = True
    connection.failure = Unavailable("no broker again")
    for number in range(5, 8):
        publisher.offer(message(b"%d" % number))
    publisher.stop()
    async with asyncio.timeout(20):
        await running
    assert (told[2:], publisher._bytes, len(writer.writes)) == (["no broker again"], 0, 1)


async def test_a_connection_that_takes_nothing_is_dropped(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is lost is not: that is known already."""
    monkeypatch.setattr(retry, "delay", lambda _: 0)
    told: list[str] = []
    publisher = UnconfirmedPublisher(connection, told.append)  # type: ignore[arg-type]
    running = asyncio.create_task(publisher.run())
    for number, (failure, drops) in enumerate([(ConnectionResetError("reset"), 0), (TimeoutError(), 1)]):
        writer.failure = failure
        publisher.offer(message(b"%d" % number))
        await steps()
        await steps()
        assert (len(told), connection.drops) == (number + 1, drops)
    publisher.stop()
    async with asyncio.timeout(20):
        await running


class SlowConnection(Connection):
    """A connection that opens each channel when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.openings: list[asyncio.Future[None]] = []

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel."""
        self.openings.append(asyncio.get_running_loop().create_future())
        await self.openings[-1]
        return await super().channel(confirms=confirms)


async def test_all_wait_for_the_same_channel(writer: Writer) -> None:
    """They share its opening, or the reason why there is none; one that leaves meanwhile changes nothing for others."""
    connection = SlowConnection()
    publisher = publisher_on(connection)
    sending = [asyncio.create_task(publisher.send(message())) for _ in range(20)]
    many = asyncio.create_task(publisher.publish_many([message()] * 600))
    await steps()
    sending[0].cancel()
    await steps()
    assert sending[0].cancelled()
    assert len(connection.openings) == 1
    connection.openings[0].set_exception(Unavailable("no broker"))
    outcomes = await asyncio.gather(*sending[1:], return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no broker"] * 19
    await steps()
    assert len(connection.openings) == 2, "the messages together had to wait for slots, and try it once more"
    connection.openings[1].set_exception(Unavailable("still no broker"))
    assert [str(outcome) for outcome in await many] == ["still no broker"] * 600
    assert len(connection.openings) == 2, "of 600, the others would only wait as long, too"
    assert publisher._slots._value == 256
    again = [asyncio.create_task(publisher.send(message())) for _ in range(3)]
    await steps()
    connection.openings[2].set_result(None)
    await steps()
    for confirm in writer.confirms:
        confirm.set_result(None)
    assert await asyncio.gather(*again) == [PublishOutcome.CONFIRMED] * 3
    assert len(connection.channels) == 1


async def test_nothing_opens_a_channel_that_nobody_waits_for(writer: Writer) -> None:
    """When the last one has left, or the publisher is closed, which refuses those who wait."""
    connection = SlowConnection()
    publisher = publisher_on(connection)
    leaving = asyncio.create_task(publisher.send(message()))
    await steps()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert (leaving.cancelled(), connection.openings[0].cancelled()) == (True, True)
    waiting = asyncio.create_task(publisher.send(message()))
    await steps()
    await publisher.close()
    assert connection.openings[1].cancelled()
    with pytest.raises(Unavailable, match=r"^opening a channel: cancelled$"):
        await waiting
    assert (publisher._slots._value, connection.channels, writer.messages) == (256, [], [])


@pytest.mark.parametrize(("count", "seconds"), [(1, 0.05), (3, 0.1)])
async def test_a_slot_is_waited_for_within_bounds(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch, count: int, seconds: float
) -> None:
    """As long as a request may take, or twice as long for several; they stay with those who have them."""
    monkeypatch.setattr(publishers, "REQUEST_TIMEOUT", 0.05)
    publisher = publisher_on(connection)
    stuck = asyncio.create_task(publisher.publish_many([message()] * 255))
    await steps()
    kept = [] if count > 1 else [asyncio.create_task(publisher.send(message()))]
    await steps()
    loop = asyncio.get_running_loop()
    began = loop.time()
    if count == 1:
        with pytest.raises(Unconfirmed) as raised:
            await publisher.send(message())
        reasons = [raised.value]
    else:
        outcomes = await publisher.publish_many([message()] * count)
        reasons = [outcome for outcome in outcomes if isinstance(outcome, Unconfirmed)]
    assert loop.time() - began >= 0.9 * seconds
    assert [str(reason) for reason in reasons] == [
        "publishing: 256 messages before it were not confirmed in time"
    ] * count
    assert publisher._slots._value == 256 - 255 - len(kept)
    for confirm in writer.confirms:
        confirm.set_result(None)
    assert await asyncio.gather(*kept) == [PublishOutcome.CONFIRMED] * len(kept)
    assert await stuck == [PublishOutcome.CONFIRMED] * 255
    assert publisher._slots._value == 256


@pytest.mark.parametrize("together", [False, True])
async def test_a_slot_is_taken_at_once_if_one_is_free(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    """Also the last ones; then there is nothing to wait for, and no timeout."""
    monkeypatch.setattr(publishers, "_waiting_for_slots", None)
    publisher = publisher_on(connection)
    for _ in range(253):
        await publisher._slots.acquire()
    tasks: list[asyncio.Task[Any]] = (
        [asyncio.create_task(publisher.publish_many([message()] * 3))]
        if together
        else [asyncio.create_task(publisher.send(message())) for _ in range(3)]
    )
    await steps()
    assert (len(writer.messages), publisher._slots._value) == (3, 0)
    for confirm in writer.confirms:
        confirm.set_result(None)
    await asyncio.gather(*tasks)
    assert publisher._slots._value == 3


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("first", ["slot", "timeout", "both leave"])
async def test_no_slot_is_lost_to_who_gives_up(
    writer: Writer, connection: Connection, monkeypatch: pytest.MonkeyPatch, first: str, *, together: bool
) -> None:
    """Whose time is over in the very moment in which a slot becomes free, before or after that, or who is cancelled."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    publisher = publisher_on(connection)
    for _ in range(256):
        await publisher._slots.acquire()
    limit = (2 if together else 1) * REQUEST_TIMEOUT
    if first != "timeout":
        loop.call_at(now + limit, publisher._slots.release)
    sending: asyncio.Task[Any] = asyncio.create_task(
        publisher.publish_many([message()]) if together else publisher.send(message())
    )
    await steps()
    if first == "timeout":
        loop.call_at(now + limit, publisher._slots.release)
    elif first == "both leave":
        loop.call_at(now + limit, sending.cancel)
    now += limit
    await asyncio.wait({sending})
    if first == "both leave":
        assert sending.cancelled()
    elif together:
        assert [type(outcome) for outcome in sending.result()] == [Unconfirmed]
    else:
        assert isinstance(sending.exception(), Unconfirmed)
    assert (publisher._slots._value, writer.messages) == (1, [])
