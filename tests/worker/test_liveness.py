"""Silence through the worker: judged by its own clock, and only over time in which it was listening."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime
from typing import Any

from tests.harness.worker import Herd, build, said, working
from tests.worker.conftest import Herding

LOST = {"healthy": False, "reason": "agent has lost connection"}
WELL = {"healthy": True}
LONG = {"healthy": False, "reason": "agent is taking too long to connect"}
NOT_YET = {"healthy": False, "reason": "agent has not yet connected"}


def health(flock: Herd, task_id: uuid.UUID) -> Any:
    """The agent's health, as the events tell it."""
    return flock.document(task_id).get("workspace_agent_health")


async def beat(flock: Herd, *tasks: uuid.UUID) -> None:
    """A heartbeat of the agent of each task."""
    await flock.report(*(said("agent.heartbeat", task_id) for task_id in tasks))


async def drained_since(flock: Herd) -> datetime:
    """Since when the worker has been listening, once it is."""
    await flock.until_row("SELECT drained_since IS NOT NULL FROM workers ORDER BY seen_at DESC LIMIT 1")
    since = flock.worker.probe.drained_since
    assert since is not None
    return since


async def test_a_silent_agent_is_lost_and_a_heartbeat_heals(herding: Herding) -> None:
    """After agent_lost_after without a heartbeat the health flips, told by a sweep; a heartbeat turns it back."""
    async with herding(agent_lost_after=1) as flock:
        task_id = await flock.active()
        await flock.until(lambda: health(flock, task_id) == LOST)
        told = flock.told(task_id)[-1]
        assert told["cause"] == {"kind": "sweep", "type": "agent.silent"}
        assert told["changes"] == ["workspace_agent_health"]
        assert told["task"]["status"] == "active"
        heard, flipped = await flock.database.fetchrow(
            "SELECT (memory #>> '{heard,0,1}')::timestamptz, updated_at FROM tasks"
        )
        assert (flipped - heard).total_seconds() > 1
        await flock.until_row("SELECT count(*) FROM leases", is_=0)
        await beat(flock, task_id)
        await flock.until(lambda: health(flock, task_id) == WELL)
        assert flock.told(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.heartbeat"}
        assert await flock.database.fetchval("SELECT count(*) FROM leases") == 1


async def test_an_agent_that_never_connects(herding: Herding) -> None:
    """Named and never heard it has not yet connected; after agent_connect_timeout it takes too long."""
    async with herding(agent_connect_timeout=1) as flock:
        task_id = await flock.create()
        await flock.report(build(task_id, 1, "start", "succeeded", agent_id=str(uuid.uuid4())))
        await flock.until(lambda: health(flock, task_id) == LONG)
        assert NOT_YET in [each["task"]["workspace_agent_health"] for each in flock.told(task_id)]
        assert flock.told(task_id)[-1]["cause"] == {"kind": "sweep", "type": "agent.silent"}
        await beat(flock, task_id)
        await flock.until(lambda: health(flock, task_id) == WELL)


async def test_a_goodbye_is_believed_at_once(flock: Herd) -> None:
    """An agent that says goodbye has lost connection without a wait, and comes back with a heartbeat."""
    task_id = await flock.active()
    await flock.report(said("agent.disconnected", task_id))
    await flock.until(lambda: health(flock, task_id) == LOST)
    assert flock.told(task_id)[-1]["cause"] == {"kind": "report", "type": "agent.disconnected"}
    assert await flock.database.fetchval("SELECT count(*) FROM leases") == 0
    await beat(flock, task_id)
    await flock.until(lambda: health(flock, task_id) == WELL)
    await flock.report(said("agent.lifecycle", task_id, lifecycle="off"), said("agent.disconnected", task_id))
    gone = {"healthy": False, "reason": "agent is not running"}
    await flock.until(lambda: health(flock, task_id) == gone)


async def test_a_mass_of_silences_is_held_then_believed(herding: Herding) -> None:
    """When most agents fall silent at once none is lost while it is held, not one that is due for another reason."""
    async with herding(agent_lost_after=1, mass_silence_hold=1.5, build_timeout=1) as flock:
        tasks = [await flock.create() for _ in range(6)]
        await asyncio.gather(*(flock.active(task_id) for task_id in tasks))
        await flock.report(build(tasks[0], 2, "start", "running"), said("agent.heartbeat", tasks[0], build_number=2))
        await flock.until_row("SELECT count(*) FROM leases WHERE build_number = 2", is_=1)
        await beat(flock, *tasks)
        await flock.until(lambda: flock.document(tasks[0]).get("status") == "error")
        await flock.until_row("SELECT count(*) FROM task_events WHERE cause ->> 'type' = 'agent.silent'", is_=6)
        assert flock.metric("taskherd_sweeps_held_total") > 3
        assert flock.metric("taskherd_mass_silence_held") == 0
        silences = await flock.database.fetch(
            "SELECT e.occurred_at - (t.memory #>> '{heard,-1,1}')::timestamptz AS after FROM task_events e"
            " JOIN tasks t ON t.id = e.task_id WHERE e.cause ->> 'type' = 'agent.silent'"
        )
        assert min(row["after"].total_seconds() for row in silences) > 2


async def test_a_few_of_many_are_believed_at_once(herding: Herding) -> None:
    """Fewer than 5, or than 55 % of those connected, is no mass."""
    async with herding(agent_lost_after=1, mass_silence_hold=600) as flock:
        tasks = [await flock.create() for _ in range(12)]
        await asyncio.gather(*(flock.active(task_id) for task_id in tasks))
        lively, silent = tasks[:7], tasks[7:]

        async def live() -> None:
            while True:
                await beat(flock, *lively)
                await asyncio.sleep(0.1)

        living = asyncio.create_task(live())
        try:
            await flock.until(lambda: all(health(flock, task_id) == LOST for task_id in silent))
        finally:
            living.cancel()
        assert all(health(flock, task_id) == WELL for task_id in lively)
        assert flock.metric("taskherd_sweeps_held_total") == 0


async def test_silence_while_the_worker_was_down_proves_nothing(alone: Herd) -> None:
    """An agent not heard for an hour is lost only after agent_lost_after of the new worker's own listening."""
    async with working(alone):
        kept, lost = await alone.active(), await alone.active()
    await alone.database.execute("UPDATE leases SET heard_at = heard_at - interval '1 hour'")
    async with working(alone, agent_lost_after=1.5):
        since = await drained_since(alone)
        await beat(alone, kept)
        await alone.until(lambda: health(alone, lost) == LOST)
        at = datetime.fromisoformat(alone.document(lost)["updated_at"])
        assert (at - since).total_seconds() > 1.5
        assert alone.told(lost)[-2]["task"]["workspace_agent_health"] == WELL


async def test_silence_while_the_queue_is_stuck_proves_nothing(herding: Herding) -> None:
    """While reports wait in the queue nobody is lost, however long; their heartbeats are found there afterwards."""
    async with herding(agent_lost_after=1, probe_timeout=0.3) as flock:
        task_id, other = await flock.active(), await flock.create()
        await drained_since(flock)
        async with flock.database.transaction():
            await flock.database.execute("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", other)
            await flock.report(build(other, 1, "start", "running"))
            await beat(flock, task_id)
            await flock.until_row("SELECT bool_and(clock_timestamp() - heard_at > interval '2 seconds') FROM leases")
            sweeps = flock.metric("taskherd_sweeps_total")
            await flock.until_row("SELECT bool_and(clock_timestamp() - heard_at > interval '2.5 seconds') FROM leases")
            assert flock.metric("taskherd_sweeps_total") > sweeps
            assert flock.metric("taskherd_drained") == 0
            assert health(flock, task_id) == WELL
        await flock.until(lambda: flock.document(other).get("status") == "initializing")
        since = await drained_since(flock)
        await flock.until(lambda: health(flock, task_id) == LOST)
        at = datetime.fromisoformat(flock.document(task_id)["updated_at"])
        assert (at - since).total_seconds() > 0.9
