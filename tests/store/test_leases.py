from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import leases
from taskherd.store.engine import transaction
from tests.store.conftest import NOW

LATER = NOW + timedelta(seconds=10)


def lease() -> Lease:
    """Return a lease of build 3."""
    return Lease(uuid4(), 3, uuid4(), 100, NOW, NOW)


def heartbeat(of: Lease, seq: int) -> HeartbeatSummary:
    """Return a heartbeat of the same build and agent as the lease."""
    return HeartbeatSummary(of.task_id, of.build_number, of.agent_id, seq, LATER, LATER)


async def test_only_leases_of_the_same_build_and_agent_are_renewed(engine: AsyncEngine) -> None:
    """Heartbeats of another build or agent, repeats and those without a lease renew nothing and must be reconciled."""
    before = [lease() for _ in range(6)]
    heartbeats = [
        heartbeat(before[0], 101),
        replace(heartbeat(before[1], 101), build_number=4),
        replace(heartbeat(before[2], 101), agent_id=uuid4()),
        replace(heartbeat(before[3], 101), agent_id=None),
        heartbeat(before[4], 100),
        replace(heartbeat(before[5], 99), build_number=None),
        heartbeat(lease(), 101),
    ]
    async with transaction(engine) as connection:
        await leases.upsert(connection, before)
        assert await leases.renew(connection, heartbeats) == {before[0].task_id, before[5].task_id}
        after = {row.task_id: row for row in await leases.lock(connection, [row.task_id for row in before])}
    assert after[before[0].task_id] == replace(before[0], seq=101, observed_at=LATER, last_heartbeat_at=LATER)
    assert after[before[5].task_id] == replace(before[5], last_heartbeat_at=LATER)
    assert [after[row.task_id] for row in before[1:5]] == before[1:5]


async def test_concurrent_renewals_keep_the_greatest_seq(engine: AsyncEngine) -> None:
    """Batches that renew the same leases concurrently wait for each other, and the newest heartbeat stays."""
    existing = [lease() for _ in range(50)]
    async with transaction(engine) as connection:
        await leases.upsert(connection, existing)

    async def renew(seq: int) -> None:
        rows = existing if seq % 2 else existing[::-1]
        async with transaction(engine) as connection:
            await leases.renew(connection, [heartbeat(row, seq) for row in rows])

    await asyncio.gather(*(renew(seq) for seq in range(101, 121)))
    async with transaction(engine) as connection:
        assert {row.seq for row in await leases.lock(connection, [row.task_id for row in existing])} == {120}


async def test_silent_tasks_are_returned_longest_silent_first(engine: AsyncEngine) -> None:
    """Only existing leases whose last heartbeat is older than the given time are silent."""
    first, second, latest = (replace(lease(), last_heartbeat_at=NOW + timedelta(seconds=at)) for at in (0, 1, 2))
    async with transaction(engine) as connection:
        await leases.upsert(connection, [second, latest, first])
        assert await leases.silent(connection, latest.last_heartbeat_at, 10) == [first.task_id, second.task_id]
        await leases.delete(connection, [first.task_id])
        assert await leases.silent(connection, latest.last_heartbeat_at, 10) == [second.task_id]
        assert await leases.count(connection, latest.last_heartbeat_at) == (2, 1)
