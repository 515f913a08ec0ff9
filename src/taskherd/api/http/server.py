"""The HTTP server of the API: uvicorn with the limits of ``http_protocol``. ``bodies`` limits request bodies."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from taskherd.errors import Misconfigured
from taskherd.http_protocol import LimitedProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn._types import ASGISendEvent

    from taskherd.settings import Settings

KEEP_ALIVE: Final = 75.0
"""Seconds after which an idle connection is closed."""
BACKLOG: Final = 1024
"""Maximum number of connections that wait to be accepted."""
MAX_SOCKET_MESSAGE: Final = 64 * 1024
"""Maximum size of a WebSocket message from a client, in bytes."""
_PING_INTERVAL: Final = 20.0
"""Seconds between two pings on a WebSocket, and until a missing pong closes it."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which takes a handshake that was denied with a response for one without an end."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message, and note the end of a denied handshake, or uvicorn logs an error about it."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True


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


def make(app: ASGIApp, settings: Settings) -> HttpServer:
    """Return a server for ``app``.

    It serves until ``should_exit`` is set, then finishes the requests in progress.
    """
    limits = {"head_timeout": settings.api_read_timeout, "max_connections": settings.api_connections}
    protocol: Any = type("Protocol", (LimitedProtocol,), limits)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a malformed request is no problem of the server
    return HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws=SocketProtocol,
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
