"""The API's HTTP server: uvicorn, with the bounds of ``http_protocol``; bodies are bounded where they are read."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from taskherd.errors import Misconfigured
from taskherd.http_protocol import BoundedProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from taskherd.settings import Settings

KEEP_ALIVE: Final = 75.0
BACKLOG: Final = 1024
MAX_SOCKET_MESSAGE: Final = 64 * 1024
_PING_EVERY: Final = 20.0


class HttpServer(uvicorn.Server):
    """uvicorn's server, without its signal handlers: the process decides when to leave."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # a generator's type there
        """Leave the signals alone."""
        return nullcontext()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises Misconfigured where that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        why = error.strerror or type(error).__name__
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            message = f"can't listen on port {port} of {host} ({why}); expected a free port, or 0 for any"
            raise Misconfigured("api_port", message) from error
        message = f"can't listen on {host} ({why}); expected an address of this machine"
        raise Misconfigured("api_host", message) from error
    return sock


def make(app: ASGIApp, settings: Settings) -> HttpServer:
    """A server for `app`; it serves until its `should_exit` is set, and then lets requests in hand end."""
    bounds = {"head_within": settings.api_read_timeout, "connections_most": settings.api_connections}
    protocol: Any = type("Protocol", (BoundedProtocol,), bounds)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a stranger's bad request is no warning to us
    return HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="websockets-sansio",
            ws_max_size=MAX_SOCKET_MESSAGE,
            ws_ping_interval=_PING_EVERY,
            ws_ping_timeout=_PING_EVERY,
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
