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
"""Seconds beyond a deadline within which it must have been noticed."""

QUICK = {
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
GIVEN_UP = "SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'build.given_up'"
HEALTHY = "SELECT count(*) FROM tasks WHERE document #>> '{workspace_agent_health,healthy}' = 'true'"
STATES = "SELECT count(*) FROM tasks WHERE document #>> '{current_state,message}' = $1"
ATTEMPTS = "SELECT coalesce(max(attempt), 0) FROM work_requests"
GAPS = """
SELECT t.id FROM tasks AS t LEFT JOIN task_events AS e ON e.task_id = t.id
GROUP BY t.id
HAVING array_agg(e.version ORDER BY e.version) <> (SELECT array_agg(v) FROM generate_series(1, t.version) AS v)
"""
LISTENING = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(drained_since)), 0)::float8 FROM workers"


@pytest.fixture
def wall(announce: Callable[[str], None]) -> Iterator[ProcessClocks]:
    """Wall clocks for processes of any user."""
    with tempfile.TemporaryDirectory(prefix="taskherd-chaos-") as folder:
        Path(folder).chmod(0o755)
        yield clocks.faked(Path(folder), announce)


@pytest.fixture
async def own_server_stage(
    wall: ProcessClocks, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[ChaosHarness]:
    """A stage on a PostgreSQL server that goes by the wall clock of `wall`."""
    found = postgres.find()
    assert isinstance(found, postgres.PostgresBinaries), (
        "a server whose clock can be moved needs PostgreSQL's own binaries"
    )
    usual = postgres._env()
    node = postgres.PostgresNode(found, wall.file.parent / "postgres", fast=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(postgres, "_env", lambda: usual | wall.environment)
        try:
            await asyncio.to_thread(node.start)
            await asyncio.to_thread(migrate.upgrade, node.url)
            async with chaos_harness(node.url, amqp_url, amqp_prefix, tmp_path) as stage:
                yield stage
        finally:
            await asyncio.to_thread(node.stop)


class LiveTasks:
    """Tasks with agents that are heard all the time, each word without a seq, so ordered by the worker's clock."""

    def __init__(self, stage: ChaosHarness, database: asyncpg.Connection) -> None:
        self.stage = stage
        self.database = database
        self.tasks = [uuid4() for _ in range(12)]
        self.quiet: set[UUID] = set()
        self.forgotten = uuid4()
        """A task that no runner takes up."""
        self.unborn = uuid4()
        """A task that is reported of, and not created yet."""

    async def created(self) -> None:
        """Create all tasks but the forgotten and the unborn one, and have their agents ready."""
        names = self.stage.names
        await self.stage.send([workload.create(names, task_id, "Look at the clock") for task_id in self.tasks])
        await self.until("SELECT count(*) FROM tasks", len(self.tasks))
        build = {"transition": "start", "job_status": "succeeded"}
        await self.say(self.tasks, type="workspace.build", **build)
        await self.say(self.tasks, type="agent.lifecycle", lifecycle="ready")

    async def say(self, tasks: Iterable[UUID], **report: str) -> None:
        """Report the same of each of the tasks."""
        said = [{**report, "build_number": 1, "task_id": str(task_id)} for task_id in tasks]
        await self.stage.send([workload.message(self.stage.names, json.dumps(said).encode())])

    async def shows(self, message: str) -> None:
        """Report a new state of every agent, and see every task show it."""
        await self.say(self.tasks, type="app.status", state="working", message=message)
        await self.until(STATES, len(self.tasks), message)

    async def live(self) -> None:
        """Let all agents be heard that are not quiet, several times in `LOST_AFTER`."""
        while True:
            await self.say([task_id for task_id in self.tasks if task_id not in self.quiet], type="agent.heartbeat")
            await asyncio.sleep(0.3)

    async def until(self, query: str, value: Any, *values: Any, within: float = 60.0) -> None:
        """Wait until a query's single value is this."""
        await until(lambda: self.database.fetchval(query, *values), partial(eq, value), within)

    async def listened(self) -> None:
        """Wait until the worker has listened without a gap for longer than an agent may be silent."""
        await until(lambda: self.database.fetchval(LISTENING), partial(le, LOST_AFTER + 1), LOST_AFTER + 60)

    async def silence_is_found(self, many: int, within: float = LOST_AFTER + SLACK) -> float:
        """Let some agents fall silent, and see exactly these lost in time; the seconds it took."""
        began = time.monotonic()
        self.quiet |= set(self.tasks[:many])
        await self.until(SILENT, many, within=within)
        lost = await self.database.fetch("SELECT task_id FROM task_events WHERE cause ->> 'type' = 'agent.silent'")
        assert {row["task_id"] for row in lost} == self.quiet
        return time.monotonic() - began

    async def consistent(self) -> None:
        """See every version in the history, and all of it published."""
        await self.until("SELECT count(*) FROM outbox", 0)
        assert await self.database.fetch(GAPS) == []


@asynccontextmanager
async def flock(stage: ChaosHarness) -> AsyncIterator[LiveTasks]:
    """Connected agents, heard until the block is left."""
    database = await asyncpg.connect(stage.ledger.database_url, timeout=5, command_timeout=20)
    own = LiveTasks(stage, database)
    living: asyncio.Task[None] | None = None
    try:
        await own.created()
        living = asyncio.create_task(own.live())
        await own.until(HEALTHY, len(own.tasks))
        yield own
        assert not living.done()
    finally:
        if living is not None:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
        await database.close(timeout=5)


async def request_goes_on(own: LiveTasks, jump: Callable[[], Awaitable[object]]) -> None:
    """A request nobody answers is repeated after the jump as before it, and given up after its time, not sooner."""
    began = time.monotonic()
    await own.stage.send([workload.create(own.stage.names, own.forgotten, "Wait for a runner")])
    await until(lambda: own.database.fetchval(ATTEMPTS), partial(le, 2))
    await jump()
    before = await own.database.fetchval(ATTEMPTS)
    await until(lambda: own.database.fetchval(ATTEMPTS), partial(le, before + 2), SLACK)
    await own.until(GIVEN_UP, 1, within=2 * TTL + SLACK)
    assert time.monotonic() - began >= TTL - 0.5


async def unharmed(stage: ChaosHarness, worker: WorkerProcess, jump: Callable[[], Awaitable[object]]) -> float:
    """Let a clock jump while agents live and a request waits: nobody is lost, nothing waits for the clock to come back.

    Returns the seconds in which an agent that then fell silent was found.
    """
    async with flock(stage) as own:
        await own.shows("before")
        await own.say([own.unborn], type="app.status", state="working", message="early")
        await own.until("SELECT count(*) FROM parked", 1)
        await own.listened()
        await request_goes_on(own, jump)
        await own.shows("after")
        await own.listened()
        assert await own.database.fetchval(SILENT) == 0
        assert await own.database.fetchval(GIVEN_UP) == 1
        await stage.send([workload.create(stage.names, own.unborn, "Come late")])
        await own.until(STATES, 1, "early")
        found = await own.silence_is_found(3)
        await own.consistent()
    await stage.stop_worker(worker)
    return found


@pytest.mark.parametrize("days", [1, -1])
async def test_a_database_clock_that_jumps_a_day_makes_nobody_lost(
    stage: ChaosHarness, figures: Figures, days: int
) -> None:
    """The database's clock jumps a day: no agent is lost, nothing waits a day, and a silent one is found in time."""
    clock = DatabaseClock(stage.ledger.database_url)
    await clock.install()
    worker = await stage.start(**QUICK)
    found = await unharmed(stage, worker, lambda: clock.move(days * DAY))
    assert jumps(worker) == 1
    note = f"0 lost by it; a silent one found after {found:.1f} s of {LOST_AFTER:g}"
    await figures.of(stage, f"the database's clock jumps by {days:+} day", faults=1, note=note)


@pytest.mark.chaos
@pytest.mark.parametrize("days", [1, -1])
async def test_a_workers_clock_that_jumps_a_day_is_not_even_noticed(
    stage: ChaosHarness, figures: Figures, wall: ProcessClocks, days: int
) -> None:
    """A worker comes up with a clock that is a day wrong, then this is set right: it goes by the database's."""
    wall.set(days * DAY)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in wall.environment.items():
            environment.setenv(name, value)
        worker = await stage.start(**QUICK)

    async def set_right() -> None:
        wall.set(timedelta(0))

    found = await unharmed(stage, worker, set_right)
    assert jumps(worker) == 0
    stamps = {datetime.fromisoformat(str(line["timestamp"])).date() for line in worker.lines() if "timestamp" in line}
    assert len(stamps) >= 2, f"the worker's own clock showed only {stamps}"
    note = f"0 lost by it; a silent one found after {found:.1f} s of {LOST_AFTER:g}"
    await figures.of(stage, f"a worker's clock jumps by {-days:+} day", faults=1, note=note)


@pytest.mark.chaos
@pytest.mark.parametrize("days", [1, -1])
async def test_a_server_of_postgresql_whose_clock_jumps_a_day_makes_nobody_lost(
    own_server_stage: ChaosHarness, figures: Figures, wall: ProcessClocks, days: int
) -> None:
    """The clock of a whole PostgreSQL server jumps a day, by libfaketime, with the same outcome."""
    stage = own_server_stage
    worker = await stage.start(**QUICK)

    async def jump() -> None:
        wall.set(days * DAY)

    seconds = await unharmed(stage, worker, jump)
    assert jumps(worker) == 1
    note = f"0 lost by it; a silent one found after {seconds:.1f} s of {LOST_AFTER:g}"
    await figures.of(stage, f"a PostgreSQL server's clock jumps by {days:+} day", faults=1, note=note)


@pytest.mark.chaos
async def test_a_clock_set_back_while_no_worker_looked_holds_up_nothing(stage: ChaosHarness, figures: Figures) -> None:
    """A worker is killed, the database's clock is set back a day: the next one still finds silence and asks again.

    It waits a minute longer, since the killed one might be only frozen, with heartbeats in hand.
    """
    clock = DatabaseClock(stage.ledger.database_url)
    await clock.install()
    killed = await stage.start(**QUICK)
    async with flock(stage) as own:
        await own.stage.send([workload.create(own.stage.names, own.forgotten, "Wait for a runner")])
        await until(lambda: own.database.fetchval(ATTEMPTS), partial(le, 2))
        await own.listened()
        await killed.kill()
        before = await own.database.fetchval(ATTEMPTS)
        await clock.move(-DAY)
        worker = await stage.start(**QUICK)
        await until(lambda: own.database.fetchval(ATTEMPTS), partial(le, before + 2), 20)
        found = await own.silence_is_found(3, within=60 + LOST_AFTER + 2 * SLACK)
        await own.consistent()
    assert jumps(worker) == 1
    await stage.stop_worker(worker)
    note = f"a silent agent found after {found:.0f} s, of which 60 wait for the killed worker"
    await figures.of(stage, "the clock set back a day behind a killed worker", faults=1, note=note)


def jumps(worker: WorkerProcess) -> int:
    """How many jumps of the database's clock the worker has noticed."""
    return sum(line.get("event") == "database clock jumped" for line in worker.lines())
