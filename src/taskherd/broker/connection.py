"""A supervised AMQP connection that connects in the background and reconnects when it is lost."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aio_pika import Connection
from aio_pika.connection import make_url
from aiormq.channel import Channel
from aiormq.connection import Connection as AiormqConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory

from taskherd import retry
from taskherd.broker.patches import channel_closing, frame_reader, pamqp_patches
from taskherd.broker.requests import (
    REQUEST_TIMEOUT,
    close_channel,
    close_channels,
    close_opened,
    in_background,
    map_errors,
)
from taskherd.broker.supervision import survive
from taskherd.endpoints import Endpoint, Endpoints
from taskherd.errors import Misconfigured, Unavailable
from taskherd.settings.urls import amqp_hosts, with_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

    from yarl import URL

MAX_CONNECT_TIME = 30.0
"""Seconds after which who needs a connection for a moment gives up, however many hosts are still to be tried."""
CHECK_TIMEOUT = 2.0
"""Seconds within which the broker must answer on a connection that seems to hang."""
HEARTBEAT = 10
"""Seconds between AMQP heartbeats; a frozen broker is detected after about three of them."""
MAX_WAITING_WRITES = 4096
"""Writes of a connection that may wait at once: two for each channel of RabbitMQ's limit.

aiormq has room for ten. When the broker closes a channel and there is no room for the Channel.CloseOk, aiormq drops it
and uses the number again, for which RabbitMQ closes the whole connection.
"""
_CLOSE_TIMEOUT = 2.0
"""Seconds to wait for the broker to confirm that a connection is closed."""


def _ignore(*_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class ConnectionHooks:
    """Callbacks for changes of a connection; each receives its name, the last two also the reason."""

    on_up: Callable[[str], None] = _ignore
    on_down: Callable[[str, str], None] = _ignore
    on_refused: Callable[[str, str], None] = _ignore


class Socket(TransportFactory):
    """A transport factory for one address, which keeps the socket: only an abort reliably closes a stuck connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the address; the certificate must still be that of the URL's host."""
        address = url.with_host(self.endpoint.address)
        if url.scheme == "amqps":
            reader, self._writer = await TLSTransportFactory().create(address, server_hostname=url.host, **options)
        else:
            reader, self._writer = await TCPTransportFactory().create(address, **options)
        return reader, self._writer

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Abort the socket if the block fails or takes longer than ``REQUEST_TIMEOUT``.

        A cancelled attempt of aiormq would wait for the end of TLS, half a minute if the broker is frozen.
        """
        limit = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, self.abort)
        try:
            with map_errors():  # the text comes after the address
                yield
        except BaseException:
            self.abort()
            raise
        finally:
            limit.cancel()

    def abort(self) -> None:
        """Close the socket without waiting for the broker."""
        if self._writer is not None:
            self._writer.transport.abort()

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Read nothing in the block: what the broker sends waits in the system's buffers. It may be lost meanwhile."""
        assert self._writer is not None
        transport = cast("asyncio.Transport", self._writer.transport)  # a StreamWriter's transport can read, too
        transport.pause_reading()
        try:
            yield
        finally:
            transport.resume_reading()


class SupervisedConnection:
    """A connection to a host of ``url``; ``name`` states its purpose in the broker's list of connections.

    ``start`` returns immediately. From then until ``close`` it connects and reconnects in the background, with backoff.
    Each address of each host has ``REQUEST_TIMEOUT`` to answer; the last good one is tried first, and one whose
    connection was lost last.

    Use separate connections for consuming and publishing: a broker that blocks publishers stops reading from their
    connections, acks included.
    """

    def __init__(
        self,
        url: str,
        name: str,
        hooks: ConnectionHooks | None = None,
        *,
        endpoints: Endpoints | None = None,
    ) -> None:
        """Create it, unconnected.

        At first the hosts are tried in order, or as the given ``endpoints`` of the URL remember them.
        """
        pamqp_patches.install()
        frame_reader.install()
        channel_closing.install()
        AiormqConnection.FRAME_BUFFER_SIZE = MAX_WAITING_WRITES
        self.name = name
        self._url = url
        self._endpoints = endpoints or endpoints_of(url)
        self._hooks = hooks or ConnectionHooks()
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        """Set once connected, or once each host was tried."""
        self._refusal = ""
        self._connection: Connection | None = None
        self._socket: Socket | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def user(self) -> str | None:
        """The name under which the broker knows this connection, None if only the broker can tell.

        It is the user of the URL, percent-decoded; with ``auth=external`` the name comes from the certificate.
        """
        url = make_url(with_host(self._url, self._endpoints.hosts[0]))
        return None if url.query.get("auth", "").lower() == "external" else url.user or "guest"

    @property
    def is_up(self) -> bool:
        """True while connected, as far as is known."""
        return self._up.is_set()

    @property
    def is_started(self) -> bool:
        """True from ``start`` to ``close``."""
        return self._supervisor is not None

    def keep_apart(self, other: SupervisedConnection) -> None:
        """Let the two begin at different servers, if there are several; call it before ``start``."""
        self._endpoints.keep_apart(other._endpoints)

    def start(self) -> None:
        """Start connecting in the background."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name=f"amqp {self.name}")

    async def wait_up(self, timeout: float = REQUEST_TIMEOUT) -> None:  # noqa: ASYNC109 - becomes part of the error
        """Wait until connected. Raise ``Unavailable`` after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError as error:
            raise self._unreachable() from error

    async def wait_tried(self) -> None:
        """Wait until connected. Raise ``Unavailable`` once no host has answered, or after ``MAX_CONNECT_TIME``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_CONNECT_TIME):
                await self._tried.wait()
        if not self.is_up:
            raise self._unreachable()

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open and return an aiormq channel. Raise ``Unavailable`` if not connected.

        With ``confirms``, the broker confirms messages that are published on it, and a returned message raises.
        """
        await self.wait_up()
        connection = self._connection
        if connection is None:
            raise self._unreachable()
        opening = in_background(self._open_channel(connection, confirms=confirms))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            in_background(close_opened(opening))
            raise

    async def _open_channel(self, connection: Connection, *, confirms: bool) -> Channel:
        try:
            with map_errors("opening a channel"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    if connection.transport is None:
                        raise ConnectionError("the connection is closed")
                    underlay = connection.transport.connection
                    await underlay.ready()
                    # aio-pika's channel would leave callbacks on the connection, 3 KB each, until that ends.
                    channel = await underlay.channel(publisher_confirms=confirms, on_return_raises=confirms)
        except Unavailable as error:
            if isinstance(error.__cause__, TimeoutError) and connection is self._connection:
                self.drop()  # the broker opens a channel at once, so it hangs
            raise
        assert isinstance(channel, Channel)
        return channel

    @asynccontextmanager
    async def temporary_channel(self) -> AsyncIterator[Channel]:
        """Open a channel for the block; its end requeues what was not acknowledged. Raise as ``channel`` does."""
        async with self.temporary_channels(1) as (channel,):
            yield channel

    @asynccontextmanager
    async def temporary_channels(self, count: int) -> AsyncIterator[list[Channel]]:
        """Open so many channels for the block, as ``temporary_channel`` does one."""
        channels: list[Channel] = []
        try:
            for _ in range(count):
                channels.append(await self.channel())  # noqa: PERF401 - those before are closed if this one fails
            yield channels
        finally:
            await close_channels(channels)

    async def drop_if_hung(self, within: float = CHECK_TIMEOUT) -> None:
        """Abort the connection if the broker does not answer a request on it ``within`` so many seconds.

        Where deliveries wait for their acks, each abort costs them one of their attempts: be patient there.
        """
        if not self.is_up:
            return
        try:
            with map_errors("checking the connection"):
                async with asyncio.timeout(within):
                    await close_channel(await self.channel())
        except Unavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self.drop()

    def unread(self) -> AbstractContextManager[None]:
        """Read nothing from the broker in the block, which must be short: no answer and no loss is noticed in it."""
        return nullcontext() if self._socket is None else self._socket.unread()

    def drop(self) -> None:
        """Abort the connection immediately, in whatever state it is; the supervisor makes a new one."""
        if self._socket is not None:
            self._socket.abort()

    async def close(self) -> None:
        """Close the connection and stop reconnecting, within a few seconds."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait({supervisor})
        connection, socket = self._connection, self._socket
        self._connection = self._socket = None
        self._up.clear()
        if connection is not None:
            assert socket is not None
            await _discard(connection, socket, graceful=True)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            with survive(f"connection {self.name}", self._on_refused):
                await self._connect_until_lost()
            lifetime = asyncio.get_running_loop().time() - began
            failures = 0 if lifetime > 2 * REQUEST_TIMEOUT else failures + 1
            await asyncio.sleep(retry.delay(failures))

    async def _connect_until_lost(self) -> None:
        connection, socket = await self._connect()
        self._connection, self._socket = connection, socket
        try:
            self._refusal = ""
            self._up.set()
            self._tried.set()
            self._hooks.on_up(self.name)
            reason = await _wait_lost(connection)
        except Exception:
            await self._mark_down(connection, socket, "unexpected error")
            raise
        await self._mark_down(connection, socket, reason)

    def _on_refused(self, reason: str) -> None:
        self._refusal = reason
        self._tried.set()
        self._hooks.on_refused(self.name, reason)

    def _unreachable(self) -> Unavailable:
        reason = f": {self._refusal}" if self._refusal else ""
        return Unavailable(f"RabbitMQ can't be reached ({self.name}){reason}")

    async def _mark_down(self, connection: Connection, socket: Socket, reason: str) -> None:
        self._up.clear()
        self._connection = self._socket = None
        self._hooks.on_down(self.name, reason)
        self._endpoints.mark_failed(socket.endpoint)
        await _discard(connection, socket)

    async def _connect(self) -> tuple[Connection, Socket]:
        connected, _ = await self._endpoints.connect(self._connect_to, (Unavailable,))
        return connected

    async def _connect_to(self, endpoint: Endpoint) -> tuple[Connection, Socket]:
        socket = Socket(endpoint)
        connection = Connection(
            make_url(with_host(self._url, endpoint.host), heartbeat=HEARTBEAT),
            client_properties={"connection_name": f"taskherd {self.name}"},
        )
        connection.kwargs["transport_factory"] = socket
        try:
            with socket.connecting():
                await connection.connect()
        except BaseException:
            await _discard(connection, socket)
            raise
        return connection, socket


@asynccontextmanager
async def open_connection(
    url: str, name: str, endpoints: Endpoints | None = None
) -> AsyncIterator[SupervisedConnection]:
    """Connect for the duration of the block, which begins once one of the hosts has answered.

    With ``endpoints`` that are used again, a host that hangs costs its limit only the first time.

    Raises:
        Unavailable: no host answered.
    """
    connection = SupervisedConnection(url, name, endpoints=endpoints)
    connection.start()
    try:
        await connection.wait_tried()
        yield connection
    finally:
        await connection.close()


def endpoints_of(url: str) -> Endpoints:
    """Return the endpoints of an AMQP URL, each with ``REQUEST_TIMEOUT``.

    Raises:
        Misconfigured: the URL names no host, or one of them is malformed.
    """
    try:
        return Endpoints(amqp_hosts(url), REQUEST_TIMEOUT)
    except ValueError as error:
        raise Misconfigured("amqp_url", f"{error}; expected a URL like amqp://user:password@host:5672/vhost") from None


async def _wait_lost(connection: Connection) -> str:
    """Wait until ``connection`` is lost and return the reason."""
    assert connection.transport is not None
    closing = connection.transport.connection.closing
    await asyncio.wait({closing})
    error = None if closing.cancelled() else closing.exception()
    return str(error) if error is not None and str(error) else "closed"


async def _discard(connection: Connection, socket: Socket, *, graceful: bool = False) -> None:
    if not graceful:
        socket.abort()
    try:
        with suppress(Unavailable), map_errors("closing"):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await connection.close()
    finally:
        socket.abort()
    if not connection.is_closed:
        await connection.close()  # the transport is gone; without this, aio-pika would close it when it is collected
