"""Jumps of the database's clock under a running worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from taskherd.worker import maintenance
from tests.chaos.clocks import DatabaseClock
from tests.harness.worker import TIMEOUT, WorkerHarness, make_report, running_worker

HOUR = timedelta(hours=1)
TERMINATE_WAITING = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND datname = current_database() AND query LIKE '%task_deadlines%'
"""


async def shadowed_clock(harness: WorkerHarness) -> DatabaseClock:
    """Return the database's clock, installed for the workers that start from now on."""
    clock = DatabaseClock(harness.urls[0])
    await clock.install()
    return clock


@asynccontextmanager
async def other_session(harness: WorkerHarness) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection to the worker's database until the end of the block."""
    connection = await asyncpg.connect(harness.urls[0], timeout=30, command_timeout=30)
    try:
        yield connection
    finally:
        await connection.close(timeout=30)


async def test_a_worker_that_starts_beside_another_sees_no_jump(
    external: WorkerHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    """Times that were stored a moment ago, by another worker, are no sign of a clock that was set back."""
    async with running_worker(external, sweep_every=0.1):
        await external.create()
        async with running_worker(external, sweep_every=0.1):
            await external.until_row("SELECT count(*) FROM workers", is_=2)
    assert "database clock jumped" not in "".join(capsys.readouterr())


async def test_deadlines_are_clamped_although_the_first_try_fails(external: WorkerHarness) -> None:
    """The clock is set back, and the connection is cut while deadlines are moved to now: the next sweep moves them."""
    clock = await shadowed_clock(external)
    async with running_worker(external, sweep_every=0.1):
        task_id = await external.create()
        due_at = await external.database.fetchval("SELECT due_at FROM task_deadlines WHERE task_id = $1", task_id)
        async with other_session(external) as session, session.transaction():
            await session.execute("SELECT FROM task_deadlines WHERE task_id = $1 FOR UPDATE", task_id)
            await clock.move(-HOUR)
            await external.until_row(TERMINATE_WAITING, is_=1)
        await external.until_row(
            "SELECT due_at < $2 FROM task_deadlines WHERE task_id = $1", task_id, due_at - HOUR / 2
        )


async def test_an_input_does_not_wait_until_a_clock_that_was_set_back_is_as_late_again(external: WorkerHarness) -> None:
    """The agent has just got another one when the clock is set back: the next one goes after the usual wait."""
    clock = await shadowed_clock(external)
    async with running_worker(external, sweep_every=0.1):
        task_id = await external.make_active()
        first, _ = [await external.command("task.send", task_id, input=text) for text in ("one", "two")]
        await external.report(make_report("task.input", task_id, input_id=first["input_id"], outcome="delivered"))
        await external.until_row("SELECT count(*) FROM inputs WHERE state = 'delivered'", is_=1)
        await clock.move(-HOUR)
        await external.until_row("SELECT count(*) FROM inputs WHERE state = 'queued'", is_=0)


async def test_a_mass_loss_is_not_held_for_the_time_by_which_the_clock_was_set_back(external: WorkerHarness) -> None:
    """The hold starts again by the new time."""
    clock = await shadowed_clock(external)
    async with running_worker(
        external, sweep_every=0.1, probe_every=0.1, agent_lost_after=1, mass_silence_hold=600
    ) as worker:
        tasks = [await external.create() for _ in range(6)]
        await asyncio.gather(*(external.make_active(task_id) for task_id in tasks))
        await external.report(*(make_report("agent.heartbeat", task_id) for task_id in tasks))
        await external.until_metric(1, "taskherd_mass_silence_held")
        first_hold = worker._sweeper._mass_held_since
        assert first_hold is not None
        await clock.move(-HOUR)
        async with asyncio.timeout(TIMEOUT):
            while (held := worker._sweeper._mass_held_since) is None or held > first_hold - HOUR / 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert external.metric("taskherd_mass_silence_held") == 1


async def test_a_clock_that_jumps_ahead_deletes_nothing(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set a year ahead: feed, history and recorded commands stay, and maintenance goes on."""
    monkeypatch.setattr(maintenance, "EVERY", 0.1)
    clock = await shadowed_clock(external)
    async with running_worker(external, sweep_every=0.1):
        await external.create()
        await external.until_row("SELECT count(*) FROM task_feed", is_=1)
        partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'task_events'::regclass"
        before = await external.database.fetchval(partitions)
        await clock.move(365 * 24 * HOUR)
        await external.until_row(f"SELECT ({partitions}) > $1", before)
        await external.database.execute(
            "INSERT INTO workers (worker_id, started_at, seen_at) VALUES ('gone', now(), now())"
        )
        await external.until_row("SELECT count(*) FROM workers WHERE worker_id = 'gone'", is_=0)
        for table in ("task_feed", "task_events", "command_log"):
            assert await external.database.fetchval(f"SELECT count(*) FROM {table}") == 1
