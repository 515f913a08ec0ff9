"""Silence through the worker: judged by its own clock, and only over time in which it was listening."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime
from typing import Any

from tests.harness.worker import WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import StartWorker

LOST = {"healthy": False, "reason": "agent has lost connection"}
WELL = {"healthy": True}
LONG = {"healthy": False, "reason": "agent is taking too long to connect"}
NOT_YET = {"healthy": False, "reason": "agent has not yet connected"}


def health(harness: WorkerHarness, task_id: uuid.UUID) -> Any:
    """The agent's health, as the events tell it."""
    return harness.document(task_id).get("workspace_agent_health")


async def beat(harness: WorkerHarness, *tasks: uuid.UUID) -> None:
    """A heartbeat of the agent of each task."""
    await harness.report(*(make_report("agent.heartbeat", task_id) for task_id in tasks))


async def drained_since(harness: WorkerHarness) -> datetime:
    """Since when the worker has been listening, once it is."""
    await harness.until_row("SELECT drained_since IS NOT NULL FROM workers ORDER BY seen_at DESC LIMIT 1")
    since = harness.worker.probe.drained_since
    assert since is not None
    return since


async def test_a_silent_agent_is_lost_and_a_heartbeat_heals(start_worker: StartWorker) -> None:
    """After agent_lost_after without a heartbeat the health flips, told by a sweep; a heartbeat turns it back."""
    async with start_worker(agent_lost_after=1) as harness:
        task_id = await harness.active()
        await harness.until(lambda: health(harness, task_id) == LOST)
        told = harness.events_of(task_id)[-1]
        assert told["cause"] == {"kind": "sweep", "type": "agent.silent"}
        assert told["changes"] == ["workspace_agent_health"]
        assert told["task"]["status"] == "active"
        heard, flipped = await harness.database.fetchrow(
            "SELECT (state #>> '{heard,0,1}')::timestamptz, updated_at FROM tasks"
        )
        assert (flipped - heard).total_seconds() > 1
        await harness.until_row("SELECT count(*) FROM leases", is_=0)
        await beat(harness, task_id)
        await harness.until(lambda: health(harness, task_id) == WELL)
        assert harness.events_of(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.heartbeat"}
        assert await harness.database.fetchval("SELECT count(*) FROM leases") == 1


async def test_an_agent_that_never_connects(start_worker: StartWorker) -> None:
    """Named and never heard it has not yet connected; after agent_connect_timeout it takes too long."""
    async with start_worker(agent_connect_timeout=1) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 1, "start", "succeeded", agent_id=str(uuid.uuid4())))
        await harness.until(lambda: health(harness, task_id) == LONG)
        assert NOT_YET in [each["task"]["workspace_agent_health"] for each in harness.events_of(task_id)]
        assert harness.events_of(task_id)[-1]["cause"] == {"kind": "sweep", "type": "agent.silent"}
        await beat(harness, task_id)
        await harness.until(lambda: health(harness, task_id) == WELL)


async def test_a_goodbye_is_believed_at_once(harness: WorkerHarness) -> None:
    """An agent that says goodbye has lost connection without a wait, and comes back with a heartbeat."""
    task_id = await harness.active()
    await harness.report(make_report("agent.disconnected", task_id))
    await harness.until(lambda: health(harness, task_id) == LOST)
    assert harness.events_of(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.disconnected"}
    assert await harness.database.fetchval("SELECT count(*) FROM leases") == 0
    await beat(harness, task_id)
    await harness.until(lambda: health(harness, task_id) == WELL)
    await harness.report(
        make_report("agent.lifecycle", task_id, lifecycle="off"), make_report("agent.disconnected", task_id)
    )
    gone = {"healthy": False, "reason": "agent is not running"}
    await harness.until(lambda: health(harness, task_id) == gone)


async def test_a_mass_of_silences_is_held_then_believed(start_worker: StartWorker) -> None:
    """When most agents fall silent at once none is lost while it is held, not one that is due for another reason."""
    async with start_worker(agent_lost_after=1, mass_silence_hold=1.5, build_timeout=1) as harness:
        tasks = [await harness.create() for _ in range(6)]
        await asyncio.gather(*(harness.active(task_id) for task_id in tasks))
        await harness.report(
            build_report(tasks[0], 2, "start", "running"), make_report("agent.heartbeat", tasks[0], build_number=2)
        )
        await harness.until_row("SELECT count(*) FROM leases WHERE build_number = 2", is_=1)
        await beat(harness, *tasks)
        await harness.until(lambda: harness.document(tasks[0]).get("status") == "error")
        await harness.until_row("SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'", is_=6)
        assert harness.metric("taskherd_sweeps_held_total") > 3
        assert harness.metric("taskherd_mass_silence_held") == 0
        silences = await harness.database.fetch(
            "SELECT e.occurred_at - (t.state #>> '{heard,-1,1}')::timestamptz AS after FROM task_events e"
            " JOIN tasks t ON t.id = e.task_id WHERE e.cause ->> 'type' = 'agent.silent'"
        )
        assert min(row["after"].total_seconds() for row in silences) > 2


async def test_a_few_of_many_are_believed_at_once(start_worker: StartWorker) -> None:
    """Fewer than 5, or than 55 % of those connected, is no mass."""
    async with start_worker(agent_lost_after=1, mass_silence_hold=600) as harness:
        tasks = [await harness.create() for _ in range(12)]
        await asyncio.gather(*(harness.active(task_id) for task_id in tasks))
        lively, silent = tasks[:7], tasks[7:]

        async def live() -> None:
            while True:
                await beat(harness, *lively)
                await asyncio.sleep(0.1)

        living = asyncio.create_task(live())
        try:
            await harness.until(lambda: all(health(harness, task_id) == LOST for task_id in silent))
        finally:
            living.cancel()
        assert all(health(harness, task_id) == WELL for task_id in lively)
        assert harness.metric("taskherd_sweeps_held_total") == 0


async def test_silence_while_the_worker_was_down_proves_nothing(alone: WorkerHarness) -> None:
    """An agent not heard for an hour is lost only after agent_lost_after of the new worker's own listening."""
    async with running_worker(alone):
        kept, lost = await alone.active(), await alone.active()
    await alone.database.execute("UPDATE leases SET last_heartbeat_at = last_heartbeat_at - interval '1 hour'")
    async with running_worker(alone, agent_lost_after=1.5):
        since = await drained_since(alone)
        await beat(alone, kept)
        await alone.until(lambda: health(alone, lost) == LOST)
        at = datetime.fromisoformat(alone.document(lost)["updated_at"])
        assert (at - since).total_seconds() > 1.5
        assert alone.events_of(lost)[-2]["task"]["workspace_agent_health"] == WELL


async def test_silence_while_the_queue_is_stuck_proves_nothing(start_worker: StartWorker) -> None:
    """While reports wait in the queue nobody is lost, however long; their heartbeats are found there afterwards."""
    async with start_worker(agent_lost_after=1, probe_timeout=0.3) as harness:
        task_id, other = await harness.active(), await harness.create()
        await drained_since(harness)
        async with harness.database.transaction():
            await harness.database.execute("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", other)
            await harness.report(build_report(other, 1, "start", "running"))
            await beat(harness, task_id)
            await harness.until_row(
                "SELECT bool_and(clock_timestamp() - last_heartbeat_at > interval '2 seconds') FROM leases"
            )
            sweeps = harness.metric("taskherd_sweeps_total")
            await harness.until_row(
                "SELECT bool_and(clock_timestamp() - last_heartbeat_at > interval '2.5 seconds') FROM leases"
            )
            assert harness.metric("taskherd_sweeps_total") > sweeps
            assert harness.metric("taskherd_drained") == 0
            assert health(harness, task_id) == WELL
        await harness.until(lambda: harness.document(other).get("status") == "initializing")
        since = await drained_since(harness)
        await harness.until(lambda: health(harness, task_id) == LOST)
        at = datetime.fromisoformat(harness.document(task_id)["updated_at"])
        assert (at - since).total_seconds() > 0.9
