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
    """A lease of build 3."""
    return Lease(uuid4(), 3, uuid4(), 100, NOW, NOW)


def beat(held: Lease, seq: int) -> HeartbeatSummary:
    """A heartbeat of the lease's own build and agent."""
    return HeartbeatSummary(held.task_id, held.build_number, held.agent_id, seq, LATER, LATER)


async def test_touch_renews_only_the_lease_of_that_build_and_agent(engine: AsyncEngine) -> None:
    """Another build, another agent, a repeat or no lease at all: the lease stays and the corridor gets the beat."""
    held = [lease() for _ in range(6)]
    stranger = lease()
    beats = [
        beat(held[0], 101),
        replace(beat(held[1], 101), build_number=4),
        replace(beat(held[2], 101), agent_id=uuid4()),
        replace(beat(held[3], 101), agent_id=None),
        beat(held[4], 100),
        replace(beat(held[5], 99), build_number=None),
        beat(stranger, 101),
    ]
    async with transaction(engine) as conn:
        await leases.upsert(conn, held)
        assert await leases.touch(conn, beats) == {held[0].task_id, held[5].task_id}
        after = {row.task_id: row for row in await leases.load(conn, [row.task_id for row in held])}
    assert after[held[0].task_id] == replace(held[0], seq=101, observed_at=LATER, last_heartbeat_at=LATER)
    assert after[held[5].task_id] == replace(held[5], last_heartbeat_at=LATER)
    assert [after[row.task_id] for row in held[1:5]] == held[1:5]


async def test_touches_in_any_order_keep_the_greatest_seq(engine: AsyncEngine) -> None:
    """Batches that touch the same leases at once wait for each other, and the newest heartbeat stays."""
    held = [lease() for _ in range(50)]
    async with transaction(engine) as conn:
        await leases.upsert(conn, held)

    async def touch(seq: int) -> None:
        rows = held if seq % 2 else held[::-1]
        async with transaction(engine) as conn:
            await leases.touch(conn, [beat(row, seq) for row in rows])

    await asyncio.gather(*(touch(seq) for seq in range(101, 121)))
    async with transaction(engine) as conn:
        assert {row.seq for row in await leases.load(conn, [row.task_id for row in held])} == {120}


async def test_silent_finds_the_longest_silent_first(engine: AsyncEngine) -> None:
    """Only leases not heard since the instant are silent, and one that ended is not."""
    first, second, heard = (replace(lease(), last_heartbeat_at=NOW + timedelta(seconds=at)) for at in (0, 1, 2))
    async with transaction(engine) as conn:
        await leases.upsert(conn, [second, heard, first])
        assert await leases.silent(conn, heard.last_heartbeat_at, 10) == [first.task_id, second.task_id]
        await leases.remove(conn, [first.task_id])
        assert await leases.silent(conn, heard.last_heartbeat_at, 10) == [second.task_id]
        assert await leases.count(conn, heard.last_heartbeat_at) == (2, 1)
