from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from operator import eq, le
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from taskherd.broker.publisher import OutgoingMessage
from tests.chaos import clocks, workload
from tests.chaos.clocks import DatabaseClock
from tests.chaos.figures import Figures
from tests.chaos.test_clocks import jumps
from tests.harness.chaos import ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(1800)]
HOUR = timedelta(hours=1)
LOST_AFTER, SLACK = 6.0, 5.0
SETTINGS = {"agent_lost_after": f"{LOST_AFTER}", "agent_connect_timeout": f"{LOST_AFTER}"}
HEARTBEATS_PER_MESSAGE = 100
SILENT = "SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'"
HEALTHY = "SELECT count(*) FROM tasks WHERE document #>> '{workspace_agent_health,healthy}' = 'true'"
DRAINED = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(drained_since)), 0)::float8 FROM workers
WHERE drained_since > $1
"""
"""Seconds of drained time since an instant; 0 until it has started again."""

LOST_TASKS = "SELECT task_id FROM task_events WHERE cause ->> 'type' = 'agent.silent'"


class Fleet:
    """Many agents, each with its own task; their heartbeats are sent in arrays, with rising seqs."""

    def __init__(self, harness: ChaosHarness, database: asyncpg.Connection, count: int) -> None:
        self.harness = harness
        self.database = database
        self.tasks = [uuid4() for _ in range(count)]
        self.silent: set[UUID] = set()
        self._seq = 10

    def reports(self, **report: object) -> list[OutgoingMessage]:
        """Return messages with the same report for every task whose agent is not silent."""
        common = {"build_number": 1, **report}
        tasks = [str(task_id) for task_id in self.tasks if task_id not in self.silent]
        parts = [
            tasks[start : start + HEARTBEATS_PER_MESSAGE] for start in range(0, len(tasks), HEARTBEATS_PER_MESSAGE)
        ]
        bodies = [json.dumps([{**common, "task_id": task_id} for task_id in part]).encode() for part in parts]
        return [workload.message(self.harness.names, body) for body in bodies]

    def heartbeats(self) -> list[OutgoingMessage]:
        """Return the next heartbeat of every agent that is not silent."""
        self._seq += 1
        return self.reports(type="agent.heartbeat", seq=self._seq)

    async def connect(self) -> None:
        """Create the tasks and connect their agents."""
        await self.harness.send(
            [workload.create(self.harness.names, task_id, "Keep working") for task_id in self.tasks], within=600
        )
        await self.until("SELECT count(*) FROM tasks", len(self.tasks), within=600)
        build = self.reports(type="workspace.build", seq=1, transition="start", job_status="succeeded")
        await self.harness.send(
            [*build, *self.reports(type="agent.lifecycle", seq=2, lifecycle="ready"), *self.heartbeats()]
        )
        await self.until(HEALTHY, len(self.tasks), within=120)

    async def keep_alive(self, every: float) -> None:
        """Send heartbeats of every agent that is not silent, ``every`` seconds."""
        while True:
            await self.harness.send(self.heartbeats())
            await asyncio.sleep(every)

    async def until(self, query: str, value: int, within: float) -> None:
        """Wait until a query's single value is this."""
        await until(lambda: self.database.fetchval(query), partial(eq, value), within)


@asynccontextmanager
async def open_fleet(harness: ChaosHarness, count: int) -> AsyncIterator[Fleet]:
    """Create a fleet with its own database connection."""
    database = await asyncpg.connect(harness.ledger.database_url, timeout=5, command_timeout=20)
    try:
        yield Fleet(harness, database, count)
    finally:
        await database.close(timeout=5)


@pytest.mark.parametrize("scale", [(200, 20, False), pytest.param((1_000, 120, True), marks=FULL_SIZE)])
async def test_no_agent_is_lost_after_an_hour_of_backlog(
    harness: ChaosHarness,
    figures: Figures,
    tmp_path: Path,
    announce: Callable[[str], None],
    scale: tuple[int, int, bool],
) -> None:
    """A worker is frozen for an hour while heartbeats pile up: no connected agent is lost, but silent ones are.

    The hour passes at once: the database clock is moved while the worker is stopped, and at full size the worker's own
    clocks too, including the monotonic one, so that it notices no jump. Silent agents are then lost within the timeout
    and 5 s of drained time.
    """
    agents, heartbeats, all_clocks = scale
    clock = DatabaseClock(harness.ledger.database_url)
    await clock.install()
    process_clocks = clocks.fake_clocks(tmp_path, announce, monotonic=True) if all_clocks else None
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (process_clocks.environment if process_clocks else {}).items():
            environment.setenv(name, value)
        worker = await harness.start(**SETTINGS)
    async with open_fleet(harness, agents) as fleet:
        await fleet.connect()
        worker.signal(signal.SIGSTOP)
        for _ in range(heartbeats):
            await harness.send(fleet.heartbeats())
        if process_clocks:
            process_clocks.set(HOUR)
        await clock.move(HOUR)
        resumed_at = await fleet.database.fetchval("SELECT clock_timestamp()")
        worker.signal(signal.SIGCONT)
        started_at = time.monotonic()
        keeping_alive = asyncio.create_task(fleet.keep_alive(LOST_AFTER / 4))
        try:
            await until(lambda: fleet.database.fetchval(DRAINED, resumed_at), partial(le, LOST_AFTER + 1), 120)
            caught_up = time.monotonic() - started_at
            assert await fleet.database.fetchval(SILENT) == 0
            assert await fleet.database.fetchval(HEALTHY) == agents
            fleet.silent = set(fleet.tasks[:4])
            started_at = time.monotonic()
            await fleet.until(SILENT, len(fleet.silent), LOST_AFTER + LOST_AFTER / 4 + SLACK)
            lost_after = time.monotonic() - started_at
            assert {row["task_id"] for row in await fleet.database.fetch(LOST_TASKS)} == fleet.silent
        finally:
            keeping_alive.cancel()
            await asyncio.gather(keeping_alive, return_exceptions=True)
    assert jumps(worker) == (0 if all_clocks else 1)
    await harness.stop_worker(worker)
    drained_after = caught_up - LOST_AFTER - 1
    sent = f"{agents:,} agents, {agents * heartbeats:,} queued heartbeats"
    detected = f"silent agents detected after {lost_after:.1f} s (limit {LOST_AFTER:g} s)"
    await figures.record_run(
        harness,
        "one-hour backlog of heartbeats",
        faults=1,
        note=f"{sent}, no agent lost; drained after {drained_after:.0f} s; {detected}",
    )
