from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from operator import eq, le
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from taskherd.dev import postgres
from taskherd.store import migrate
from tests.chaos import clocks, workload
from tests.chaos.clocks import DatabaseClock, ProcessClocks
from tests.chaos.figures import Figures
from tests.harness.chaos import ChaosHarness, WorkerProcess, chaos_harness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DAY = timedelta(days=1)
LOST_AFTER, TTL = 5.0, 10.0
SLACK = 5.0
"""Maximum delay in seconds between a deadline and its detection."""

SHORT_TIMEOUTS = {
    "agent_lost_after": f"{LOST_AFTER}",
    "agent_connect_timeout": f"{LOST_AFTER}",
    "request_ttl": f"{TTL}",
    "request_backoff_first": "0.5",
    "request_backoff_most": "1",
    "sweep_every": "0.2",
    "relay_every": "0.2",
    "probe_every": "0.2",
}
SILENT = "SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'"
TIMED_OUT = "SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'build.given_up'"
HEALTHY = "SELECT count(*) FROM tasks WHERE document #>> '{workspace_agent_health,healthy}' = 'true'"
TASKS_WITH_MESSAGE = "SELECT count(*) FROM tasks WHERE document #>> '{current_state,message}' = $1"
ATTEMPTS = "SELECT coalesce(max(attempt), 0) FROM work_requests"
GAPS = """
SELECT t.id FROM tasks AS t LEFT JOIN task_events AS e ON e.task_id = t.id
GROUP BY t.id
HAVING array_agg(e.version ORDER BY e.version) <> (SELECT array_agg(v) FROM generate_series(1, t.version) AS v)
"""
DRAINED = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(drained_since)), 0)::float8 FROM workers"


@pytest.fixture
def wall_clocks(announce: Callable[[str], None]) -> Iterator[ProcessClocks]:
    """Yield wall clocks for processes of any user."""
    with tempfile.TemporaryDirectory(prefix="taskherd-chaos-") as folder:
        Path(folder).chmod(0o755)
        yield clocks.fake_clocks(Path(folder), announce)


@pytest.fixture
async def own_server_harness(
    wall_clocks: ProcessClocks, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[ChaosHarness]:
    """Yield a harness on a PostgreSQL server whose clock is ``wall_clocks``."""
    binaries = postgres.find()
    assert isinstance(binaries, postgres.PostgresBinaries), (
        "moving the clock of a server requires PostgreSQL's binaries"
    )
    environment = postgres._env()
    node = postgres.PostgresNode(binaries, wall_clocks.file.parent / "postgres", fast=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(postgres, "_env", lambda: environment | wall_clocks.environment)
        try:
            await asyncio.to_thread(node.start)
            await asyncio.to_thread(migrate.upgrade, node.url)
            async with chaos_harness(node.url, amqp_url, amqp_prefix, tmp_path) as harness:
                yield harness
        finally:
            await asyncio.to_thread(node.stop)


class LiveTasks:
    """Tasks with connected agents. Their reports have no seq, so the worker's clock orders them."""

    def __init__(self, harness: ChaosHarness, database: asyncpg.Connection) -> None:
        self.harness = harness
        self.database = database
        self.tasks = [uuid4() for _ in range(12)]
        self.silent: set[UUID] = set()
        self.unclaimed = uuid4()
        """A task that no runner picks up."""
        self.late = uuid4()
        """A task that is created after its first report."""

    async def create(self) -> None:
        """Create all tasks except the unclaimed and the late one, and report their agents as ready."""
        names = self.harness.names
        await self.harness.send([workload.create(names, task_id, "Look at the clock") for task_id in self.tasks])
        await self.until("SELECT count(*) FROM tasks", len(self.tasks))
        build = {"transition": "start", "job_status": "succeeded"}
        await self.report(self.tasks, type="workspace.build", **build)
        await self.report(self.tasks, type="agent.lifecycle", lifecycle="ready")

    async def report(self, tasks: Iterable[UUID], **fields: str) -> None:
        """Send the same report for each of the tasks."""
        reports = [{**fields, "build_number": 1, "task_id": str(task_id)} for task_id in tasks]
        await self.harness.send([workload.message(self.harness.names, json.dumps(reports).encode())])

    async def check_reports(self, message: str) -> None:
        """Report a new state of every agent and wait until every task has it."""
        await self.report(self.tasks, type="app.status", state="working", message=message)
        await self.until(TASKS_WITH_MESSAGE, len(self.tasks), message)

    async def keep_alive(self) -> None:
        """Send heartbeats of all agents that are not silent, several times in ``LOST_AFTER``."""
        while True:
            await self.report([task_id for task_id in self.tasks if task_id not in self.silent], type="agent.heartbeat")
            await asyncio.sleep(0.3)

    async def until(self, query: str, value: Any, *values: Any, within: float = 60.0) -> None:
        """Wait until a query's single value is this."""
        await until(lambda: self.database.fetchval(query, *values), partial(eq, value), within)

    async def until_drained(self) -> None:
        """Wait until the drained time is longer than an agent may be silent."""
        await until(lambda: self.database.fetchval(DRAINED), partial(le, LOST_AFTER + 1), LOST_AFTER + 60)

    async def detect_silence(self, count: int, within: float = LOST_AFTER + SLACK) -> float:
        """Let ``count`` agents fall silent, check that exactly these are lost in time, and return the seconds."""
        started_at = time.monotonic()
        self.silent |= set(self.tasks[:count])
        await self.until(SILENT, count, within=within)
        lost = await self.database.fetch("SELECT task_id FROM task_events WHERE cause ->> 'type' = 'agent.silent'")
        assert {row["task_id"] for row in lost} == self.silent
        return time.monotonic() - started_at

    async def check_history(self) -> None:
        """Check that every version is in the history and published."""
        await self.until("SELECT count(*) FROM outbox", 0)
        assert await self.database.fetch(GAPS) == []


@asynccontextmanager
async def connected_tasks(harness: ChaosHarness) -> AsyncIterator[LiveTasks]:
    """Create tasks with agents that send heartbeats until the end of the block."""
    database = await asyncpg.connect(harness.ledger.database_url, timeout=5, command_timeout=20)
    live = LiveTasks(harness, database)
    keeping_alive: asyncio.Task[None] | None = None
    try:
        await live.create()
        keeping_alive = asyncio.create_task(live.keep_alive())
        await live.until(HEALTHY, len(live.tasks))
        yield live
        assert not keeping_alive.done()
    finally:
        if keeping_alive is not None:
            keeping_alive.cancel()
            await asyncio.gather(keeping_alive, return_exceptions=True)
        await database.close(timeout=5)


async def check_request_timing(live: LiveTasks, jump: Callable[[], Awaitable[object]]) -> None:
    """Check that an unanswered request is repeated after the clock jump as before it, and times out when it is due."""
    started_at = time.monotonic()
    await live.harness.send([workload.create(live.harness.names, live.unclaimed, "Wait for a runner")])
    await until(lambda: live.database.fetchval(ATTEMPTS), partial(le, 2))
    await jump()
    before = await live.database.fetchval(ATTEMPTS)
    await until(lambda: live.database.fetchval(ATTEMPTS), partial(le, before + 2), SLACK)
    await live.until(TIMED_OUT, 1, within=2 * TTL + SLACK)
    assert time.monotonic() - started_at >= TTL - 0.5


async def check_jump(harness: ChaosHarness, worker: WorkerProcess, jump: Callable[[], Awaitable[object]]) -> float:
    """Let a clock jump and check that no agent is lost and that requests, reports and parked reports are processed.

    Returns the seconds until agents that fell silent after the jump were lost.
    """
    async with connected_tasks(harness) as live:
        await live.check_reports("before")
        await live.report([live.late], type="app.status", state="working", message="early")
        await live.until("SELECT count(*) FROM parked", 1)
        await live.until_drained()
        await check_request_timing(live, jump)
        await live.check_reports("after")
        await live.until_drained()
        assert await live.database.fetchval(SILENT) == 0
        assert await live.database.fetchval(TIMED_OUT) == 1
        await harness.send([workload.create(harness.names, live.late, "Arrive late")])
        await live.until(TASKS_WITH_MESSAGE, 1, "early")
        seconds = await live.detect_silence(3)
        await live.check_history()
    await harness.stop_worker(worker)
    return seconds


@pytest.mark.parametrize("days", [1, -1])
async def test_no_agent_is_lost_when_the_database_clock_jumps(
    harness: ChaosHarness, figures: Figures, days: int
) -> None:
    """The database clock jumps a day: no agent is lost, nothing waits a day, and silent agents are lost in time."""
    clock = DatabaseClock(harness.ledger.database_url)
    await clock.install()
    worker = await harness.start(**SHORT_TIMEOUTS)
    seconds = await check_jump(harness, worker, lambda: clock.move(days * DAY))
    assert jumps(worker) == 1
    note = f"no agent lost; silent agents detected after {seconds:.1f} s (limit {LOST_AFTER:g} s)"
    await figures.record_run(harness, f"database clock jumps by {days:+} day", faults=1, note=note)


@pytest.mark.chaos
@pytest.mark.parametrize("days", [1, -1])
async def test_a_worker_does_not_depend_on_its_own_clock(
    harness: ChaosHarness, figures: Figures, wall_clocks: ProcessClocks, days: int
) -> None:
    """A worker starts with a clock that is a day wrong and then corrected: it uses the database clock."""
    wall_clocks.set(days * DAY)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in wall_clocks.environment.items():
            environment.setenv(name, value)
        worker = await harness.start(**SHORT_TIMEOUTS)

    async def correct_clock() -> None:
        wall_clocks.set(timedelta(0))

    seconds = await check_jump(harness, worker, correct_clock)
    assert jumps(worker) == 0
    dates = {datetime.fromisoformat(str(line["timestamp"])).date() for line in worker.lines() if "timestamp" in line}
    assert len(dates) >= 2, f"the worker's clock showed only {dates}"
    note = f"no agent lost; silent agents detected after {seconds:.1f} s (limit {LOST_AFTER:g} s)"
    await figures.record_run(harness, f"worker clock jumps by {-days:+} day", faults=1, note=note)


@pytest.mark.chaos
@pytest.mark.parametrize("days", [1, -1])
async def test_no_agent_is_lost_when_the_clock_of_a_postgresql_server_jumps(
    own_server_harness: ChaosHarness, figures: Figures, wall_clocks: ProcessClocks, days: int
) -> None:
    """The clock of a complete PostgreSQL server jumps a day, by libfaketime, with the same result."""
    harness = own_server_harness
    worker = await harness.start(**SHORT_TIMEOUTS)

    async def jump() -> None:
        wall_clocks.set(days * DAY)

    seconds = await check_jump(harness, worker, jump)
    assert jumps(worker) == 1
    note = f"no agent lost; silent agents detected after {seconds:.1f} s (limit {LOST_AFTER:g} s)"
    await figures.record_run(harness, f"PostgreSQL server clock jumps by {days:+} day", faults=1, note=note)


@pytest.mark.chaos
async def test_a_clock_set_back_without_a_worker_delays_nothing(harness: ChaosHarness, figures: Figures) -> None:
    """A worker is killed and the database clock is set back a day: the next one detects silence and repeats requests.

    It waits a minute longer, because the killed worker might be frozen, with unacknowledged heartbeats.
    """
    clock = DatabaseClock(harness.ledger.database_url)
    await clock.install()
    killed = await harness.start(**SHORT_TIMEOUTS)
    async with connected_tasks(harness) as live:
        await live.harness.send([workload.create(live.harness.names, live.unclaimed, "Wait for a runner")])
        await until(lambda: live.database.fetchval(ATTEMPTS), partial(le, 2))
        await live.until_drained()
        await killed.kill()
        before = await live.database.fetchval(ATTEMPTS)
        await clock.move(-DAY)
        worker = await harness.start(**SHORT_TIMEOUTS)
        await until(lambda: live.database.fetchval(ATTEMPTS), partial(le, before + 2), 20)
        seconds = await live.detect_silence(3, within=60 + LOST_AFTER + 2 * SLACK)
        await live.check_history()
    assert jumps(worker) == 1
    await harness.stop_worker(worker)
    note = f"silent agents detected after {seconds:.0f} s, 60 s of which wait for the killed worker"
    await figures.record_run(harness, "worker killed, then database clock set back 1 day", faults=1, note=note)


def jumps(worker: WorkerProcess) -> int:
    """Return the number of jumps of the database clock that the worker has logged."""
    return sum(line.get("event") == "database clock jumped" for line in worker.lines())
