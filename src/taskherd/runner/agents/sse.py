"""Server-sent events, cut from a stream of bytes, in a bounded piece of memory.

See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENT_MOST = 1024 * 1024
"""Bytes of one event; a larger one is dropped, and counted."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    content: str


class Events:
    """Cuts bytes into events."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_return = False
        self._name = ""
        self._parts: list[str] = []
        self._size = 0
        self.dropped = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in this chunk."""
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_return = chunk.endswith(b"\r")
        pieces = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for place, piece in enumerate(pieces):
            self._hold(piece)
            if place < len(pieces) - 1:
                yield from self._end_of_line()

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= EVENT_MOST:
            self._line += piece

    def _end_of_line(self) -> Iterator[Event]:
        line = self._line.decode(errors="replace")
        self._line.clear()
        if line:
            self._field(line)
        elif self._size == 0 or self._parts or self._name or self._size > EVENT_MOST:
            yield from self._dispatch()

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._parts.append(value)

    def _dispatch(self) -> Iterator[Event]:
        name, parts, size = self._name, self._parts, self._size
        self._name, self._parts, self._size = "", [], 0
        if size > EVENT_MOST:
            self.dropped += 1
        elif parts:
            yield Event(name or "message", "\n".join(parts))
