from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import leases
from taskherd.store.engine import StatementTimeout, transaction
from tests.store.conftest import NOW, empty, ignore_indexes, waits_for_lock

LATER = NOW + timedelta(seconds=10)
LIMIT = timedelta(seconds=4)


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


async def upsert_all(connection: AsyncConnection, rows: Sequence[Lease]) -> None:
    """Replace the leases."""
    await leases.upsert(connection, rows)


async def renew_all(connection: AsyncConnection, rows: Sequence[Lease]) -> None:
    """Renew the leases."""
    await leases.renew(connection, [heartbeat(row, 101) for row in rows])


async def lock_all(connection: AsyncConnection, rows: Sequence[Lease]) -> None:
    """Lock the leases."""
    await leases.lock(connection, [row.task_id for row in rows])


async def delete_all(connection: AsyncConnection, rows: Sequence[Lease]) -> None:
    """Delete the leases."""
    await leases.delete(connection, [row.task_id for row in rows])


@pytest.mark.parametrize("lock_again", [upsert_all, renew_all, lock_all, delete_all])
async def test_leases_are_locked_in_id_order(
    engine: AsyncEngine, lock_again: Callable[[AsyncConnection, Sequence[Lease]], Awaitable[None]]
) -> None:
    """A transaction that waits for a lease holds none with a greater id, so two of them never wait for each other."""
    low, high = sorted((lease() for _ in range(2)), key=attrgetter("task_id"))

    async def wait() -> None:
        async with transaction(engine) as connection:
            await ignore_indexes(connection)
            await lock_again(connection, [high, low])

    async with transaction(engine) as connection:
        await empty(connection, "leases")
        for row in (high, low):  # the greater id is the first one in the table
            await leases.upsert(connection, [row])
    async with transaction(engine) as connection:
        await leases.lock(connection, [low.task_id])
        waiting = asyncio.create_task(wait())
        assert await waits_for_lock(engine, waiting)
        async with transaction(engine) as other:
            unlocked = text("SELECT task_id FROM leases FOR UPDATE SKIP LOCKED")
            assert (await other.execute(unlocked)).scalars().all() == [high.task_id]
    await waiting


async def test_only_the_given_leases_are_locked(engine: AsyncEngine) -> None:
    """A transaction that locks a task's lease returns no other task's and lets others lock those."""
    wanted, other = lease(), lease()
    async with transaction(engine) as connection:
        await leases.upsert(connection, [wanted, other])
    async with transaction(engine) as connection:
        assert await leases.lock(connection, [wanted.task_id]) == [wanted]
        async with transaction(engine) as second:
            unlocked = text("SELECT task_id FROM leases FOR UPDATE SKIP LOCKED")
            assert (await second.execute(unlocked)).scalars().all() == [other.task_id]


async def test_a_heartbeat_waits_for_a_transaction_that_has_read_the_lease(engine: AsyncEngine) -> None:
    """Otherwise what that transaction writes would replace a heartbeat that it has not seen."""
    read = lease()

    async def renew() -> set[UUID]:
        async with transaction(engine) as connection:
            return await leases.renew(connection, [heartbeat(read, 101)])

    async with transaction(engine) as connection:
        await leases.upsert(connection, [read])
    async with transaction(engine) as connection:
        assert await leases.lock(connection, [read.task_id]) == [read]
        renewing = asyncio.create_task(renew())
        assert await waits_for_lock(engine, renewing)
        await leases.upsert(connection, [replace(read, observed_at=NOW + timedelta(seconds=1))])
    assert await renewing == {read.task_id}
    async with transaction(engine) as connection:
        assert await leases.lock(connection, [read.task_id]) == [
            replace(read, seq=101, observed_at=LATER, last_heartbeat_at=LATER)
        ]


async def test_a_heartbeat_that_has_waited_renews_no_lease_of_another_build(engine: AsyncEngine) -> None:
    """What the other transaction has written decides whether it renews the lease, not what was there before."""
    read = lease()
    replaced = replace(read, build_number=4, seq=7)

    async def renew() -> set[UUID]:
        async with transaction(engine) as connection:
            return await leases.renew(connection, [heartbeat(read, 101)])

    async with transaction(engine) as connection:
        await leases.upsert(connection, [read])
    async with transaction(engine) as connection:
        await leases.upsert(connection, [replaced])
        renewing = asyncio.create_task(renew())
        assert await waits_for_lock(engine, renewing)
    assert await renewing == set()
    async with transaction(engine) as connection:
        assert await leases.lock(connection, [read.task_id]) == [replaced]


async def scanned(connection: AsyncConnection, *starts: int, time_limit: timedelta = LIMIT) -> list[leases.LeaseRange]:
    """Scan ranges of four blocks for leases without a heartbeat since ``LATER``."""
    until = LATER + timedelta(seconds=30)
    return await leases.scan(connection, starts, 4, before=LATER, until=until, time_limit=time_limit)


async def test_silent_leases_are_found_in_the_ranges_of_blocks_read(engine: AsyncEngine) -> None:
    """Of each range all leases count; those with an old heartbeat are silent, and those with one far in the future."""
    silent, heard, wrong = (
        replace(lease(), last_heartbeat_at=LATER + timedelta(seconds=seconds)) for seconds in (-1, 0, 31)
    )
    async with transaction(engine) as connection:
        await leases.upsert(connection, sorted([silent, heard, wrong], key=attrgetter("task_id")))
        await connection.execute(
            text("INSERT INTO leases SELECT gen_random_uuid(), 1, NULL, 1, NULL, :at FROM generate_series(1, 400)"),
            {"at": LATER},
        )
        blocks = await leases.count_blocks(connection)
        assert 4 < blocks < 20
        first, missing, *others = await scanned(connection, 0, 100, *range(4, blocks, 4))
        assert set(first.silent) == {silent.task_id, wrong.task_id}
        assert missing == (0, [])
        assert first.connected + sum(each.connected for each in others) == 403
        assert not any(each.silent for each in others)


async def test_a_scan_reads_its_blocks_only(engine: AsyncEngine) -> None:
    """The plan reads ranges of blocks, so that its cost does not depend on the size of the table."""
    async with transaction(engine) as connection:
        rows = await connection.execute(
            text(f"EXPLAIN {leases.SCAN.text}"), {"starts": [0], "blocks": 4, "before": NOW, "until": NOW}
        )
        plan = "\n".join(line for (line,) in rows)
    assert "Tid Range Scan on leases" in plan


async def test_a_scan_that_takes_too_long_is_canceled(engine: AsyncEngine) -> None:
    """Only the scan's own transaction has the shorter limit, and its error says that it was the time."""
    show = text("SHOW statement_timeout")
    async with transaction(engine) as connection:
        before = (await connection.execute(show)).scalar_one()

    async def take_too_long() -> None:
        async with transaction(engine) as connection:
            await scanned(connection, time_limit=timedelta(milliseconds=50))
            await connection.execute(text("SELECT pg_sleep(30)"))

    with pytest.raises(StatementTimeout):
        await take_too_long()
    async with transaction(engine) as connection:
        assert (await connection.execute(show)).scalar_one() == before
