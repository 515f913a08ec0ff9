"""Write whole lines to an agent's stdin, and acknowledge each; the runner makes the files (ADR 43).

A line is a file in ``stdin/``, named by its number. Its name says what became of it:

- ``N``: the runner wants it written (it creates the file under another name, and renames it)
- ``N.open``: the first byte may have been written
- ``N.done``: all of it was written
- ``N.failed``: the agent has closed its stdin, and has not been given all of it

The runner may take back ``N`` by deleting it, and deletes the file of a line whose end it has recorded. So a line is
written once, however many runners come and go, and each knows what became of the lines of the one before it.

The shim imports this module, so it uses only parts of the standard library that need little memory.
"""

from __future__ import annotations

import os

DONE, FAILED, OPEN = ".done", ".failed", ".open"


class LineFeeder:
    """The writer of lines to the pipe ``descriptor``, which does not block."""

    def __init__(self, folder: str, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._name = ""
        self._unwritten = memoryview(b"")
        self._closed = False

    @property
    def is_blocked(self) -> bool:
        """True while a line waits until the agent reads from its stdin."""
        return bool(self._unwritten)

    def feed(self) -> None:
        """Write as much of the waiting lines as the agent takes now."""
        try:
            while self._unwritten or self._next():
                if not self._write():
                    return
                self._rename(OPEN, FAILED if self._closed else DONE)
        except OSError:  # the folder was deleted
            return

    def _write(self) -> bool:
        """Write the line as far as the agent takes it, and return whether that was its end."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]
        except BlockingIOError:
            return False
        except OSError:  # no process has the other end open
            self._closed = True
            self._unwritten = memoryview(b"")
        return True

    def _next(self) -> bool:
        """Take the waiting line with the lowest number, and return whether there is one."""
        waiting = [name for name in os.listdir(self._folder) if name.isdigit()]
        for name in sorted(waiting, key=int):
            self._name = name
            try:
                self._rename("", OPEN)
                with open(f"{self._folder}/{name}{OPEN}", "rb") as file:
                    self._unwritten = memoryview(b"" if self._closed else file.read())
            except FileNotFoundError:  # taken back
                continue
            if self._unwritten:
                return True
            self._rename(OPEN, FAILED)
        return False

    def _rename(self, before: str, after: str) -> None:
        path = f"{self._folder}/{self._name}"
        os.rename(path + before, path + after)
