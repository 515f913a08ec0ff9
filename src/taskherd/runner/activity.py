"""Find out from /proc whether a silent agent is working: whether it uses CPU, or something runs that it started.

One scan of /proc serves all agents of the runner. ``docs/runner.md`` states the rules and their limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskherd.runner import process_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.runner.workspaces.folders import RunFolder

BUSY_CPU = 0.05
"""Share of one core that an agent and its processes must use together to count as working."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at a silent agent, and the minimum time between two scans of /proc."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_TIMED_SLEEP = "nanosleep"
"""Part of the name of the kernel function in which sleep(1) waits; see wchan in proc(5)."""
_CHILD_WAIT = "do_wait"


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """The processes of this machine at one time: the parent and the used CPU ticks of each, with reaped children."""

    taken_at: float
    parents: dict[int, int]
    ticks: dict[int, int]

    def below(self, root: int) -> set[int]:
        """Return the descendants of a process."""
        return process_table.descendants_in(self.parents, root)


def scan() -> ProcessTable:
    """Read the processes of this machine, without zombies."""
    taken_at = time.monotonic()
    parents, ticks = {}, {}
    for pid, fields in process_table.processes():
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ProcessTable(taken_at, parents, ticks)


class ProcessMonitor:
    """The latest scan of /proc, shared by all agents of a runner."""

    def __init__(self) -> None:
        self._table: ProcessTable | None = None
        self._lock = asyncio.Lock()

    async def table(self) -> ProcessTable:
        """Return a table that is at most ``LOOK_INTERVAL`` old."""
        async with self._lock:
            if self._table is None or time.monotonic() - self._table.taken_at >= LOOK_INTERVAL:
                self._table = await asyncio.to_thread(scan)
            return self._table


class ActivityWatch:
    """The looks at one silent agent."""

    def __init__(self, monitor: ProcessMonitor, folder: RunFolder) -> None:
        self._monitor = monitor
        self._folder = folder
        self._last: tuple[float, int] | None = None

    def reset(self) -> None:
        """Forget the last look, since the agent was not silent."""
        self._last = None

    async def is_working(self) -> bool | None:
        """Return whether the agent is working, or None if that takes another look."""
        table = await self._monitor.table()
        try:
            record = json.loads(self._folder.started.read_text())
            shim_pid, agent = record["pid"], record["agent"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        pids = table.below(shim_pid)
        ticks = sum(table.ticks.get(pid, 0) for pid in {shim_pid, *pids})
        last, self._last = self._last, (table.taken_at, ticks)
        if last is None or last[0] >= table.taken_at:
            self._last = last or self._last
            return None
        share = (ticks - last[1]) / _TICKS_PER_SECOND / (table.taken_at - last[0])
        if record.get("sandboxed"):
            agent = inside_sandbox(table.parents, agent)
        return share >= BUSY_CPU or any(_runs(pid) for pid in table.below(agent))


def sandbox_around(parents: Mapping[int, int], outermost: int) -> set[int]:
    """Return the two processes of bubblewrap: the outermost, and the first process in its pid namespace."""
    return {outermost, *(pid for pid, parent in parents.items() if parent == outermost)}


def inside_sandbox(parents: Mapping[int, int], outermost: int) -> int:
    """Return the agent itself, the oldest child of the first process in the namespace, or ``outermost``."""
    around = sandbox_around(parents, outermost)
    return min((pid for pid, parent in parents.items() if parent in around and pid not in around), default=outermost)


def _runs(pid: int) -> bool:
    """Return whether a process that the agent started runs, rather than waits for requests or for its own children.

    One in a timed sleep runs. Otherwise one whose stdin is a pipe or socket can be asked for something, or be the
    agent itself behind a wrapper, so it counts as waiting; one with any other stdin runs.
    """
    with suppress(OSError):
        wait_channel = _read(f"/proc/{pid}/wchan")
        if _TIMED_SLEEP in wait_channel:
            return True
        if wait_channel == _CHILD_WAIT:
            return False
    try:
        mode = os.stat(f"/proc/{pid}/fd/0").st_mode  # noqa: PTH116 - for each process below a silent agent
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - its stdin is closed, or it has exited
    except OSError:
        return False
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - as above
        return file.read()
