"""Connections whose clients send without end, or read little or nothing: each is bounded in memory and in time.

The tests run on uvloop, as the API does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeAlias

import pytest
import uvloop
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from taskherd.api.http import server
from taskherd.api.http.client_address import ClientAddresses
from taskherd.api.http.connections import ClientConnections, ConnectionLimits
from taskherd.http_protocol import LimitedProtocol
from taskherd.settings import Settings

P = ParamSpec("P")
TIMEOUT = 20.0
GET = b"GET / HTTP/1.1\r\n\r\n"
EMPTY: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
END: Any = {"type": "http.response.body"}

Application: TypeAlias = Callable[
    [Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on uvloop."""

    @wraps(test)
    def run(*values: P.args, **named: P.kwargs) -> None:
        uvloop.run(test(*values, **named))

    return run


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Undo what the server changes for the whole process."""
    logger = logging.getLogger("uvicorn.error")
    before = logger.level
    yield
    logger.setLevel(before)


class Served:
    """A server that runs one application."""

    def __init__(self, http: server.HttpServer, port: int) -> None:
        self._http = http
        self._port = port

    @property
    def connections(self) -> list[Any]:
        """The protocols of the open connections."""
        return list(self._http.server_state.connections)

    async def connect(self) -> socket.socket:
        """Return a new connection whose client keeps little of what it does not read."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)  # noqa: FBT003 - its only parameter
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        return sock

    async def until_no_connections(self) -> None:
        """Wait until all connections have ended."""
        await until(lambda: not self.connections)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until this is true."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(app: Application) -> AsyncIterator[Served]:
    """Serve an application as the API is served."""
    connections = ClientConnections(ConnectionLimits(100, 50), ClientAddresses(()), lambda _: None)
    http = server.make(app, Settings(api_connections=100, grace=1), connections)
    with server.listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(http.serve(sockets=[listener]))
        await until(lambda: http.started)
        try:
            yield Served(http, listener.getsockname()[1])
        finally:
            http.should_exit = True
            async with asyncio.timeout(TIMEOUT):
                await running


async def receive_all(sock: socket.socket) -> bytes:
    """Return what a connection still receives."""
    received, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT):
        while part := await loop.sock_recv(sock, 65_536):
            received += part
    return received


@on_uvloop
async def test_few_requests_that_are_sent_at_once_are_answered_in_order() -> None:
    """A client may send some requests before it has the first response; nothing more is read until all are answered."""
    started: list[str] = []
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.append(scope["path"])
        await receive()
        await go_on.wait()
        await send({**EMPTY, "headers": [(b"x-path", scope["path"].encode()), *EMPTY["headers"]]})
        await send(END)

    async with serving(app) as served:
        with await served.connect() as sock:
            sock.send(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(10)))
            await until(lambda: bool(started))
            await asyncio.sleep(0)
            assert not served.connections[0].transport.is_reading()
            go_on.set()
            await until(lambda: len(started) == 10)
            await until(served.connections[0].transport.is_reading)
            sock.send(b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n")
            answered = (await receive_all(sock)).split(b"x-path: /")[1:]
    assert [each.partition(b"\r\n")[0] for each in answered] == [b"%d" % number for number in range(10)] + [b"last"]


@on_uvloop
async def test_requests_without_end_end_the_connection() -> None:
    """A client that sends very many requests at once is cut off; none but the first is begun."""
    started: list[str] = []

    async def app(scope: Any, receive: Any, _send: Any) -> None:
        started.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as served:
        with await served.connect() as sock:
            sock.send(GET)
            await until(lambda: bool(started))
            await asyncio.get_running_loop().sock_sendall(sock, GET * 1_000)
            with suppress(ConnectionError):
                assert await receive_all(sock) == b""
            await served.until_no_connections()
    assert started == ["/"]


async def unread_response(served: Served, sock: socket.socket) -> Any:
    """Request a response that the client does not read, and return the protocol once it waits in the server's memory.

    What waits there is too little for the transport to call ``pause_writing``.
    """
    sock.send(GET)
    await until(lambda: bool(served.connections and served.connections[0].cycle))
    (protocol,) = served.connections
    await until(lambda: bool(protocol.cycle.response_complete))
    assert 0 < protocol.transport.get_write_buffer_size() < HIGH_WATER_LIMIT
    return protocol


def fill(served: list[Served]) -> Application:
    """Return an application that writes until the kernel takes no more; the server is added to the list later."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not served[0].connections[0].transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": b"x" * 16_384, "more_body": True})
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # the transport writes after the callbacks of a turn
        await send(END)

    return app


@pytest.mark.parametrize("by", ["server", "client"])
@on_uvloop
async def test_a_closed_connection_whose_response_is_not_read_ends(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A connection that was idle for too long, or whose client sends nothing more, does not wait for it to read."""
    monkeypatch.setattr(LimitedProtocol, "write_timeout", 0.2)
    apps: list[Served] = []
    async with serving(fill(apps)) as served:
        apps.append(served)
        with await served.connect() as sock:
            protocol = await unread_response(served, sock)
            if by == "server":
                protocol.timeout_keep_alive_handler()
            else:
                sock.shutdown(socket.SHUT_WR)
            await until(protocol.transport.is_closing)
            await served.until_no_connections()


@on_uvloop
async def test_a_connection_that_is_closed_for_others_ends_at_once() -> None:
    """It makes room, although its client has not read the last response; so does one whose response is under way."""
    apps: list[Served] = []
    async with serving(fill(apps)) as served:
        apps.append(served)
        with await served.connect() as sock:
            (await unread_response(served, sock)).close_for_limit("Too many.")
            await served.until_no_connections()
            assert b"Too many." not in await receive_all(sock)


@on_uvloop
async def test_no_error_is_sent_in_the_middle_of_a_response() -> None:
    """A connection that is closed for others during a response gets no 429, also if the next request has begun."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await send({**EMPTY, "headers": [(b"content-length", b"9")]})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as served:
        with await served.connect() as sock:
            sock.send(GET + GET[:5])
            await until(lambda: bool(served.connections and served.connections[0].cycle))
            (protocol,) = served.connections
            await until(lambda: bool(protocol.cycle.response_started))
            protocol.close_for_limit("Too many.")
            protocol.close_for_limit("Too many.")
            with suppress(ConnectionError):
                assert b"Too many." not in await receive_all(sock)
            await served.until_no_connections()


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
PINGS = 2_000 * (b"\x89\xfd" + bytes(4) + bytes(125))
"""Pings with the longest content that there is, masked with zeros."""
MESSAGE = b"\x81\x82" + bytes(4) + b"hi"


class Echo:
    """An application that accepts a WebSocket, receives messages, and notes the end."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        """Serve a WebSocket."""
        while True:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            elif message["type"] == "websocket.disconnect":
                return


async def open_socket(served: Served, sock: socket.socket) -> Any:
    """Begin a WebSocket and return its protocol."""
    sock.send(HANDSHAKE)
    await until(lambda: bool(served.connections) and getattr(served.connections[0], "handshake_complete", False))
    (protocol,) = served.connections
    return protocol


async def send_until_paused(sock: socket.socket, protocol: Any) -> asyncio.Task[None]:
    """Send pings, and read no pong, until the server reads no more; return the task that goes on sending."""
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, PINGS * 30))
    await until(lambda: not protocol.transport.is_reading())
    return sending


@on_uvloop
async def test_pings_without_end_whose_pongs_are_not_read_end_a_websocket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read while the pongs are not taken, even if the application receives messages; then it ends."""
    monkeypatch.setattr(LimitedProtocol, "write_timeout", 0.5)
    app, peak = Echo(), 0
    async with serving(app) as served:
        with await served.connect() as sock:
            protocol = await open_socket(served, sock)

            def has_ended() -> bool:
                nonlocal peak
                peak = max(peak, protocol.transport.get_write_buffer_size())
                return not served.connections

            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, (MESSAGE + PINGS) * 200))
            await until(has_ended)
            await until(lambda: app.messages[-1] == "websocket.disconnect")
            await asyncio.wait({sending})
            assert isinstance(sending.exception(), ConnectionError)
    assert "websocket.receive" in app.messages
    assert peak < 1_000_000


@on_uvloop
async def test_a_websocket_goes_on_when_its_client_reads_again() -> None:
    """What was not read while the pongs were not taken is read then."""
    app, loop = Echo(), asyncio.get_running_loop()
    async with serving(app) as served:
        with await served.connect() as sock:
            protocol = await open_socket(served, sock)
            sending = await send_until_paused(sock, protocol)
            reading = asyncio.create_task(receive_all(sock))
            await asyncio.wait({sending})
            await loop.sock_sendall(sock, MESSAGE)
            await until(lambda: "websocket.receive" in app.messages)
            protocol.transport.close()
            assert len(await reading) > 30 * 2_000 * 100


@pytest.mark.parametrize("reads", [False, True])
@on_uvloop
async def test_a_websocket_without_a_pong_ends_at_once(*, reads: bool) -> None:
    """Its client may not have read what was sent before; if it has, it reads why."""
    app = Echo()
    async with serving(app) as served:
        with await served.connect() as sock:
            protocol = await open_socket(served, sock)
            sending = None if reads else await send_until_paused(sock, protocol)
            protocol.keepalive_timeout()
            await served.until_no_connections()
            await until(lambda: app.messages[-1] == "websocket.disconnect")
            if sending is None:
                assert b"keepalive ping timeout" in await receive_all(sock)
            else:
                with suppress(ConnectionError):  # the kernel may have taken all
                    await sending


@on_uvloop
async def test_a_websocket_begins_only_after_the_responses_to_earlier_requests() -> None:
    """A connection on which a handshake comes before the last response was sent is aborted."""
    started: list[str] = []

    async def app(scope: Any, receive: Any, _send: Any) -> None:
        started.append(scope["type"])
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as served:
        with await served.connect() as sock:
            sock.send(GET + HANDSHAKE)
            with suppress(ConnectionError):
                assert await receive_all(sock) == b""
            await served.until_no_connections()
    assert started == ["http"]


@pytest.mark.parametrize("sent", [b"\r\n", b"late"])
@on_uvloop
async def test_an_idle_connection_ends_whatever_its_client_sent_last(sent: bytes) -> None:
    """An empty line, or the rest of a body whose request is answered, begins no request: the connection is idle."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(EMPTY)
        await send(END)

    async with serving(app) as served:
        with await served.connect() as sock:
            length = len(sent.strip())
            sock.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length)
            await until(lambda: bool(served.connections and served.connections[0].cycle))
            (protocol,) = served.connections
            await until(lambda: protocol.timeout_keep_alive_task is not None)
            armed = protocol.timeout_keep_alive_task
            protocol.timeout_keep_alive = 0.2
            sock.send(sent)
            await until(lambda: protocol.timeout_keep_alive_task is not armed)
            await served.until_no_connections()


@on_uvloop
async def test_a_websocket_on_a_connection_that_was_idle_is_not() -> None:
    """The timer of the idle connection does not go on when a WebSocket begins on it."""
    socket_app = Echo()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await socket_app(scope, receive, send)
        else:
            await send(EMPTY)
            await send(END)

    async with serving(app) as served:
        with await served.connect() as sock:
            sock.send(GET)
            await until(lambda: bool(served.connections and served.connections[0].timeout_keep_alive_task))
            (before,) = served.connections
            await asyncio.get_running_loop().sock_recv(sock, 1_000)
            protocol = await open_socket(served, sock)
            assert (before.timeout_keep_alive_task, protocol.transport.is_closing()) == (None, False)
