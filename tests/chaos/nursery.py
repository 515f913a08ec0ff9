"""Processes of taskherd that start at once, because they are forked from one that has imported everything.

A campaign kills hundreds of them, and importing a worker takes seconds of CPU time. ``python -m tests.chaos.nursery``
reads a JSON line with ``command`` and ``environment`` for each process, and answers with its pid and its exit status.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib import import_module

from taskherd.cli.runner import runner
from taskherd.cli.worker import worker
from taskherd.runner import privileges

COMMANDS = {"worker": worker, "runner": runner}
IMPORTED = ("taskherd.worker.app", "taskherd.runner.app", "taskherd.runner.agents.acp.follower")
"""What the commands would import when they run."""
PR_SET_PDEATHSIG = 1


class Nursery:
    """A process that forks one process of taskherd after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._pid = 0

    async def start(self, command: str, environment: Mapping[str, str]) -> asyncio.Task[int]:
        """Start a process, and return the task that waits for its exit status; a signal's number is negative."""
        assert self._process.stdin is not None
        line = json.dumps({"command": command, "environment": dict(environment)})
        self._process.stdin.write(f"{line}\n".encode())
        self._pid = await self._number()
        return asyncio.create_task(self._number())

    def kill(self) -> None:
        """Kill the process that runs."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)

    async def _number(self) -> int:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the nursery has died"
        return int(line)


@asynccontextmanager
async def open_nursery() -> AsyncIterator[Nursery]:
    """Start a nursery; its end is that of the process that it has started last."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos.nursery", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Nursery(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _become(command: str, environment: Mapping[str, str]) -> None:
    """Run a command of taskherd in this process, which has just been forked."""
    try:
        privileges.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ.clear()
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        COMMANDS[command]()
    except BaseException:  # noqa: BLE001 - it must not return into the nursery's loop
        traceback.print_exc()
    finally:
        os._exit(1)


def main() -> None:
    """Fork a process for each line of stdin, one after the other."""
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(**wanted)
        _tell(pid)
        _, status = os.waitpid(pid, 0)
        _tell(os.waitstatus_to_exitcode(status))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
