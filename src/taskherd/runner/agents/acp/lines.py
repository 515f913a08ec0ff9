"""Whole lines of a protocol, in both directions, through the files that a shim keeps.

What the agent writes is read from the segments of its output, and only a whole line counts as read. What it is given
goes through the files in ``stdin/``; ``line_feeder.py`` says how.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from taskherd.runner.agents import output
from taskherd.runner.line_feeder import DONE, FAILED, OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskherd.runner.workspaces.folders import RunFolder

MAX_LINE: Final = 4 * 1024 * 1024
"""Maximum number of bytes of a line that is read; a longer one is skipped as a whole."""
READ_BYTES: Final = 256 * 1024


class LineReader:
    """A reader of the agent's lines, from a line boundary on.

    ``offset`` is the end of the last line that was yielded, or of the skipped part of a line that is too long.
    """

    def __init__(self, folder: RunFolder, offset: int, *, skipping: bool) -> None:
        self._folder = folder
        self.offset = offset
        self.skipping = skipping
        """True in the middle of a line that is too long."""
        self.line_bytes = 0
        """Size of the line that was yielded last, without its end; 0 if it was skipped."""
        self._buffer = bytearray()

    def read(self) -> Iterator[bytes | None]:
        """Yield the lines that a chunk of output completes, without line ends; None stands for one that was skipped.

        ``offset`` is advanced before each is yielded.
        """
        chunk = output.read(self._folder.output, self.position, READ_BYTES)
        if chunk.missing:  # the disk was full when the agent ended
            self.offset += len(self._buffer) + chunk.missing
            self._buffer.clear()
            self.skipping = True
        start = 0
        while (end := chunk.data.find(b"\n", start)) >= 0:
            self._buffer += chunk.data[start:end]
            self.offset += len(self._buffer) + 1
            line = None if self.skipping or len(self._buffer) > MAX_LINE else bytes(self._buffer)
            self.skipping = False
            self.line_bytes = len(line or b"")
            self._buffer.clear()
            yield line
            start = end + 1
        self._buffer += chunk.data[start:]
        if self.skipping or len(self._buffer) > MAX_LINE:
            self.skipping = True
            self.offset += len(self._buffer)
            self._buffer.clear()

    @property
    def position(self) -> int:
        """The end of what was read, also of a line that is not complete yet."""
        return self.offset + len(self._buffer)

    @property
    def has_more(self) -> bool:
        """True if there is output that was not read yet."""
        return output.size(self._folder.output) > self.position

    def leave_out(self, kept: int) -> int:
        """Go on with the lines in the last ``kept`` bytes; return the number of bytes that are left out.

        No more output may come.
        """
        before, position = self.offset, output.size(self._folder.output) - kept
        if position <= self.position:
            return 0
        while data := (chunk := output.read(self._folder.output, position, READ_BYTES)).data:
            end = data.find(b"\n") + 1
            position = chunk.end - len(data) + end if end else chunk.end
            if end:
                break
        self.offset, self.skipping = position, False
        self._buffer.clear()
        return position - before

    def discard_read(self) -> None:
        """Delete the segments before ``offset``, so that the shim has room for more."""
        output.discard(self._folder.output, self.offset)


class LineWriter:
    """The lines for the agent's stdin, by their numbers."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def submit(self, number: int, line: bytes) -> None:
        """Hand a line to the shim. Raise ``OSError`` if it cannot be written to disk."""
        temporary = self._folder.stdin / "new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opened with its mode
            file.write(line + b"\n")
        temporary.rename(self._folder.stdin / str(number))
        self.wake_shim()

    def wake_shim(self) -> None:
        """Tell the shim that there may be a line; it also looks when the agent has read something."""
        with suppress(OSError):
            descriptor = os.open(self._folder.input, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"\n")
            finally:
                os.close(descriptor)

    def endings(self) -> dict[int, bool]:
        """Return the lines that have ended: True if the agent was given all of it.

        This, ``known`` and ``content`` raise ``OSError`` if that cannot be found out, as without a file descriptor.
        """
        return {
            int(name.partition(".")[0]): name.endswith(DONE) for name in self._names() if name.endswith((DONE, FAILED))
        }

    def known(self) -> set[int]:
        """Return the lines that were submitted and not forgotten."""
        return {int(name.partition(".")[0]) for name in self._names() if name[0].isdigit()}

    def content(self, number: int) -> bytes:
        """Return a line that the shim has begun to write, or b"" if it is no longer there."""
        for suffix in (OPEN, DONE, FAILED):
            with suppress(FileNotFoundError, NotADirectoryError):
                return (self._folder.stdin / f"{number}{suffix}").read_bytes()
        return b""

    def take_back(self, number: int) -> bool:
        """Remove a line unless the shim has begun to write it; return whether it was removed."""
        try:
            (self._folder.stdin / str(number)).unlink()
        except OSError:
            return False
        return True

    def forget(self, number: int) -> None:
        """Delete what is kept of a line that has ended."""
        for suffix in (DONE, FAILED):
            (self._folder.stdin / f"{number}{suffix}").unlink(missing_ok=True)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder.stdin)  # noqa: PTH208 - several times a second for each agent
        except (FileNotFoundError, NotADirectoryError):  # the agent has deleted the folder of its run
            return []
