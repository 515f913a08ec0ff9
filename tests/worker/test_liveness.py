"""Lost agents through the worker: silence counts by the worker's clock, and only in drained time."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.worker.lease_scan import LeaseSample, LeaseScan, SilentRange
from tests.harness.worker import TIMEOUT, WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import StartWorker

LOST = {"healthy": False, "reason": "agent has lost connection"}
HEALTHY = {"healthy": True}
TAKING_TOO_LONG = {"healthy": False, "reason": "agent is taking too long to connect"}
NOT_YET = {"healthy": False, "reason": "agent has not yet connected"}


def health(harness: WorkerHarness, task_id: uuid.UUID) -> Any:
    """Return the agent's health from the latest event."""
    return harness.document(task_id).get("workspace_agent_health")


async def heartbeat(harness: WorkerHarness, *tasks: uuid.UUID) -> None:
    """Report a heartbeat of the agent of each task."""
    await harness.report(*(make_report("agent.heartbeat", task_id) for task_id in tasks))


def mass_held_since(harness: WorkerHarness) -> datetime | None:
    """Return since when the worker has held a mass loss."""
    return harness.worker._sweeper._mass_held_since


async def drained_since(harness: WorkerHarness) -> datetime:
    """Wait until the report queues are drained, and return since when."""
    async with asyncio.timeout(TIMEOUT):
        while True:  # a probe that is late on a busy machine ends that they are drained
            await harness.until_row("SELECT drained_since IS NOT NULL FROM workers ORDER BY seen_at DESC LIMIT 1")
            since = harness.worker.probe.drained_since
            if since is not None:
                return since
            await asyncio.sleep(0.02)


async def test_a_silent_agent_is_lost_until_the_next_heartbeat(start_worker: StartWorker) -> None:
    """After agent_lost_after without a heartbeat a sweep marks the agent lost; a heartbeat makes it healthy again."""
    async with start_worker(agent_lost_after=1) as harness:
        task_id = await harness.make_active()
        await harness.until(lambda: health(harness, task_id) == LOST)
        event = harness.events_of(task_id)[-1]
        assert event["cause"] == {"kind": "sweep", "type": "agent.silent"}
        assert event["changes"] == ["workspace_agent_health"]
        assert event["task"]["status"] == "active"
        last_heartbeat, lost_at = await harness.database.fetchrow(
            "SELECT (state #>> '{heard,0,1}')::timestamptz, updated_at FROM tasks"
        )
        assert (lost_at - last_heartbeat).total_seconds() > 1
        await harness.until_row("SELECT count(*) FROM leases", is_=0)
        await heartbeat(harness, task_id)
        await harness.until(lambda: health(harness, task_id) == HEALTHY)
        assert harness.events_of(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.heartbeat"}
        assert await harness.database.fetchval("SELECT count(*) FROM leases") == 1


async def test_an_agent_that_does_not_connect_in_time_is_unhealthy(start_worker: StartWorker) -> None:
    """Without a heartbeat it has not yet connected; after agent_connect_timeout it takes too long."""
    async with start_worker(agent_connect_timeout=1) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 1, "start", "succeeded", agent_id=str(uuid.uuid4())))
        await harness.until(lambda: health(harness, task_id) == TAKING_TOO_LONG)
        assert NOT_YET in [each["task"]["workspace_agent_health"] for each in harness.events_of(task_id)]
        assert harness.events_of(task_id)[-1]["cause"] == {"kind": "sweep", "type": "agent.silent"}
        await heartbeat(harness, task_id)
        await harness.until(lambda: health(harness, task_id) == HEALTHY)


async def test_a_disconnected_agent_is_lost_at_once(harness: WorkerHarness) -> None:
    """An agent that reports its disconnect is lost without a wait, until its next heartbeat."""
    task_id = await harness.make_active()
    await harness.report(make_report("agent.disconnected", task_id))
    await harness.until(lambda: health(harness, task_id) == LOST)
    assert harness.events_of(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.disconnected"}
    assert await harness.database.fetchval("SELECT count(*) FROM leases") == 0
    await heartbeat(harness, task_id)
    await harness.until(lambda: health(harness, task_id) == HEALTHY)
    await harness.report(
        make_report("agent.lifecycle", task_id, lifecycle="off"), make_report("agent.disconnected", task_id)
    )
    not_running = {"healthy": False, "reason": "agent is not running"}
    await harness.until(lambda: health(harness, task_id) == not_running)


async def test_the_mass_loss_guard_waits_before_most_agents_are_lost(start_worker: StartWorker) -> None:
    """If most agents fall silent at once none is lost during the hold, not even one whose build times out."""
    async with start_worker(agent_lost_after=1, mass_silence_hold=1.5, build_timeout=1) as harness:
        tasks = [await harness.create() for _ in range(6)]
        await asyncio.gather(*(harness.make_active(task_id) for task_id in tasks))
        await harness.report(
            build_report(tasks[0], 2, "start", "running"), make_report("agent.heartbeat", tasks[0], build_number=2)
        )
        await harness.until_row("SELECT count(*) FROM leases WHERE build_number = 2", is_=1)
        await heartbeat(harness, *tasks)
        await harness.until(lambda: harness.document(tasks[0]).get("status") == "error")
        await harness.until_row("SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'", is_=6)
        assert harness.metric("taskherd_sweeps_held_total") > 0
        assert harness.metric("taskherd_mass_silence_held") == 0
        silences = await harness.database.fetch(
            "SELECT e.occurred_at - (t.state #>> '{heard,-1,1}')::timestamptz AS after FROM task_events e"
            " JOIN tasks t ON t.id = e.task_id WHERE e.cause ->> 'type' = 'agent.silent'"
        )
        assert min(row["after"].total_seconds() for row in silences) > 2


async def test_a_mass_loss_larger_than_a_sweep_is_held_once(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a sweep has no time for all agents of an accepted mass loss, the next sweeps take the rest at once."""
    read = LeaseScan.read

    async def read_six(scan: LeaseScan, engine: AsyncEngine, now: datetime, lost_after: timedelta) -> LeaseSample:
        sample = await read(scan, engine, now, lost_after)
        silent = [task_id for each in sample.ranges for task_id in each.silent][:6]
        return LeaseSample(len(silent), len(silent), [SilentRange(silent, 0)])

    monkeypatch.setattr(LeaseScan, "read", read_six)
    async with start_worker(agent_lost_after=1, mass_silence_hold=4) as harness:
        tasks = [await harness.create() for _ in range(12)]
        await asyncio.gather(*(harness.make_active(task_id) for task_id in tasks))
        await heartbeat(harness, *tasks)
        await harness.until(lambda: any(health(harness, task_id) == LOST for task_id in tasks))
        held = harness.metric("taskherd_sweeps_held_total")
        assert held > 0
        await harness.until(lambda: all(health(harness, task_id) == LOST for task_id in tasks))
        assert harness.metric("taskherd_sweeps_held_total") == held
        assert harness.metric("taskherd_mass_silence_held") == 0


async def test_a_worker_that_no_longer_sweeps_holds_no_mass_loss(start_worker: StartWorker) -> None:
    """A worker that stops sweeping ends its hold; when it sweeps again, a new hold starts from the beginning."""
    async with start_worker(agent_lost_after=1, mass_silence_hold=600) as harness:
        tasks = [await harness.create() for _ in range(6)]
        await asyncio.gather(*(harness.make_active(task_id) for task_id in tasks))
        await heartbeat(harness, *tasks)
        await harness.until_metric(1, "taskherd_mass_silence_held")
        first_hold = mass_held_since(harness)
        await harness.database.execute(
            "INSERT INTO workers (worker_id, started_at, seen_at, drained_since)"
            " VALUES ('', now(), now() + interval '20 seconds', now() - interval '1 hour')"
        )
        await harness.until_metric(0, "taskherd_mass_silence_held")
        assert mass_held_since(harness) is None
        await harness.database.execute("DELETE FROM workers WHERE worker_id = ''")
        await harness.until_metric(1, "taskherd_mass_silence_held")
        second_hold = mass_held_since(harness)
        assert first_hold is not None
        assert second_hold is not None
        assert second_hold > first_hold
        assert all(health(harness, task_id) == HEALTHY for task_id in tasks)


async def test_a_few_of_many_agents_are_lost_at_once(start_worker: StartWorker) -> None:
    """Fewer than 5 silent agents, or less than 55 % of those connected, do not trigger the mass-loss guard."""
    async with start_worker(agent_lost_after=5, mass_silence_hold=600) as harness:
        tasks = [await harness.create() for _ in range(12)]
        await asyncio.gather(*(harness.make_active(task_id) for task_id in tasks))
        connected, silent = tasks[:7], tasks[7:]

        async def keep_connected() -> None:
            while True:
                await heartbeat(harness, *connected)
                await asyncio.sleep(0.1)

        heartbeats = asyncio.create_task(keep_connected())
        try:
            await harness.until(lambda: all(health(harness, task_id) == LOST for task_id in silent))
        finally:
            heartbeats.cancel()
        assert all(health(harness, task_id) == HEALTHY for task_id in connected)
        assert harness.metric("taskherd_sweeps_held_total") == 0


SLOW_COMPARISON = """
CREATE SCHEMA slow;
CREATE FUNCTION slow.older(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF $1 OPERATOR(pg_catalog.=) '2000-01-01' THEN
            PERFORM pg_sleep(0.1);
        END IF;
        RETURN $1 OPERATOR(pg_catalog.>) '2000-01-02' AND $1 OPERATOR(pg_catalog.<) $2;
    END
$$;
CREATE OPERATOR slow.< (FUNCTION = slow.older, LEFTARG = timestamptz, RIGHTARG = timestamptz);
"""
"""Makes the comparison of some leases with a time take 100 ms, in sessions that have the schema in their search path.

Those are few: on a busy machine each sleep takes longer. The other leases are never silent, however long it all takes.
"""

OTHER_LEASES = """
INSERT INTO leases (task_id, build_number, seq, last_heartbeat_at)
SELECT gen_random_uuid(), 1, 1, CAST(CASE WHEN n % 100 = 0 THEN '2000-01-01' ELSE '2000-01-02' END AS timestamptz)
FROM generate_series(1, $1) AS n
"""


@pytest.mark.timeout(180)
async def test_a_sweep_that_cannot_read_all_leases_in_time_still_finds_the_lost(external: WorkerHarness) -> None:
    """When reading all leases exceeds the statement's time, each sweep judges those it read, and the next continues."""
    async with running_worker(external):
        tasks = [await external.make_active() for _ in range(2)]
    await external.database.execute(SLOW_COMPARISON)
    await external.database.execute(OTHER_LEASES, 4_000)  # 4 s, while a statement may take 2
    name = await external.database.fetchval("SELECT current_database()")
    await external.database.execute(f'ALTER DATABASE "{name}" SET search_path = slow, pg_catalog, public')
    async with running_worker(external, agent_lost_after=1):
        await external.until(lambda: all(health(external, task_id) == LOST for task_id in tasks))


async def test_time_without_a_worker_is_no_silence(external: WorkerHarness) -> None:
    """An agent without a heartbeat for an hour is lost only after agent_lost_after of the new worker's drained time."""
    async with running_worker(external):
        kept, lost = await external.make_active(), await external.make_active()
    await external.database.execute("UPDATE leases SET last_heartbeat_at = last_heartbeat_at - interval '1 hour'")
    async with running_worker(external, agent_lost_after=1.5):
        since = await drained_since(external)
        await heartbeat(external, kept)
        await external.until(lambda: health(external, lost) == LOST)
        at = datetime.fromisoformat(external.document(lost)["updated_at"])
        assert (at - since).total_seconds() > 1.5
        assert external.events_of(lost)[-2]["task"]["workspace_agent_health"] == HEALTHY


async def test_time_with_a_stuck_queue_is_no_silence(start_worker: StartWorker) -> None:
    """No agent is lost while reports wait in the queue, because their heartbeats may be among them."""
    async with start_worker(agent_lost_after=5, probe_timeout=2) as harness:
        task_id, other = await harness.make_active(), await harness.create()
        await drained_since(harness)
        async with harness.database.transaction():
            await harness.database.execute("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", other)
            await harness.report(build_report(other, 1, "start", "running"))
            await heartbeat(harness, task_id)
            await harness.until_row(
                "SELECT bool_and(clock_timestamp() - last_heartbeat_at > interval '6 seconds') FROM leases"
            )
            sweeps = harness.metric("taskherd_sweeps_total")
            async with asyncio.timeout(TIMEOUT):
                while harness.metric("taskherd_sweeps_total") < sweeps + 2:  # noqa: ASYNC110 - it sends no event
                    await asyncio.sleep(0.02)
            assert harness.metric("taskherd_drained") == 0
            assert health(harness, task_id) == HEALTHY
        await harness.until(lambda: harness.document(other).get("status") == "initializing")
        since = await drained_since(harness)
        await harness.until(lambda: health(harness, task_id) == LOST)
        at = datetime.fromisoformat(harness.document(task_id)["updated_at"])
        assert (at - since).total_seconds() > 4.9
