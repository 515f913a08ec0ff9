"""The HTTP server of the API: uvicorn with the limits of ``http_protocol``. ``bodies`` limits request bodies."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from taskherd.errors import Misconfigured
from taskherd.http_protocol import LINGER_TIMEOUT, BoundedTransport, LimitedProtocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

    from taskherd.api.http.connections import ClientConnections
    from taskherd.settings import Settings

KEEP_ALIVE: Final = 75.0
"""Seconds after which an idle connection is closed."""
BACKLOG: Final = 1024
"""Maximum number of connections that wait to be accepted."""
MAX_SOCKET_MESSAGE: Final = 64 * 1024
"""Maximum size of a WebSocket message from a client, in bytes."""
_BACKSTOP: Final = 2
"""Times ``TASKHERD_API_CONNECTIONS`` that may be open while the closing ones of them are not closed yet."""
_PING_INTERVAL: Final = 20.0
"""Seconds between two pings on a WebSocket, and until a missing pong closes it."""


class ApiProtocol(LimitedProtocol):
    """The HTTP protocol of one client connection, which ``client_connections`` may close."""

    client_connections: ClientConnections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Add the connection, which may close it or another one."""
        super().connection_made(transport)
        if self.client is not None and not transport.is_closing():
            self.client_connections.open(self.client, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        if self.client is not None:
            self.client_connections.lost(self.client)
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Note that the connection is in use."""
        if self.client is not None:
            self.client_connections.touch(self.client)
        super().on_headers_complete()

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress, and its client has read the response to the last one."""
        is_responding = not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request
        return not is_responding and not self.transport.get_write_buffer_size()

    def close_idle(self) -> None:
        """Close the connection as after ``KEEP_ALIVE``: at once, or the client takes a response for its next one."""
        self.transport.close()

    def close_for_limit(self, message: str) -> None:
        """Close the connection: with a 429, or at once if that could not be read next, as during another response.

        It waits for the client neither to close nor to read, since others need its place.
        """
        if not self.is_idle or self._lingers or self.transport.is_closing():
            self.transport.abort()
            return
        self.reject(HTTPStatus.TOO_MANY_REQUESTS, message, lingers=False)
        self.loop.call_later(LINGER_TIMEOUT, self.transport.abort)


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which limits what a client may leave unread.

    uvicorn answers each ping, and takes a handshake that was denied with a response for one without an end.
    """

    client_connections: ClientConnections
    _bounded: BoundedTransport
    """The transport, as the HTTP protocol used it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from the HTTP protocol."""
        self._bounded = cast("BoundedTransport", transport)
        super().connection_made(transport)
        if self.client is not None:
            self.client_connections.replace(self.client, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._bounded.end_watch()
        if self.client is not None:
            self.client_connections.lost(self.client)
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """False: a socket is a request in progress."""
        return False

    def close_idle(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def close_for_limit(self, message: str) -> None:  # noqa: ARG002 - a handshake in progress has no place for it
        """Close the connection at once."""
        self.transport.abort()

    def eof_received(self) -> None:
        """Close the connection as the loop does, which would not watch that the client takes what was written."""
        self.transport.close()

    def pause_writing(self) -> None:
        """Read nothing while much is not taken, and abort the connection as ``LimitedProtocol`` does."""
        super().pause_writing()
        self._bounded.watch()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again, unless what was received waits for the application."""
        self._bounded.resume_writing()
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def keepalive_timeout(self) -> None:
        """Close the connection, at once if its client has not taken what was written before."""
        is_stuck = self.transport.get_write_buffer_size() > 0
        super().keepalive_timeout()
        if is_stuck:
            self.transport.abort()

    async def receive(self) -> ASGIReceiveEvent:
        """Receive a message, after which uvicorn reads again."""
        message = await super().receive()
        self._keep_paused()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message, and note the end of a denied handshake, or uvicorn logs an error about it."""
        await super().send(message)
        self._keep_paused()
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def _keep_paused(self) -> None:
        if not self.writable.is_set():
            self.transport.pause_reading()


class HttpServer(uvicorn.Server):
    """A uvicorn server without signal handlers: the process decides when to stop."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # a generator's type there
        """Install no signal handlers."""
        return nullcontext()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to this address. Raise ``Misconfigured`` if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        reason = error.strerror or type(error).__name__
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            message = f"cannot listen on port {port} of {host} ({reason}); expected a free port, or 0 for any"
            raise Misconfigured("api_port", message) from error
        message = f"cannot listen on {host} ({reason}); expected an address of this machine"
        raise Misconfigured("api_host", message) from error
    return sock


def make(app: ASGIApp, settings: Settings, connections: ClientConnections) -> HttpServer:
    """Return a server for ``app``, whose connections are added to ``connections``.

    It serves until ``should_exit`` is set, then finishes the requests in progress.
    """
    limits = {
        "client_connections": connections,
        "head_timeout": settings.api_read_timeout,
        "max_connections": _BACKSTOP * settings.api_connections,
    }
    protocol: Any = type("Protocol", (ApiProtocol,), limits)
    socket_protocol: Any = type("Socket", (SocketProtocol,), {"client_connections": connections})
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a malformed request is no problem of the server
    return HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws=socket_protocol,
            ws_max_size=MAX_SOCKET_MESSAGE,
            ws_ping_interval=_PING_INTERVAL,
            ws_ping_timeout=_PING_INTERVAL,
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(KEEP_ALIVE),
            timeout_graceful_shutdown=int(settings.grace),
        )
    )
