"""A supervised connection from its start to its close: what it connects to, opens and tells; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aio_pika.connection import make_url
from aiormq.channel import Channel

from taskherd import retry
from taskherd.broker import connection as connections
from taskherd.broker import requests
from taskherd.broker.connection import ConnectionHooks, Socket, SupervisedConnection, open_connection
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.endpoints import Endpoint, Host
from taskherd.errors import Unavailable
from tests.harness.buffers import until
from tests.harness.contexts import Waits

ONE = "amqp://alice:secret@127.0.0.1:1/v"
TWO = "amqp://alice:secret@127.0.0.1:1,127.0.0.2:2/v"


class Opened(Channel):
    """A channel that counts how often it is closed."""

    def __init__(self) -> None:
        self.closes = 0
        self.failure: Exception | None = None

    async def close(self, *_: object, **__: object) -> None:
        """Close it."""
        self.closes += 1
        if self.failure is not None:
            raise self.failure


class Network:
    """Brokers that accept connections or not, as a test says, and what happens on these."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.made: list[Made] = []
        self.refusals: list[Exception] = []
        """What becomes of the next attempts to connect."""
        self.is_hung = False
        self.closes_answered = True

    def connect(self, url: Any, **options: Any) -> Made:
        """Return a connection, unconnected."""
        self.made.append(Made(self, url, options))
        return self.made[-1]

    def take(self) -> list[str]:
        """Return what happened since the last call."""
        events, self.events = self.events, []
        return events


class Made:
    """A connection of aio-pika, with one transport below."""

    def __init__(self, network: Network, url: Any, options: dict[str, Any]) -> None:
        self.network = network
        self.url = url
        self.options = options
        self.kwargs: dict[str, Any] = {}
        self.is_closed = False
        self.closing = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self.channels: list[Opened] = []
        self.flags: list[dict[str, bool]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: Exception | None = None

    async def connect(self) -> None:
        """Connect, or not."""
        self.network.events.append(f"connect to {self.url.host}")
        socket: Socket = self.kwargs["transport_factory"]
        transport = SimpleNamespace(abort=lambda: self.network.events.append(f"abort {self.url.host}"))
        socket._writer = SimpleNamespace(transport=transport)  # type: ignore[assignment]
        if self.network.refusals:
            raise self.network.refusals.pop(0)
        if self.network.is_hung:
            await asyncio.Event().wait()
        self.transport = SimpleNamespace(connection=self)

    async def ready(self) -> None:
        """Wait until it answers."""
        await self.answers.wait()

    async def channel(self, **flags: bool) -> Opened:
        """Open a channel."""
        self.flags.append(flags)
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        self.channels.append(Opened())
        return self.channels[-1]

    async def close(self) -> None:
        """Close it, once that is answered."""
        self.network.events.append(f"close {self.url.host}")
        if not self.network.closes_answered:
            self.network.closes_answered = True
            await asyncio.Event().wait()
        self.is_closed = True


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Return brokers that accept all connections."""
    made = Network()
    monkeypatch.setattr(connections, "Connection", made.connect)
    return made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Return the waits between attempts, which take no time."""
    made = Waits()
    monkeypatch.setattr(retry, "delay", made.delay)
    return made


Connect = Callable[..., SupervisedConnection]


@pytest.fixture
async def connect(network: Network) -> AsyncIterator[Connect]:
    """Yield a function that starts a connection whose hooks are noted; it is closed at the end."""
    started: list[SupervisedConnection] = []

    def start(url: str = ONE) -> SupervisedConnection:
        def note(event: str) -> None:
            network.events.append(event)

        hooks = ConnectionHooks(
            on_up=lambda name: note(f"{name} up"),
            on_down=lambda name, reason: note(f"{name} down: {reason}"),
            on_refused=lambda name, reason: note(f"{name} refused: {reason}"),
        )
        started.append(SupervisedConnection(url, "test", hooks))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        await each.close()


async def test_a_connection_says_who_it_is(network: Network, connect: Connect) -> None:
    """It is made once, for the host of its URL, with heartbeats; a close waits for the broker, and then ends it."""
    connection = connect()
    connection.start()
    assert (connection.is_started, connection.is_up) == (True, False)
    await connection.wait_up()
    await connection.wait_tried()
    (made,) = network.made
    assert made.url == make_url("amqp://alice:secret@127.0.0.1:1/v?heartbeat=10")
    assert made.options == {"client_properties": {"connection_name": "taskherd test"}}
    assert made.kwargs["transport_factory"].endpoint == Endpoint(Host("127.0.0.1", 1), "127.0.0.1")
    assert (connection.is_started, connection.is_up) == (True, True)
    assert network.take() == ["connect to 127.0.0.1", "test up"]
    await connection.close()
    assert (connection.is_started, connection.is_up) == (False, False)
    assert network.take() == ["close 127.0.0.1", "abort 127.0.0.1"]
    await connection.close()
    connection.drop()
    assert network.take() == []
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\)$"):
        await connection.wait_up(0.01)


async def test_a_close_does_not_wait_for_a_broker_that_hangs(
    network: Network, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is aborted then, and closed for the library."""
    monkeypatch.setattr(connections, "_CLOSE_TIMEOUT", 0.01)
    connection = connect()
    await connection.wait_up()
    network.closes_answered = False
    network.take()
    await asyncio.wait_for(connection.close(), 30)
    assert network.take() == ["close 127.0.0.1", "abort 127.0.0.1", "close 127.0.0.1"]


async def test_a_lost_connection_is_made_again_at_another_host(
    network: Network, connect: Connect, waits: Waits
) -> None:
    """It is aborted, before the next attempt; who asks meanwhile is told that there is none."""
    connection = connect(TWO)
    await connection.wait_up()
    network.take()
    network.refusals = [ConnectionRefusedError("refused"), OSError("no route")]
    network.made[0].closing.set_exception(ConnectionResetError("reset by peer"))
    await until(lambda: connection.is_up and len(network.made) == 4)
    assert network.take() == [
        "test down: reset by peer", "abort 127.0.0.1", "close 127.0.0.1", "abort 127.0.0.1",
        "connect to 127.0.0.2", "abort 127.0.0.2", "abort 127.0.0.2", "close 127.0.0.2", "abort 127.0.0.2",
        "connect to 127.0.0.1", "abort 127.0.0.1", "abort 127.0.0.1", "close 127.0.0.1", "abort 127.0.0.1",
        "test refused: 127.0.0.2:2: refused; 127.0.0.1:1: no route",
        "connect to 127.0.0.2", "test up",
    ]  # fmt: skip
    assert waits.after == [1, 2]
    assert all(made.is_closed for made in network.made[:3])


async def test_who_waits_is_told_why_no_host_can_be_reached(network: Network, connect: Connect, waits: Waits) -> None:
    """The latest reason counts, and none any more once there was a connection."""
    network.refusals = [ConnectionRefusedError("refused"), OSError("no route")]
    connection = connect()
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\): 127\.0\.0\.1:1: refused$"):
        await connection.wait_tried()
    await connection.wait_up()
    assert waits.after == [1, 2]
    assert str(connection._unreachable()) == "RabbitMQ can't be reached (test)"


async def test_who_waits_for_a_try_of_all_hosts_waits_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are still to be tried."""
    loop = asyncio.get_running_loop()
    now, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + passed)
    waiting = asyncio.create_task(SupervisedConnection(ONE, "test").wait_tried())
    await asyncio.sleep(0)
    for seconds, is_over in ((20.0, False), (30.1, True)):
        passed = seconds
        for _ in range(10):
            await asyncio.sleep(0)
        assert waiting.done() is is_over
    with pytest.raises(Unavailable, match="RabbitMQ can't be reached"):
        await waiting


async def test_losses_in_a_row_are_those_of_short_connections(
    network: Network, connect: Connect, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lasted twice as long as a request may take ends the row."""
    loop = asyncio.get_running_loop()
    now, passed = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + passed)
    connection = connect()
    for number, (lasted, after) in enumerate(
        [(0.0, 1), (0.0, 2), (2 * REQUEST_TIMEOUT - 3, 3), (2 * REQUEST_TIMEOUT + 0.1, 0), (0.0, 1)], start=1
    ):
        await until(lambda number=number: connection.is_up and len(network.made) == number)  # type: ignore[misc]
        passed += lasted
        network.made[-1].closing.set_result(None)
        await until(lambda number=number: len(waits.after) == number)  # type: ignore[misc]
        assert waits.after[-1] == after
    assert "test down: closed" in network.events


async def test_channels_are_opened_as_they_are_wanted(network: Network, connect: Connect) -> None:
    """With confirms a returned message is an error; neither is so without."""
    connection = connect()
    channels = [await connection.channel(), await connection.channel(confirms=True)]
    (made,) = network.made
    assert channels == made.channels
    assert made.flags == [
        {"publisher_confirms": False, "on_return_raises": False},
        {"publisher_confirms": True, "on_return_raises": True},
    ]
    made.failure = ConnectionResetError("reset")
    network.take()
    with pytest.raises(Unavailable, match=r"^opening a channel: reset$"):
        await connection.channel()
    made.transport = None
    with pytest.raises(Unavailable, match=r"^opening a channel: the connection is closed$"):
        await connection.channel()
    assert network.take() == []
    connection._connection = None
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached"):
        await connection.channel()


async def test_a_connection_that_opens_no_channel_is_dropped(
    network: Network, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it was replaced meanwhile."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.05)
    connection = connect()
    await connection.wait_up(30)
    (made,) = network.made
    network.take()
    made.answers.clear()
    with pytest.raises(Unavailable, match=r"^opening a channel: no answer in time$"):
        await connection.channel()
    assert network.take() == ["abort 127.0.0.1"]
    opening = asyncio.create_task(connection.channel())
    await asyncio.sleep(0)
    other: Any = object()
    connection._connection = other
    with pytest.raises(Unavailable, match="no answer in time"):
        await opening
    assert network.take() == []
    connection._connection = made  # type: ignore[assignment]


async def test_a_channel_that_is_opened_too_late_is_closed(network: Network, connect: Connect) -> None:
    """Whoever asked for it was cancelled; the connection is kept."""
    connection = connect()
    await connection.wait_up()
    (made,) = network.made
    made.answers.clear()
    network.take()
    opening = asyncio.create_task(connection.channel())
    await until(lambda: opening.done() or connection.is_up)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert made.channels == []
    made.answers.set()
    await until(lambda: made.channels and made.channels[0].closes)
    assert ([channel.closes for channel in made.channels], network.take()) == ([1], [])
    await until(lambda: not requests._background)


async def test_temporary_channels_are_all_closed(network: Network, connect: Connect) -> None:
    """After the block, also if it fails, or one of them cannot be opened."""
    connection = connect()
    async with connection.temporary_channel() as channel:
        made = network.made[0]
        assert made.channels == [channel]
        assert made.channels[0].closes == 0
    assert made.channels[0].closes == 1
    made.channels.clear()

    async def fail() -> None:
        async with connection.temporary_channels(3) as channels:
            assert channels == made.channels
            made.channels[0].failure = ConnectionResetError("reset")
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await fail()
    assert [each.closes for each in made.channels] == [1, 1, 1]
    made.channels.clear()
    open_channel = connection.channel

    async def open_two() -> Channel:
        if len(made.channels) == 2:
            raise Unavailable("no more channels")
        return await open_channel()

    connection.channel = open_two  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable, match="no more channels"):
        async with connection.temporary_channels(3):
            pass
    assert [each.closes for each in made.channels] == [1, 1]


async def test_an_unexpected_error_leaves_no_connection_behind(
    network: Network, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as a loss, and the next attempt follows."""
    told: list[str] = []
    errors = [ValueError("a bug")]

    def on_up(_: str) -> None:
        if errors:
            raise errors.pop()

    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "taskherd.broker.supervision.log", SimpleNamespace(exception=lambda _, **fields: logged.append(fields))
    )
    hooks = ConnectionHooks(on_up=on_up, on_down=lambda name, reason: told.append(f"{name}: {reason}"))
    connection = SupervisedConnection(ONE, "test", hooks)
    connection.start()
    await until(lambda: len(network.made) == 2 and connection.is_up)
    assert (told, logged, waits.after) == (["test: unexpected error"], [{"failed": "connection test"}], [1])
    assert [made.is_closed for made in network.made] == [True, False]
    await connection.close()


async def test_a_connection_for_a_moment_is_closed_after_it(network: Network, waits: Waits) -> None:
    """Also if none could be made, or the block fails."""
    used: list[SupervisedConnection] = []

    async def fail() -> None:
        async with open_connection(ONE, "moment") as connection:
            assert (connection.is_up, connection.name) == (True, "moment")
            used.append(connection)
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await fail()
    assert (used[0].is_started, network.made[0].is_closed) == (False, True)
    network.refusals = [ConnectionRefusedError("refused")] * 1_000
    with pytest.raises(Unavailable, match=r"\(moment\): 127\.0\.0\.1:1: refused$"):
        async with open_connection(ONE, "moment"):
            pass
    assert waits.after[:1] == [1]
    attempts = len(network.made)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(network.made) == attempts, "nothing goes on"
    endpoints = connections.endpoints_of(TWO)
    endpoints.mark_failed(Endpoint(endpoints.hosts[0], "127.0.0.1"))
    network.refusals = []
    async with open_connection(TWO, "moment", endpoints):
        assert network.made[-1].url.host == "127.0.0.2"


async def test_two_connections_begin_at_different_servers(network: Network, connect: Connect) -> None:
    """If there are several."""
    first, second = SupervisedConnection(TWO, "first"), SupervisedConnection(TWO, "second")
    second.keep_apart(first)
    for connection in (first, second):
        connection.start()
        await connection.wait_up()
    assert [made.url.host for made in network.made] == ["127.0.0.1", "127.0.0.2"]
    for connection in (first, second):
        await connection.close()
    assert network.take()[2:] == [f"{deed} 127.0.0.{n}" for n in (1, 2) for deed in ("close", "abort")]
    assert connect().is_started


class Transport:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.deeds: list[str] = []

    def abort(self) -> None:
        """Note it."""
        self.deeds.append("abort")

    def pause_reading(self) -> None:
        """Note it."""
        self.deeds.append("pause")

    def resume_reading(self) -> None:
        """Note it."""
        self.deeds.append("resume")


def connected() -> tuple[Socket, Transport]:
    """Return a socket that is connected."""
    socket, transport = Socket(Endpoint(Host("a", 1), "10.0.0.1")), Transport()
    socket._writer = SimpleNamespace(transport=transport)  # type: ignore[assignment]
    return socket, transport


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_a_socket_is_connected_to_an_address_in_the_name_of_the_host(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Whose certificate is expected with TLS; the rest is as the library wants it."""
    asked: list[object] = []
    reader, transport = object(), Transport()

    class Factory:
        """A factory of the library."""

        def __init__(self, kind: str) -> None:
            self.kind = kind

        async def create(self, url: Any, **options: Any) -> tuple[object, object]:
            asked.append((self.kind, str(url), options))
            return reader, SimpleNamespace(transport=transport)

    monkeypatch.setattr(connections, "TCPTransportFactory", lambda: Factory("amqp"))
    monkeypatch.setattr(connections, "TLSTransportFactory", lambda: Factory("amqps"))
    socket = Socket(Endpoint(Host("broker", 1), "10.0.0.1"))
    socket.abort()
    assert (await socket.create(make_url(f"{scheme}://broker:1/v"), more=1))[0] is reader
    name = {"server_hostname": "broker"} if scheme == "amqps" else {}
    assert asked == [(scheme, f"{scheme}://10.0.0.1:1/v", {**name, "more": 1})]
    socket.abort()
    assert transport.deeds == ["abort"]


async def test_an_attempt_that_fails_or_takes_too_long_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that succeeds in time is not, neither later."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.05)
    socket, transport = connected()
    with socket.connecting():
        pass
    await asyncio.sleep(0.1)
    assert transport.deeds == []
    with socket.connecting():
        await asyncio.sleep(0.1)
    assert transport.deeds == ["abort"]
    for error, raised in (
        (ConnectionResetError("reset"), Unavailable),
        (ValueError("a bug"), ValueError),
        (asyncio.CancelledError(), Unavailable),
    ):
        transport.deeds.clear()
        with pytest.raises(raised), socket.connecting():
            raise error
        assert transport.deeds == ["abort"]


async def test_nothing_is_read_from_a_connection_for_a_moment(network: Network, connect: Connect) -> None:
    """It is read again whatever happens in the block; without a connection there is nothing to do."""
    socket, transport = connected()
    with suppress(ValueError), socket.unread():
        assert transport.deeds == ["pause"]
        raise ValueError("a bug")
    assert transport.deeds == ["pause", "resume"]
    connection = SupervisedConnection(ONE, "test")
    with connection.unread():
        connection._socket = socket
    with connection.unread():
        assert transport.deeds == ["pause", "resume", "pause"]
    assert transport.deeds == ["pause", "resume"] * 2
    connection.drop()
    assert transport.deeds[4:] == ["abort"]
    assert (network.events, connect().is_started) == ([], True)
