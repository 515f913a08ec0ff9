"""Parked reports: limited per task, and never parked after the create that should have read them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import parked_reports
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, ignore_indexes, waits_for_lock


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


async def test_an_expiry_skips_what_another_transaction_has_locked(engine: AsyncEngine) -> None:
    """Two workers expire different reports, and none that a create has read: nobody waits, and none is taken twice."""
    created, expired, waiting = uuid4(), uuid4(), uuid4()
    late = NOW + timedelta(seconds=1)
    async with transaction(engine) as connection:
        reports = [
            parked_reports.ReportToPark(each, NOW, f'{{"of": "{each}"}}') for each in (created, expired, waiting)
        ]
        assert await parked_reports.park(connection, reports, 2) == []
    async with transaction(engine) as create, transaction(engine) as first, transaction(engine) as second:
        assert [row.task_id for row in await parked_reports.lock(create, [created])] == [created]
        assert [row.task_id for row in await parked_reports.lock_expired(first, late, 1)] == [expired]
        assert [row.task_id for row in await parked_reports.lock_expired(second, late, 10)] == [waiting]


async def test_a_create_waits_for_an_expiry(engine: AsyncEngine) -> None:
    """A create that comes while reports for it expire finds none of them: a dead letter is not folded as well."""
    task_id = uuid4()

    async def read() -> list[parked_reports.ParkedReport]:
        async with transaction(engine) as connection:
            await parked_reports.lock_task_ids(connection, [task_id])
            return await parked_reports.lock(connection, [task_id])

    async with transaction(engine) as connection:
        await parked_reports.park(connection, [parked_reports.ReportToPark(task_id, NOW, "{}")], 1)
    async with transaction(engine) as connection:
        (expired,) = await parked_reports.lock_expired(connection, NOW + timedelta(seconds=1), 10)
        reading = asyncio.create_task(read())
        assert await waits_for_lock(engine, reading)
        await parked_reports.delete(connection, [expired.id])
    assert await reading == []


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
        assert await waits_for_lock(engine, waiter)
        order.append("first")
    await waiter
    assert order == ["first", "second"]


async def test_the_reports_beyond_the_limits_of_several_tasks_are_named_in_order(engine: AsyncEngine) -> None:
    """Each task has its own limit, whatever is parked for the others."""
    one, two, three = (uuid4() for _ in range(3))
    batch = [
        parked_reports.ReportToPark(task_id, NOW, f'{{"n":{n}}}')
        for n, task_id in enumerate([one, two, one, two, three, one])
    ]
    async with transaction(engine) as connection:
        assert await parked_reports.park(connection, batch, 1) == [2, 3, 5]
        assert await parked_reports.park(connection, batch, 2) == [2, 3, 5]
        rows = await parked_reports.lock(connection, [two, three])
        assert [row.report for row in rows] == ['{"n":1}', '{"n":4}', '{"n":1}', '{"n":4}']
        await ignore_indexes(connection)
        await connection.execute(  # the first one is now the last one in the table
            text("UPDATE parked SET parked_at = parked_at WHERE id = :id"), {"id": rows[0].id}
        )
        assert await parked_reports.lock(connection, [two, three]) == rows


async def test_the_oldest_reports_expire_first(engine: AsyncEngine) -> None:
    """Up to the limit, whatever the order in which they were stored; only those that are named are deleted."""
    tasks = [uuid4() for _ in range(4)]
    reports = [
        parked_reports.ReportToPark(task_id, NOW - timedelta(seconds=age), "{}")
        for task_id, age in zip(tasks, (1, 3, 2, 3), strict=True)
    ]
    async with transaction(engine) as connection:
        assert await parked_reports.park(connection, reports, 9) == []
        await ignore_indexes(connection)
        rows = await parked_reports.lock_expired(connection, NOW, 9)
        assert [row.task_id for row in rows] == [tasks[1], tasks[3], tasks[2], tasks[0]]
        assert [row.parked_at for row in rows] == [reports[n].parked_at for n in (1, 3, 2, 0)]
        assert await parked_reports.lock_expired(connection, NOW, 2) == rows[:2]
        await parked_reports.delete(connection, [row.id for row in rows[:2]])
        assert await parked_reports.lock_expired(connection, NOW - timedelta(seconds=1), 9) == rows[2:3]
        assert await parked_reports.lock_expired(connection, NOW, 9) == rows[2:]
