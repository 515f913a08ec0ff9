"""From what an agent wrote to lines: read from the shim's segments, however large, in a bounded piece of memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.messages.limits import CONTENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE = CONTENT_BYTES - 64
"""Bytes of a line that are kept: so many fit a log entry, with a word on what is missing."""
_ESCAPE = re.compile(r"\x1b(?:\[[0-9:;<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Control sequences of terminals, as ECMA-48 section 5.4 and xterm have them."""


class LineSplitter:
    """Cuts bytes into lines. It never holds more than one line's bound; what is longer is counted and let go."""

    def __init__(self, skipped: int = 0) -> None:
        """`skipped`: so many bytes of a line that is too long were let go before, and it goes on; 0: none is."""
        self._held = bytearray()
        self.skipped = skipped

    @property
    def pending(self) -> int:
        """Bytes of a line that has begun and not ended."""
        return len(self._held)

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that end in this chunk, and the beginning of one that is too long."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield from self._hold(chunk[start:end])
            yield self.flush()
            start = end + 1
        yield from self._hold(chunk[start:])

    def flush(self) -> str:
        """The line that has begun, as if it ended here."""
        more = f"… ({self.skipped} more bytes in that line)"
        text = more if self.skipped else self._held.decode(errors="replace")
        self._held.clear()
        self.skipped = 0
        return rendered_line(text)

    def _hold(self, piece: bytes) -> Iterator[str]:
        if self.skipped:
            self.skipped += len(piece)
            return
        kept = piece[: MAX_LINE - len(self._held)]
        self._held += kept
        if len(kept) < len(piece):
            yield rendered_line(self._held.decode(errors="replace")) + "…"
            self._held.clear()
            self.skipped = len(piece) - len(kept)


def rendered_line(text: str) -> str:
    """A line as a terminal shows it in the end: without colours and cursor moves, and what was overwritten is gone."""
    return _ESCAPE.sub("", text).removesuffix("\r").rpartition("\r")[2]


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Bytes of the output; before them `missing` were lost, `end` is the offset after them."""

    data: bytes
    missing: int
    end: int


def read(folder: Path, offset: int, limit: int) -> OutputChunk:
    """What follows `offset` in the segments of `folder`, up to `limit` bytes; nothing if there is no more yet."""
    starts = sorted(int(name) for name in _names(folder))
    for place, start in enumerate(starts):
        after = starts[place + 1] if place + 1 < len(starts) else None
        if after is not None and after <= offset:
            continue
        begin = max(offset, start)
        data = _read(folder / f"{start:020d}", begin - start, limit)
        if data or after is None:
            return OutputChunk(data, begin - offset if data else 0, begin + len(data) if data else offset)
        if begin < after:  # the rest of this segment could not be written
            return OutputChunk(b"", after - offset, after)
    return OutputChunk(b"", 0, offset)


def size(folder: Path) -> int:
    """The offset at which the output ends for now."""
    names = sorted(_names(folder))
    if not names:
        return 0
    try:
        return int(names[-1]) + (folder / names[-1]).stat().st_size
    except OSError:
        return int(names[-1])


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208 - five times a second for each agent
    except OSError:
        return []


def _read(path: Path, at: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(limit)
    except OSError:
        return b""
