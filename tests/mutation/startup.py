"""What each Python process of a room does first: measure coverage, if the folder for it exists.

A copy of this file is imported at the start of the room's Python. The lines that a process executes count for the test
that was running when it started. Tests kill many of these processes, so each writes down twice a second what it has
executed.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from coverage import Coverage

ROOM = Path(sys.prefix).parent
MEASURED = ROOM / "coverage"
CURRENT = MEASURED / "current"
"""The file with the id of the running test. It exists from the first test on."""
SUFFIX = ".part"
EVERY = 0.5
"""Seconds between two writes."""
LAST_WRITE_WITHIN = 2.0
"""Seconds that the last write waits for another one to end."""


def measure() -> None:
    """Start to measure, until the end of this process."""
    import coverage  # noqa: PLC0415 - only where coverage is measured

    config = str(MEASURED / "rc")
    if not CURRENT.exists():  # the process that runs the tests
        coverage.Coverage(str(MEASURED / ".coverage"), data_suffix=True, auto_data=True, config_file=config).start()
        return
    context = CURRENT.read_text(encoding="utf-8")
    process = _Process(coverage.Coverage(None, config_file=config, context=context))
    process.start()
    os.register_at_fork(after_in_child=process.start_in_fork)


class _Process:
    """A measured process that may be killed at any time."""

    def __init__(self, measured: Coverage) -> None:
        self._measured = measured
        self._written = b""
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write_regularly, daemon=True)
        self._exit = os._exit

    def start(self) -> None:
        self._measured.start()
        atexit.register(self._end)
        os._exit = self._end_and_exit
        self._writer.start()

    def start_in_fork(self) -> None:
        """Go on in a fork, which has no threads but the one that forked."""
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write_regularly, daemon=True)
        self._writer.start()

    def _write_regularly(self) -> None:
        while not self._ending.wait(EVERY):
            self._write()

    def _end(self) -> None:
        """End the thread, which would crash while the interpreter ends, and write for the last time."""
        self._ending.set()
        self._writer.join(LAST_WRITE_WITHIN)
        self._write()

    def _write(self) -> None:
        """Write down what was executed so far."""
        content = self._measured.get_data().dumps()
        if content != self._written:
            self._written = content
            target = MEASURED / f"{os.getpid()}-{id(self)}{SUFFIX}"
            unfinished = target.with_suffix(".tmp")
            unfinished.write_bytes(content)
            unfinished.replace(target)

    def _end_and_exit(self, status: int) -> NoReturn:
        self._end()
        self._exit(status)


if __name__ == "mutation_startup" and MEASURED.is_dir():
    measure()
