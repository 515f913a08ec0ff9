"""Write an agent's output to files of limited size and number.

The shim does it, so this module uses only parts of the standard library that need little memory.
"""

from __future__ import annotations

import os


class SegmentWriter:
    """An agent's output in segment files named by their start offset.

    ``keeps_unread`` decides what happens at ``max_segments``: if it is False, the oldest segment is deleted. If it is
    True, nothing is: the reader deletes the segments that it has read, and until then ``write`` takes no more.
    Without it, bytes that cannot be written (the disk is full) are dropped and show as a gap between two segments.
    """

    def __init__(self, folder: str, segment_bytes: int, max_segments: int, *, keeps_unread: bool = False) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._max_segments = max_segments
        self._keeps_unread = keeps_unread
        self._paths: list[str] = []
        self._file = -1
        self._size = 0
        self.total = 0
        self.dropped = 0

    def write(self, chunk: bytes, *, beyond_limit: bool = False) -> bytes:
        """Append a chunk. Return what has to be written later; nothing, unless unread output is kept.

        ``beyond_limit``: there is no later, because the agent has ended; what cannot be written is dropped and counted.
        """
        remaining = memoryview(chunk)
        try:
            while remaining:
                is_full = self._file < 0 or self._size >= self._segment_bytes
                if is_full and not self._open_next(beyond_limit=beyond_limit):
                    return bytes(remaining)
                written = os.write(self._file, remaining[: self._segment_bytes - self._size])
                self._size += written
                self.total += written
                remaining = remaining[written:]
        except OSError:
            if self._keeps_unread and not beyond_limit:
                return bytes(remaining)
            self.total += len(remaining)
            self.dropped += len(remaining)
            self._close()
        return b""

    def _open_next(self, *, beyond_limit: bool) -> bool:
        """Open the next segment, and return whether there is room for it."""
        if self._keeps_unread:
            while self._paths and not os.path.exists(self._paths[0]):
                self._paths.pop(0)
            if len(self._paths) >= self._max_segments and not beyond_limit:
                return False
        self._close()
        while not self._keeps_unread and len(self._paths) >= self._max_segments:
            try:
                os.unlink(self._paths.pop(0))
            except FileNotFoundError:
                continue
        path = f"{self._folder}/{self.total:020d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._paths.append(path)
        self._size = 0
        return True

    def _close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            try:
                os.close(file)
            except OSError:
                return
