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

from taskherd.broker.publish import OutgoingMessage
from tests.chaos import clocks, workload
from tests.chaos.clocks import DatabaseClock
from tests.chaos.figures import Figures
from tests.chaos.test_clocks import jumps
from tests.harness.chaos import ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OFTEN = [pytest.mark.chaos, pytest.mark.timeout(1800)]
HOUR = timedelta(hours=1)
LOST_AFTER, SLACK = 6.0, 5.0
SETTINGS = {"agent_lost_after": f"{LOST_AFTER}", "agent_connect_timeout": f"{LOST_AFTER}"}
AT_ONCE = 100
SILENT = "SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'"
HEALTHY = "SELECT count(*) FROM tasks WHERE document #>> '{workspace_agent_health,healthy}' = 'true'"
LISTENING = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(drained_since)), 0)::float8 FROM workers
WHERE drained_since > $1
"""
"""For how many seconds the worker has listened, of the time since an instant; 0 while it has not begun again."""

LOST = "SELECT task_id FROM task_events WHERE cause ->> 'type' = 'agent.silent'"


class Fleet:
    """Many agents, each of a task of its own; their heartbeats come in arrays, with rising seqs."""

    def __init__(self, stage: ChaosHarness, database: asyncpg.Connection, many: int) -> None:
        self.stage = stage
        self.database = database
        self.tasks = [uuid4() for _ in range(many)]
        self.silent: set[UUID] = set()
        self._seq = 10

    def said(self, **report: object) -> list[OutgoingMessage]:
        """Messages that say the same of every task whose agent is not silent."""
        common = {"build_number": 1, **report}
        tasks = [str(task_id) for task_id in self.tasks if task_id not in self.silent]
        parts = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
        bodies = [json.dumps([{**common, "task_id": task_id} for task_id in part]).encode() for part in parts]
        return [workload.message(self.stage.names, body) for body in bodies]

    def beat(self) -> list[OutgoingMessage]:
        """One more heartbeat of every agent that is not silent."""
        self._seq += 1
        return self.said(type="agent.heartbeat", seq=self._seq)

    async def connected(self) -> None:
        """Create the tasks, and connect their agents."""
        await self.stage.send(
            [workload.create(self.stage.names, task_id, "Go on") for task_id in self.tasks], within=600
        )
        await self.until("SELECT count(*) FROM tasks", len(self.tasks), within=600)
        build = self.said(type="workspace.build", seq=1, transition="start", job_status="succeeded")
        await self.stage.send([*build, *self.said(type="agent.lifecycle", seq=2, lifecycle="ready"), *self.beat()])
        await self.until(HEALTHY, len(self.tasks), within=120)

    async def live(self, every: float) -> None:
        """Let every agent that is not silent be heard again and again."""
        while True:
            await self.stage.send(self.beat())
            await asyncio.sleep(every)

    async def until(self, query: str, value: int, within: float) -> None:
        """Wait until a query's single value is this."""
        await until(lambda: self.database.fetchval(query), partial(eq, value), within)


@asynccontextmanager
async def fleet(stage: ChaosHarness, many: int) -> AsyncIterator[Fleet]:
    """A fleet, seen through a session of its own."""
    database = await asyncpg.connect(stage.ledger.database_url, timeout=5, command_timeout=20)
    try:
        yield Fleet(stage, database, many)
    finally:
        await database.close(timeout=5)


@pytest.mark.parametrize("scale", [(200, 20, False), pytest.param((1_000, 120, True), marks=OFTEN)])
async def test_an_hour_of_backlog_makes_nobody_lost(
    stage: ChaosHarness, figures: Figures, tmp_path: Path, announce: Callable[[str], None], scale: tuple[int, int, bool]
) -> None:
    """A worker stands still for an hour while heartbeats pile up: none of the agents is lost, but one really silent is.

    The hour passes at once: the database's clock is moved while the worker is stopped; in full size the worker's own
    clocks too, the monotonic one as well, so that it sees no jump. An agent's silence is then found within the timeout
    and 5 s of time in which the worker listened.
    """
    many, beats, all_clocks = scale
    clock = DatabaseClock(stage.ledger.database_url)
    await clock.install()
    own_clocks = clocks.faked(tmp_path, announce, monotonic=True) if all_clocks else None
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (own_clocks.environment if own_clocks else {}).items():
            environment.setenv(name, value)
        worker = await stage.start(**SETTINGS)
    async with fleet(stage, many) as own:
        await own.connected()
        worker.signal(signal.SIGSTOP)
        for _ in range(beats):
            await stage.send(own.beat())
        if own_clocks:
            own_clocks.set(HOUR)
        await clock.move(HOUR)
        woken_at = await own.database.fetchval("SELECT clock_timestamp()")
        worker.signal(signal.SIGCONT)
        began = time.monotonic()
        living = asyncio.create_task(own.live(LOST_AFTER / 4))
        try:
            await until(lambda: own.database.fetchval(LISTENING, woken_at), partial(le, LOST_AFTER + 1), 120)
            caught_up = time.monotonic() - began
            assert await own.database.fetchval(SILENT) == 0
            assert await own.database.fetchval(HEALTHY) == many
            own.silent = set(own.tasks[:4])
            began = time.monotonic()
            await own.until(SILENT, len(own.silent), LOST_AFTER + LOST_AFTER / 4 + SLACK)
            found = time.monotonic() - began
            assert {row["task_id"] for row in await own.database.fetch(LOST)} == own.silent
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
    assert jumps(worker) == (0 if all_clocks else 1)
    await stage.stop_worker(worker)
    note = f"{many:,} agents, {many * beats:,} heartbeats waited, 0 lost; listening {caught_up - LOST_AFTER - 1:.0f} s"
    await figures.of(
        stage,
        "an hour of backlog",
        faults=1,
        note=f"{note} later; a silent one found after {found:.1f} s of {LOST_AFTER:g}",
    )
