"""A supervised connection's waits between attempts, its sockets, and channels that nothing opens; without a broker."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aio_pika.connection import make_url

from taskherd import retry
from taskherd.broker import connection as connections
from taskherd.broker.connection import Socket, SupervisedConnection
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.endpoints import Endpoint, Host
from taskherd.errors import Unavailable

URL = "amqp://alice:secret@127.0.0.1:1/v"


@pytest.mark.asyncio(loop_scope="function")
async def test_losses_in_a_row_are_those_of_short_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lasted longer than two requests may take ends the row, whatever ended it."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    limit = 2 * REQUEST_TIMEOUT
    refused = Unavailable("refused")
    lasting = [(0.0, refused, 1), (0.0, None, 2), (limit - 1, None, 3), (limit, refused, 4), (limit + 1, None, 0),
               (0.0, None, 1), (limit + 1, refused, 0)]  # fmt: skip
    left = iter(lasting)
    failures: list[int] = []
    all_lost = asyncio.Event()

    async def connect_until_lost(_connection: SupervisedConnection) -> None:
        nonlocal now
        for seconds, error, _ in left:
            now += seconds
            if error is not None:
                raise error
            return
        all_lost.set()
        await asyncio.Event().wait()

    def delay(count: int) -> float:
        failures.append(count)
        return 0

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(SupervisedConnection, "_connect_until_lost", connect_until_lost)
    monkeypatch.setattr(retry, "delay", delay)
    connection = SupervisedConnection(URL, "test")
    connection.start()
    await all_lost.wait()
    await connection.close()
    assert failures == [expected for _, _, expected in lasting]


class FakeConnection:
    """A connection of aiormq that fails, or never answers."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure
        self.asked = asyncio.Event()

    async def ready(self) -> None:
        """Wait until it answers."""
        self.asked.set()
        if self.failure is not None:
            raise self.failure
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("failure", "replaced", "dropped"),
    [(None, False, True), (None, True, False), (ConnectionResetError("reset"), False, False)],
)
async def test_a_hung_connection_is_dropped_unless_it_was_replaced(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None, *, replaced: bool, dropped: bool
) -> None:
    """A channel that was asked for over one that is lost costs the next one nothing; one that fails does not hang."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.01)
    drops: list[str] = []
    monkeypatch.setattr(SupervisedConnection, "drop", lambda each: drops.append(each.name))
    connection, hung = SupervisedConnection(URL, "test"), FakeConnection(failure)
    opened: Any = SimpleNamespace(transport=SimpleNamespace(connection=hung))
    connection._connection = None if replaced else opened
    with pytest.raises(Unavailable, match=f"^opening a channel: {failure or 'no answer in time'}$"):
        await asyncio.wait_for(connection._open_channel(opened, confirms=False), 30)
    assert hung.asked.is_set()
    assert drops == (["test"] if dropped else [])


async def test_a_connection_that_is_lost_opens_no_channel() -> None:
    """The reason is told; it may have been lost just before, or be replaced by none yet."""
    connection = SupervisedConnection(URL, "test")
    connection._up.set()
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\)$"):
        await connection.channel()
    closed: Any = SimpleNamespace(transport=None)
    connection._connection = closed
    with pytest.raises(Unavailable, match=r"^opening a channel: the connection is closed$"):
        await connection.channel()


class Transport:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.aborted = asyncio.Event()

    def abort(self) -> None:
        """Note it."""
        self.requests.append("abort")
        self.aborted.set()

    def pause_reading(self) -> None:
        """Note it."""
        self.requests.append("pause")

    def resume_reading(self) -> None:
        """Note it."""
        self.requests.append("resume")


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
    assert transport.requests == ["abort"]


async def test_an_attempt_that_takes_too_long_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile, since aiormq would wait for a broker that hangs."""
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.01)
    socket, transport = connected()
    with socket.connecting():
        await asyncio.wait_for(transport.aborted.wait(), 30)
    assert transport.requests == ["abort"]


@pytest.mark.asyncio(loop_scope="function")
async def test_an_attempt_that_succeeds_in_time_is_not_aborted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit ends with it."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    socket, transport = connected()
    with socket.connecting():
        pass
    now += 2 * REQUEST_TIMEOUT
    passed = asyncio.Event()
    loop.call_later(0, passed.set)  # runs after timers that were due before
    await passed.wait()
    assert transport.requests == []


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionResetError("reset"), Unavailable),
        (ValueError("a bug"), ValueError),
        (asyncio.CancelledError(), Unavailable),
    ],
)
async def test_an_attempt_that_fails_is_aborted(error: BaseException, raised: type[Exception]) -> None:
    """Whatever is the reason, which is raised."""
    socket, transport = connected()
    with pytest.raises(raised), socket.connecting():
        raise error
    assert transport.requests == ["abort"]


async def test_nothing_is_read_from_a_connection_for_a_moment() -> None:
    """It is read again whatever happens in the block; without a connection there is nothing to do."""
    socket, transport = connected()
    with suppress(ValueError), socket.unread():
        assert transport.requests == ["pause"]
        raise ValueError("a bug")
    assert transport.requests == ["pause", "resume"]
    connection = SupervisedConnection(URL, "test")
    connection.drop()
    with connection.unread():
        connection._socket = socket
    with connection.unread():
        assert transport.requests == ["pause", "resume", "pause"]
    assert transport.requests == ["pause", "resume"] * 2
    connection.drop()
    assert transport.requests[4:] == ["abort"]


class Closing:
    """A connection of aio-pika that is closed the first or the second time; it notes each with its transport."""

    def __init__(self, requests: list[str], *, hangs: bool) -> None:
        self.requests = requests
        self.hangs = hangs
        self.is_closed = False

    async def close(self) -> None:
        """Close it, or hang once."""
        self.requests.append("close")
        if self.hangs:
            self.hangs = False
            await asyncio.Event().wait()
        self.is_closed = True


@pytest.mark.parametrize(
    ("graceful", "hangs", "requests"),
    [
        (True, False, ["close", "abort"]),
        (False, False, ["abort", "close", "abort"]),
        (True, True, ["close", "abort", "close"]),
    ],
)
async def test_a_connection_that_is_not_needed_any_more_is_aborted(
    monkeypatch: pytest.MonkeyPatch, requests: list[str], *, graceful: bool, hangs: bool
) -> None:
    """At once if it was lost, else once the broker has confirmed its end; one that hangs is closed after that."""
    monkeypatch.setattr(connections, "_CLOSE_TIMEOUT", 0.01)
    socket, transport = connected()
    options = {"graceful": True} if graceful else {}
    closing: Any = Closing(transport.requests, hangs=hangs)
    await asyncio.wait_for(connections._discard(closing, socket, **options), 30)
    assert (transport.requests, closing.is_closed) == (requests, True)
