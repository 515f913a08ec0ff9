"""Read an agent's output from the shim's segments and split it into lines, in bounded memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.open_files import raise_if_exhausted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_LINE = MAX_CONTENT_BYTES - 64
"""Maximum number of bytes kept of a line; they fit a log entry together with the note about the rest."""
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|$)"  # CSI: colours, cursor moves
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles, links
    r"|[PX^_][^\x1b]*(?:\x1b\\|$)"  # DCS, SOS, PM, APC
    r"|[ -/]+[0-~]|[0-~]|$)"  # all others
)
"""Terminal control sequences, complete or cut; see ECMA-35, ECMA-48 section 5.4 and xterm's documentation."""


class LineSplitter:
    """A splitter of bytes into lines; bytes beyond ``MAX_LINE`` are dropped and counted."""

    def __init__(self, skipped: int = 0) -> None:
        """Continue a line of which ``skipped`` bytes were dropped already, or start a new one if that is 0."""
        self._buffer = bytearray()
        self.skipped = skipped

    @property
    def pending(self) -> int:
        """Number of buffered bytes of an incomplete line."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the lines that end in this chunk, and the kept part of one that is too long."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield from self._append(chunk[start:end])
            yield self.flush()
            start = end + 1
        yield from self._append(chunk[start:])

    def flush(self) -> str:
        """Return the incomplete line as if it ended here."""
        note = f"… ({self.skipped} more bytes of this line were dropped)"
        text = note if self.skipped else self._buffer.decode(errors="replace")
        self._buffer.clear()
        self.skipped = 0
        return rendered_line(text)

    def _append(self, piece: bytes) -> Iterator[str]:
        if self.skipped:
            self.skipped += len(piece)
            return
        kept = piece[: MAX_LINE - len(self._buffer)]
        self._buffer += kept
        if len(kept) < len(piece):
            yield rendered_line(self._buffer.decode(errors="replace")) + "…"
            self._buffer.clear()
            self.skipped = len(piece) - len(kept)


def rendered_line(text: str) -> str:
    """Return a line as a terminal would finally display it: without colours, cursor moves and overwritten text."""
    return _ESCAPE.sub("", text).removesuffix("\r").rpartition("\r")[2]


def joined_lines(lines: Iterable[str], limit: int) -> Iterator[str]:
    """Join lines that arrived together into texts of up to ``limit`` bytes; a longer line is a text of its own."""
    group: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode(errors="replace")) + 1
        if group and size + length > limit:
            yield "\n".join(group)
            group, size = [], 0
        group.append(line)
        size += length
    if any(group):
        yield "\n".join(group)


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Bytes of the output, the number of ``missing`` bytes before them, and the offset of their end."""

    data: bytes
    missing: int
    end: int


def read(folder: Path, offset: int, limit: int) -> OutputChunk:
    """Return up to ``limit`` bytes after ``offset`` from the segments in ``folder``; none if there are no more yet.

    Raise ``OSError`` if this process has no file descriptor left: what cannot be read now is not missing.
    """
    starts = sorted(int(name) for name in _names(folder))
    for index, start in enumerate(starts):
        next_start = starts[index + 1] if index + 1 < len(starts) else None
        if next_start is not None and next_start <= offset:
            continue
        begin = max(offset, start)
        data = _read(f"{folder}/{start:020d}", begin - start, limit)
        if data or next_start is None:
            return OutputChunk(data, begin - offset if data else 0, begin + len(data) if data else offset)
        if begin < next_start:  # the rest of this segment could not be written
            return OutputChunk(b"", next_start - offset, next_start)
    return OutputChunk(b"", 0, offset)


def discard(folder: Path, offset: int) -> None:
    """Delete the segments that end at ``offset`` or before, except the last one."""
    starts = sorted(int(name) for name in _names(folder))
    for start, end in pairwise(starts):
        if end <= offset:
            (folder / f"{start:020d}").unlink(missing_ok=True)


def size(folder: Path) -> int:
    """Return the offset at which the output ends for now."""
    names = sorted(_names(folder))
    if not names:
        return 0
    try:
        return int(names[-1]) + (folder / names[-1]).stat().st_size
    except OSError:
        return int(names[-1])


def tail(folder: Path, limit: int) -> str:
    """Return the end of the output, at most ``limit`` bytes, as text."""
    end = size(folder)
    text = b""
    while (chunk := read(folder, max(0, end - limit) + len(text), limit)).data and len(text) < limit:
        text += chunk.data
    return text.decode(errors="replace")


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208 - five times a second for each agent
    except OSError as error:
        raise_if_exhausted(error)
        return []


def _read(path: str, position: int, limit: int) -> bytes:
    """Return up to ``limit`` bytes of a segment; one that has no more is not opened, which takes most of the time."""
    try:
        if os.stat(path).st_size <= position:  # noqa: PTH116 - five times a second for each agent
            return b""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the same
            file.seek(position)
            return file.read(limit)
    except OSError as error:
        raise_if_exhausted(error)
        return b""
