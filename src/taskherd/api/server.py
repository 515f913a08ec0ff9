"""The HTTP server: uvicorn, with bounds on heads and connections, and JSON for what it refuses itself.

uvicorn bounds neither the size of a head nor the time it may take. Both are bounded here, in its own protocol class,
since that is where the bytes are; the bodies are bounded where they are read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from taskherd.settings import Settings

HEAD_MOST: Final = 32 * 1024
"""Bytes of a request's head."""
DISCARD_MOST: Final = 16 * 1024 * 1024
"""Bytes of a refused body that are still taken, so that who sends it gets to read why it was refused."""
KEEP_ALIVE: Final = 75.0
STUCK_AFTER: Final = 60.0
"""Seconds after which a connection is dropped whose other end takes nothing of what waits for it."""
BACKLOG: Final = 1024
SOCKET_MESSAGE_MOST: Final = 64 * 1024
_PING_EVERY: Final = 20.0
_FIELD_EXTRA: Final = 4  # a colon, a space and the line's end
_HEAD_TOO_LARGE: Final = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Request header is too large.")


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with `head_within` seconds for a head; each server sets the bounds in a class of its own."""

    head_within: float
    connections_most: int
    _in_head = True
    _fields_bytes = 0
    _unparsed_bytes = 0
    _discarded_bytes = 0
    _refusal: tuple[HTTPStatus, str] | None = None
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take the connection, or drop it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_most:
            transport.abort()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._calm()
        self._unstick()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The other end takes less than we have to send."""
        super().pause_writing()
        self._unstick()
        self._stuck = self.loop.call_later(STUCK_AFTER, self.transport.abort)

    def resume_writing(self) -> None:
        """It took most of it."""
        self._unstick()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Feed the parser and bound what it keeps of a head."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > HEAD_MOST:
                self._refuse(*_HEAD_TOO_LARGE)
            else:
                self._watch()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._fields_bytes = self._unparsed_bytes = self._discarded_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One more field of the head; uvicorn answers what is raised here by `send_400_response`."""
        self._fields_bytes += len(name) + len(value) + _FIELD_EXTRA
        if self._fields_bytes > HEAD_MOST:
            self._refusal = _HEAD_TOO_LARGE
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._calm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """More of the body came; of one that was answered already only so much is thrown away."""
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > DISCARD_MOST:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or what a callback refused."""
        self._refuse(*(self._refusal or (HTTPStatus.BAD_REQUEST, msg)))

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_within, self._too_slow)

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unstick(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "Request header did not arrive in time.")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        body = orjson.dumps({"message": message})
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._in_head = False
        self.transport.write(head.encode("latin-1") + body)
        self.transport.close()


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
            ws_max_size=SOCKET_MESSAGE_MOST,
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
