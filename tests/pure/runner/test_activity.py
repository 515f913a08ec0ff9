"""Whether a silent agent is working, from two looks at its processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner import activity
from taskherd.runner.activity import ActivityWatch, ProcessMonitor, ProcessTable, inside_sandbox, sandbox_around
from taskherd.runner.workspaces.folders import RunFolder

SHIM, AGENT, CHILD, STRANGER = 5_000_001, 5_000_002, 5_000_003, 5_000_004
"""Processes that do not exist: there are fewer pids."""
SECOND = os.sysconf("SC_CLK_TCK")


class Monitor:
    """Scans of /proc that a test makes."""

    def __init__(self) -> None:
        self.latest = ProcessTable(0, {}, {})

    async def table(self) -> ProcessTable:
        """Return the latest one."""
        return self.latest

    def scan(self, taken_at: float, **ticks: int) -> None:
        """Note how many ticks each process has used."""
        parents = {SHIM: 1, AGENT: SHIM, CHILD: AGENT, STRANGER: 1}
        used = {"shim": SHIM, "agent": AGENT, "child": CHILD, "stranger": STRANGER}
        self.latest = ProcessTable(taken_at, parents, {pid: ticks.get(name, 0) for name, pid in used.items()})


@pytest.fixture
def monitor() -> Monitor:
    """Return a monitor that has seen nothing."""
    return Monitor()


@pytest.fixture
def watch(tmp_path: Path, monitor: Monitor) -> ActivityWatch:
    """Return the looks at an agent that has started."""
    folder = RunFolder(tmp_path)
    folder.started.write_text(json.dumps({"pid": SHIM, "agent": AGENT}))
    given: Any = monitor
    return ActivityWatch(given, folder)


@pytest.mark.parametrize(
    ("used", "works"),
    [
        ({"agent": SECOND // 10}, True),
        ({"agent": SECOND // 10 - 1}, False),
        ({"shim": SECOND // 20, "child": SECOND // 20}, True),
        ({"stranger": 10 * SECOND}, False),
        ({}, False),
    ],
)
async def test_who_uses_a_twentieth_of_a_core_works(
    monitor: Monitor, watch: ActivityWatch, used: dict[str, int], *, works: bool
) -> None:
    """Between two looks, with all of its processes."""
    monitor.scan(100.0)
    assert await watch.is_working() is None
    monitor.scan(102.0, **used)
    assert await watch.is_working() is works
    monitor.scan(104.0, **used)
    assert await watch.is_working() is False


async def test_two_looks_are_at_different_times(monitor: Monitor, watch: ActivityWatch) -> None:
    """The first one is forgotten when the agent has written something."""
    monitor.scan(100.0)
    for _ in range(2):
        assert await watch.is_working() is None
    monitor.scan(101.0, agent=SECOND)
    assert await watch.is_working()
    watch.reset()
    monitor.scan(102.0, agent=2 * SECOND)
    assert await watch.is_working() is None


@pytest.mark.parametrize(("sandboxed", "runs"), [(False, True), (True, False)])
async def test_a_process_that_runs_is_work(
    monitor: Monitor, watch: ActivityWatch, monkeypatch: pytest.MonkeyPatch, *, sandboxed: bool, runs: bool
) -> None:
    """If it is one that the agent has started; what is around it in a sandbox is not."""
    watch._folder.started.write_text(json.dumps({"pid": SHIM, "agent": AGENT, "sandboxed": sandboxed}))
    monkeypatch.setattr(activity, "_runs", lambda pid: pid == CHILD)
    parents = {SHIM: 1, AGENT: SHIM, 5_000_005: AGENT, CHILD: 5_000_005}
    found = []
    for taken_at in (100.0, 101.0):
        monitor.latest = ProcessTable(taken_at, parents, {})
        found.append(await watch.is_working())
    assert found == [None, runs]


def test_the_agent_is_the_oldest_process_inside_of_its_sandbox() -> None:
    """Below the two of bubblewrap; without one there, it is the outermost itself."""
    parents = {10: 1, 11: 10, 15: 11, 14: 11, 16: 14, 3: 1}
    assert sandbox_around(parents, 10) == {10, 11}
    assert inside_sandbox(parents, 10) == 14
    assert inside_sandbox({10: 1, 11: 10}, 10) == 10


async def test_scans_are_shared_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many agents are looked at; a scan shows this process, and no zombies."""
    monitor, clock = ProcessMonitor(), [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    latest = None
    for passed, is_new in ((0.0, True), (0.99, False), (0.01, True), (0.5, False)):
        clock[0] += passed
        table, same = await asyncio.gather(monitor.table(), monitor.table())
        assert table is same
        assert (table is not latest) == is_new
        latest = table
    table = await monitor.table()
    assert table.parents[os.getpid()] == os.getppid()
    assert table.ticks[os.getpid()] > 0


def test_a_process_that_can_be_asked_for_something_waits() -> None:
    """Its stdin is a pipe or a socket; one with another, or without any, runs, unless it has exited."""
    with (
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as asked,
        subprocess.Popen(["/bin/sh", "-c", "kill -STOP $$"], stdin=subprocess.DEVNULL) as runs,
        subprocess.Popen(["/bin/sh", "-c", "exec <&-; kill -STOP $$"]) as closed,
    ):
        for child in (runs, closed):
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert [activity._runs(child.pid) for child in (asked, runs, closed)] == [False, True, True]
        for child in (asked, runs, closed):
            child.kill()
            child.wait()
        assert [activity._runs(child.pid) for child in (asked, runs, closed)] == [False] * 3
