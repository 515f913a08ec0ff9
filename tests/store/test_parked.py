"""Parked reports: limited per task, and never parked after the create that should have read them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import parked_reports
from taskherd.store.engine import transaction
from tests.store.conftest import NOW


async def test_parking_is_limited_per_task_and_keeps_the_order(engine: AsyncEngine) -> None:
    """Reports beyond the limit of a task are returned by index; the others are read in the order of parking."""
    one, other = uuid4(), uuid4()
    async with transaction(engine) as connection:
        await parked_reports.lock_task_ids(connection, [one, other])
        batch = [
            parked_reports.ReportToPark(task_id, NOW, f'{{"n":{n}}}')
            for n, task_id in enumerate([one, other, one, one])
        ]
        assert await parked_reports.park(connection, batch, 2) == [3]
        assert await parked_reports.park(connection, batch[:2], 2) == [0]
        rows = await parked_reports.lock(connection, [one])
        assert [row.report for row in rows] == ['{"n":0}', '{"n":2}']
        await parked_reports.delete(connection, [row.id for row in rows])
        assert await parked_reports.lock(connection, [one]) == []
        assert await parked_reports.lock_expired(connection, NOW, 10) == []
        assert [
            row.task_id for row in await parked_reports.lock_expired(connection, NOW + timedelta(seconds=1), 10)
        ] == [
            other,
            other,
        ]


async def test_locked_task_ids_exclude_other_transactions(engine: AsyncEngine) -> None:
    """A transaction that parks for a task waits until the one that creates it has committed, for any number of ids."""
    ids = [uuid4() for _ in range(2000)]
    order: list[str] = []

    async def second() -> None:
        async with transaction(engine) as connection:
            await parked_reports.lock_task_ids(connection, ids[::-1])
            order.append("second")

    async with transaction(engine) as connection:
        await parked_reports.lock_task_ids(connection, ids)
        waiter = asyncio.create_task(second())
        blocked = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        async with engine.connect() as observer:
            while (await observer.execute(blocked)).scalar_one() == 0:
                await observer.rollback()
        order.append("first")
    await waiter
    assert order == ["first", "second"]
