"""An incremental parser of server-sent events over bytes, with a maximum event size.

It follows https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Default maximum size of an event, in bytes."""
_BOM: Final = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``id`` is the stream's last event ID when it was dispatched, "" if there was none yet."""

    type: str
    data: str
    id: str


class Parser:
    """The parser of one stream.

    Args:
        max_event_bytes: maximum size of an event in bytes; a larger one is dropped and counted in ``dropped``.
        last_event_id: the ID that was sent as ``Last-Event-ID``, valid until the stream sets another one.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        """The ``Last-Event-ID`` with which to resume after the events so far; an event without data sets it too."""
        self.retry_ms: int | None = None
        """The reconnection time that the server requested, in milliseconds."""
        self.comments = 0
        self.dropped = 0
        self._max_bytes = max_event_bytes
        self._id = last_event_id
        self._type = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._line = bytearray()
        self._line_is_empty = True
        self._too_large = False
        self._after_cr = False
        self._first_line = True

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that end in ``chunk``; exhaust the iterator before the next call.

        An incomplete event at the end of the stream is never dispatched, as the standard requires.
        """
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        *complete, remainder = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in complete:
            self._append(piece)
            event = self._end_line()
            if event is not None:
                yield event
        self._append(remainder)

    def _append(self, piece: bytes) -> None:
        if not piece:
            return
        self._line_is_empty = False
        if self._too_large or self._data_bytes + len(self._line) + len(piece) > self._max_bytes:
            self._too_large = True
            self._line.clear()
        else:
            self._line += piece

    def _end_line(self) -> Event | None:
        line = bytes(self._line)
        is_empty, self._line_is_empty = self._line_is_empty, True
        self._line.clear()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
            is_empty = is_empty or (not line and not self._too_large)
        if is_empty:
            return self._dispatch()
        if not self._too_large:
            self._process_field(line)
        return None

    def _process_field(self, line: bytes) -> None:
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
                self._data_bytes += len(line) + 1
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self.retry_ms = int(value)
            case _:
                pass  # the standard ignores any other field

    def _dispatch(self) -> Event | None:
        kind, data, too_large = self._type, self._data, self._too_large
        self._type, self._data, self._data_bytes, self._too_large = "", [], 0, False
        self.last_event_id = self._id
        if too_large:
            self.dropped += 1
            return None
        if not data:
            return None
        return Event(kind or "message", "\n".join(data), self._id)
