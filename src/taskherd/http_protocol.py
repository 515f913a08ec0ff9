"""uvicorn's HTTP protocol with bounds on heads and connections, and JSON for what it refuses itself.

uvicorn bounds neither the size of a head nor the time it may take. Both are bounded here, in its own protocol class,
since that is where the bytes are. The API and the operations port serve with it.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's head."""
MAX_DISCARD: Final = 16 * 1024 * 1024
"""Bytes of a refused body that are still taken, so that who sends it gets to read why it was refused."""
STUCK_AFTER: Final = 60.0
"""Seconds after which a connection is dropped whose other end takes nothing of what waits for it."""
_FIELD_EXTRA: Final = 4  # a colon, a space and the line's end
_HEAD_TOO_LARGE: Final = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Request header is too large.")


class BoundedProtocol(HttpToolsProtocol):
    """One connection; each server sets the bounds in a subclass of its own."""

    head_within: float
    """Seconds that a request's head may take."""
    connections_most: int
    head_most = MAX_HEAD
    stuck_after = STUCK_AFTER
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
        self._stuck = self.loop.call_later(self.stuck_after, self.transport.abort)

    def resume_writing(self) -> None:
        """It took most of it."""
        self._unstick()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Feed the parser and bound what it keeps of a head."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self.head_most:
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
        if self._fields_bytes > self.head_most:
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
            if self._discarded_bytes > MAX_DISCARD:
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
