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
import time
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
    os.register_at_fork(after_in_child=process.write_regularly)


class _Process:
    """A measured process that may be killed at any time."""

    def __init__(self, measured: Coverage) -> None:
        self._measured = measured
        self._written = b""
        self._exit = os._exit

    def start(self) -> None:
        self._measured.start()
        atexit.register(self.write)
        os._exit = self._write_and_exit
        self.write_regularly()

    def write_regularly(self) -> None:
        """Start the thread that writes; a fork has none."""
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            time.sleep(EVERY)
            self.write()

    def write(self) -> None:
        """Write down what was executed so far."""
        content = self._measured.get_data().dumps()
        if content != self._written:
            self._written = content
            target = MEASURED / f"{os.getpid()}-{id(self)}{SUFFIX}"
            unfinished = target.with_suffix(".tmp")
            unfinished.write_bytes(content)
            unfinished.replace(target)

    def _write_and_exit(self, status: int) -> NoReturn:
        self.write()
        self._exit(status)


if __name__ == "mutation_startup" and MEASURED.is_dir():
    measure()
