"""Reading leases in parts: each is read in time, also if some of them cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import leases
from taskherd.store.engine import StatementTimeout, dispose, open_engine, transaction
from taskherd.worker import lease_scan
from taskherd.worker.lease_scan import RANGE_BLOCKS, LeaseScan

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
LOST_AFTER = timedelta(minutes=2)
LEASES = 4_000
"""Of about 25 ranges."""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine on a database with leases that are all silent."""
    opened = open_engine(database_url, size=1, application_name="taskherd-tests")
    async with transaction(opened) as connection:
        await connection.execute(
            text("INSERT INTO leases SELECT gen_random_uuid(), 1, NULL, 1, NULL, :at FROM generate_series(1, :count)"),
            {"at": NOW - timedelta(hours=1), "count": LEASES},
        )
    yield opened
    await dispose(opened)


async def sweep(scan: LeaseScan, engine: AsyncEngine) -> set[UUID]:
    """Read as a sweep does, which judges all that was read and continues after it; return the silent tasks."""
    sample = await scan.read(engine, NOW, LOST_AFTER)
    for each in sample.ranges:
        scan.continue_at(each.next_position)
    return {task for each in sample.ranges for task in each.silent}


async def test_one_sweep_reads_a_small_table(engine: AsyncEngine) -> None:
    """All leases are read at once, and again by the next sweep."""
    scan = LeaseScan()
    first = await sweep(scan, engine)
    assert len(first) == LEASES
    assert await sweep(scan, engine) == first


async def test_a_range_that_takes_too_long_keeps_no_other_from_being_read(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements become smaller until it is alone; then it is left out, and the scan goes on after it."""
    async with transaction(engine) as connection:
        ranges = -(-await leases.count_blocks(connection) // RANGE_BLOCKS)
    slow, read = ranges // 2 * RANGE_BLOCKS, leases.scan
    sizes: list[int] = []

    async def reading(connection: AsyncConnection, starts: Sequence[int], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(starts))
        if slow in starts:
            raise StatementTimeout("too slow")
        return await read(connection, starts, *arguments, **options)

    monkeypatch.setattr(leases, "scan", reading)
    monkeypatch.setattr(lease_scan, "MAX_RANGES", 16)
    async with transaction(engine) as connection:
        [missing] = await read(
            connection, [slow], RANGE_BLOCKS, before=NOW, until=NOW + timedelta(minutes=1), time_limit=LOST_AFTER
        )
    assert 0 < missing.connected < LEASES / 10
    scan, found, sweeps = LeaseScan(), set[UUID](), 0
    while len(found) < LEASES - missing.connected:
        found |= await sweep(scan, engine)
        sweeps += 1
        assert sweeps < 60
    assert not found & set(missing.silent)
    assert 1 in sizes
