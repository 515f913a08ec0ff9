"""uvicorn's HTTP protocol with limits on request heads and connections, and with JSON errors.

uvicorn limits neither the size of a request's head nor the time it may take, nor how many requests a client may send
before it has the first response. This subclass of its protocol limits all of them, because the protocol receives the
bytes. It also keeps a connection open until the body of an already answered request
has arrived, and for a moment after an invalid or late head: closing it while the client sends resets it, and many
clients then never see the response (RFC 9112, section 9.6). The API and the operations port use it.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections import deque

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD: Final = 32 * 1024
"""Default maximum size of a request's head, in bytes."""
MAX_DISCARD: Final = 256 * 1024 * 1024
"""Maximum size of the rest of a body that is read and discarded after the response, in bytes."""
DISCARD_TIMEOUT: Final = 30.0
"""Seconds within which that rest must have arrived; then the connection is closed."""
LINGER_TIMEOUT: Final = 2.0
"""Seconds within which the client must have closed a connection after its head was rejected; then it is closed here."""
STUCK_AFTER: Final = 60.0
"""Default number of seconds in which a client must take enough of what is written; else its connection is aborted."""
MIN_RATE: Final = 4 * 1024
"""Bytes a second that are enough."""
MAX_PIPELINED: Final = 16
"""Maximum number of requests of a connection that wait for the response to an earlier one; with more it is aborted."""
_FIELD_EXTRA: Final = 4  # a colon, a space and the line end
_HEAD_TOO_LARGE: Final = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Request header is too large.")


class BoundedTransport:
    """A transport that is aborted if the client takes too little of what was written, also after it was closed.

    A closed transport waits, else, for as long as the client takes nothing. Other methods are those of the transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the transport."""
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close the connection once the client has taken what was written; watch that it does."""
        self._transport.close()
        if self._timer is None and self._transport.get_write_buffer_size():
            self.watch()

    def watch(self) -> None:
        """Abort the connection unless the client takes, on average of each period from now on, ``MIN_RATE``."""
        self.end_watch()
        self._waiting = self._count_waiting()
        self._timer = self._loop.call_later(self._seconds, self._check)

    def end_watch(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume_writing(self) -> None:
        """Watch no longer, since the client has taken most of the buffer; if closed, from the beginning."""
        if self._transport.is_closing():
            self.watch()
        else:
            self.end_watch()

    def _check(self) -> None:
        if self._waiting - self._count_waiting() < MIN_RATE * self._seconds:
            self._transport.abort()
        else:
            self.watch()

    def _count_waiting(self) -> int:
        """Return how many bytes wait, also in the kernel: it takes more of a slow client's only now and then."""
        sock = self._transport.get_extra_info("socket")
        in_kernel = bytes(4)
        if sock is not None:
            with suppress(OSError):  # a system that does not say
                in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, in_kernel)
        return self._transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)


class _ResponseTransport:
    """The transport as uvicorn uses it for a response: it closes the connection once the request has arrived too."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Return whether the connection is closing."""
        return self._protocol.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send a part of the response."""
        self._protocol.transport.write(data)

    def close(self) -> None:
        """Close the connection after the rest of the request's body."""
        self._protocol.close_after_body()


class _PipelineFlow(FlowControl):
    """The flow control of a connection, which reads nothing while requests wait for the response to an earlier one."""

    def __init__(
        self, transport: asyncio.Transport, waiting: deque[tuple[RequestResponseCycle, ASGI3Application]]
    ) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read again, if no request waits."""
        if not self._waiting:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """One connection; each server sets the limits in its own subclass."""

    head_timeout: float
    """Seconds that a client may take to send a request's head."""
    max_connections: int
    """Maximum number of connections of the server."""
    max_head_bytes = MAX_HEAD
    write_timeout = STUCK_AFTER
    bounded: BoundedTransport
    """The transport, which uvicorn uses too."""
    _in_head = True
    _in_message = False
    _fields_bytes = 0
    _unparsed_bytes = 0
    _discarded_bytes = 0
    _rejection: tuple[HTTPStatus, str] | None = None
    _closes_after_body = False
    _lingers = False
    _running: RequestResponseCycle | None = None
    """The request that was begun last; others may wait for it."""
    _head_timer: asyncio.TimerHandle | None = None
    _discard_timer: asyncio.TimerHandle | None = None
    """The timer of the rest of a body, or of a connection that lingers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Accept the connection, or abort it if there are too many."""
        self.bounded = BoundedTransport(transport, self.loop, self.write_timeout)
        super().connection_made(cast("asyncio.Transport", self.bounded))
        self.flow = _PipelineFlow(transport, self.pipeline)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers of the connection, and tell the request in progress; uvicorn tells the newest one only."""
        self._stop_head_timer()
        self._stop_discard_timer()
        self.bounded.end_watch()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Close the connection as the loop does, which would not watch that the client takes what was written."""
        self.transport.close()

    def pause_writing(self) -> None:
        """Abort the connection if the client takes less than ``MIN_RATE`` in ``write_timeout`` seconds."""
        super().pause_writing()
        self.bounded.watch()

    def resume_writing(self) -> None:
        """Abort it no longer: the client has taken most of the buffer."""
        self.bounded.resume_writing()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and limit the size of an incomplete head; discard what follows a rejected one."""
        if self._lingers:
            self._discard(len(data))
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self.max_head_bytes:
                self.reject(*_HEAD_TOO_LARGE)
            else:
                self._start_head_timer()
        elif self._is_between_requests and self.timeout_keep_alive_task is None:  # which uvicorn stops at any byte
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def _is_between_requests(self) -> bool:
        """True if the last request has arrived and is answered, and no WebSocket has taken the connection over."""
        is_answered = getattr(self.cycle, "response_complete", False)  # there is no cycle before the first request
        return is_answered and not self._in_message and self in self.connections

    def on_message_begin(self) -> None:
        """Reset the counters for a new request."""
        self._in_head = self._in_message = True
        self._fields_bytes = self._unparsed_bytes = self._discarded_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Limit the total size of the fields; an error raised here makes uvicorn call ``send_400_response``."""
        self._fields_bytes += len(name) + len(value) + _FIELD_EXTRA
        if self._fields_bytes > self.max_head_bytes:
            self._rejection = _HEAD_TOO_LARGE
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer of the head, which is complete; abort the connection if too many requests wait.

        An error raised here ends the parsing.
        """
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        if self.cycle is not None:  # there is none if a connection begins with an upgrade
            self.cycle.transport = cast("asyncio.Transport", _ResponseTransport(self))
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
            raise ValueError

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body; close the connection if too much of an already rejected body arrives."""
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Close the connection if only the rest of the body kept it open."""
        self._in_message = False
        self._stop_discard_timer()
        super().on_message_complete()
        if self._closes_after_body:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Limit the time that the rest of the body may take."""
        if self.cycle.response_complete and self.cycle.more_body:
            self._discard_timer = self.loop.call_later(DISCARD_TIMEOUT, self.transport.close)
        super().on_response_complete()

    def close_after_body(self) -> None:
        """Close the connection after a response: when the body of its request has arrived, or at once if it has."""
        if self.cycle.response_complete and self.cycle.more_body:
            self._closes_after_body = True
        else:
            self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        """Begin a WebSocket; abort the connection if a response to an earlier request is not sent yet."""
        is_responding = not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request
        if is_responding or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Respond to invalid HTTP, or to a request that a callback rejected, unless the connection is closing."""
        if not self.transport.is_closing():
            self.reject(*(self._rejection or (HTTPStatus.BAD_REQUEST, msg)))

    def _discard(self, size: int) -> None:
        """Count the bytes of what is not read any more; close the connection if there are too many."""
        self._discarded_bytes += size
        if self._discarded_bytes > MAX_DISCARD:
            self.transport.close()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_discard_timer(self) -> None:
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and not self._lingers:
            lingers = self._unparsed_bytes > 0  # a client that has sent nothing is not sending
            self.reject(HTTPStatus.REQUEST_TIMEOUT, "Request header did not arrive in time.", lingers=lingers)

    def reject(self, status: HTTPStatus, message: str, *, lingers: bool = True) -> None:
        """Answer with an error that has this message, and close the connection.

        If it ``lingers``, it is closed when the client has, within ``LINGER_TIMEOUT``.
        """
        body = orjson.dumps({"message": message})
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._in_head = False
        self.transport.write(head.encode("latin-1") + body)
        if self.cycle is not None:  # there is none before the first request
            lingers = lingers and self.cycle.response_complete  # a response to an earlier request cannot follow
        if lingers and self.transport.can_write_eof():
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Tell the client that nothing follows, and read until it closes the connection too."""
        self._lingers = True
        self.transport.write_eof()
        self._stop_head_timer()
        self._stop_discard_timer()
        self._discard_timer = self.loop.call_later(LINGER_TIMEOUT, self.transport.close)
