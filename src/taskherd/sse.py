"""An incremental, bounded parser of server-sent events, over bytes.

It follows https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT_BYTES: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``id`` is the last event ID of the stream when the event was dispatched, "" before there was one."""

    type: str
    data: str
    id: str


class Parser:
    """Parses one stream.

    Args:
        max_event_bytes: bytes of one event; a larger one is dropped and counted in ``dropped``.
        last_event_id: the ID that was sent as ``Last-Event-ID``, which holds until the stream sets another one.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        """What to send as ``Last-Event-ID`` to go on after the events so far; an event without data sets it too."""
        self.retry_ms: int | None = None
        """Milliseconds that the server asks to wait before reconnecting."""
        self.comments = 0
        self.dropped = 0
        self._max_bytes = max_event_bytes
        self._id = last_event_id
        self._type = ""
        self._data: list[str] = []
        self._held_bytes = 0
        self._line = bytearray()
        self._line_is_empty = True
        self._too_large = False
        self._after_cr = False
        self._first_line = True

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that end in ``chunk``; exhaust the iterator before the next call.

        What the end of the stream cuts off is never dispatched, as the standard has it.
        """
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in ended:
            self._append(piece)
            event = self._end_line()
            if event is not None:
                yield event
        self._append(rest)

    def _append(self, piece: bytes) -> None:
        if not piece:
            return
        self._line_is_empty = False
        if self._too_large or self._held_bytes + len(self._line) + len(piece) > self._max_bytes:
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
            self._take_field(line)
        return None

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
                self._held_bytes += len(line) + 1
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self.retry_ms = int(value)
            case _:
                pass  # the standard ignores any other field

    def _dispatch(self) -> Event | None:
        kind, data, too_large = self._type, self._data, self._too_large
        self._type, self._data, self._held_bytes, self._too_large = "", [], 0, False
        self.last_event_id = self._id
        if too_large:
            self.dropped += 1
            return None
        if not data:
            return None
        return Event(kind or "message", "\n".join(data), self._id)
