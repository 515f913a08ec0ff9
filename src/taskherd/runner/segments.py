"""Write an agent's output to files of limited size and number; the shim does it, so only with the standard library."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class SegmentWriter:
    """The agent's output in segment files named by their start offset; the oldest is deleted to make room.

    Bytes that cannot be written (the disk is full) are dropped and show as a gap between two segments.
    """

    def __init__(self, folder: Path, segment_bytes: int, max_segments: int) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._max_segments = max_segments
        self._paths: list[Path] = []
        self._file: int | None = None
        self._size = 0
        self.total = 0
        self.dropped = 0

    def write(self, chunk: bytes) -> None:
        """Append a chunk, or count what cannot be written as dropped."""
        remaining = memoryview(chunk)
        try:
            while remaining:
                if self._file is None or self._size >= self._segment_bytes:
                    self._open_next()
                assert self._file is not None
                written = os.write(self._file, remaining)
                self._size += written
                self.total += written
                remaining = remaining[written:]
        except OSError:
            self.total += len(remaining)
            self.dropped += len(remaining)
            self._close()

    def _open_next(self) -> None:
        self._close()
        while len(self._paths) >= self._max_segments:
            self._paths.pop(0).unlink(missing_ok=True)
        path = self._folder / f"{self.total:020d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._paths.append(path)
        self._size = 0

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None
