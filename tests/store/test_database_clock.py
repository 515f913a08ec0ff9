"""Stored times after the database's clock was set back."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import database_clock
from taskherd.store.database_clock import ClampPosition
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, waits_for_lock

PAST, FUTURE = NOW - timedelta(minutes=1), NOW + timedelta(hours=1)

ADD = (
    "INSERT INTO task_deadlines (task_id, due_at) VALUES (:id, :at)",
    "INSERT INTO parked (task_id, parked_at, report) VALUES (:id, :at, '{}')",
    """INSERT INTO work_requests (request_id, task_id, build_number, type, attempt, created_at, next_at, first_sent_at)
    VALUES (:id, :id, 1, 'workspace.start', 1, :at, :at, :at)""",
)
TIMES = """
SELECT d.task_id, ARRAY[d.due_at, p.parked_at, r.next_at, r.first_sent_at]
FROM task_deadlines AS d JOIN parked AS p USING (task_id) JOIN work_requests AS r USING (task_id)
"""


async def _times(engine: AsyncEngine) -> dict[UUID, list[datetime]]:
    async with transaction(engine) as connection:
        return {row[0]: row[1] for row in await connection.execute(text(TIMES))}


async def test_future_times_are_clamped_chunk_by_chunk(engine: AsyncEngine) -> None:
    """Every time in the future becomes now, once, however small the chunks are; all others stay."""
    at = {uuid4(): FUTURE if number % 3 else PAST for number in range(8)}
    async with transaction(engine) as connection:
        for statement in ADD:
            await connection.execute(text(statement), [{"id": task_id, "at": when} for task_id, when in at.items()])
    position: ClampPosition | None = ClampPosition()
    chunks = 0
    while position is not None:
        async with transaction(engine) as connection:
            position = await database_clock.clamp_chunk(connection, NOW, position, 3)
        chunks += 1
    assert chunks == 3 * (3 + 1)
    assert await _times(engine) == {task_id: [min(when, NOW)] * 4 for task_id, when in at.items()}


async def test_a_time_that_was_set_meanwhile_is_not_clamped_again(engine: AsyncEngine) -> None:
    """A chunk that was clamped is done with, so that clamping ends while the sweeps set new deadlines."""
    first, second = sorted((uuid4(), uuid4()))
    async with transaction(engine) as connection:
        for statement in ADD:
            await connection.execute(text(statement), [{"id": task_id, "at": FUTURE} for task_id in (first, second)])
        position = await database_clock.clamp_chunk(connection, NOW, ClampPosition(), 1)
        await connection.execute(
            text("UPDATE task_deadlines SET due_at = :at WHERE due_at = :now"), {"at": FUTURE, "now": NOW}
        )
    async with transaction(engine) as connection:
        while position is not None:
            position = await database_clock.clamp_chunk(connection, NOW, position, 1)
    times = await _times(engine)
    assert (times[first][0], times[second][0]) == (FUTURE, NOW)


@pytest.mark.parametrize(
    "stored",
    [
        "INSERT INTO task_feed (position, task_id, version, occurred_at) VALUES (1, :id, 1, :past), (2, :id, 2, :at)",
        "INSERT INTO workers (worker_id, started_at, seen_at) VALUES ('one', :past, :past), ('two', :past, :at)",
        """INSERT INTO leases (task_id, build_number, seq, last_heartbeat_at)
        VALUES (gen_random_uuid(), 1, 1, :past), (:id, 1, 1, :at)""",
    ],
    ids=["change", "worker", "heartbeat"],
)
async def test_a_stored_time_in_the_future_says_that_the_clock_was_set_back(engine: AsyncEngine, stored: str) -> None:
    """The last change, a worker's sign of life or a heartbeat that is later than now, but not one of this instant."""
    async with transaction(engine) as connection:
        assert not await database_clock.moved_back(connection, NOW)
        await connection.execute(text(stored), {"id": uuid4(), "past": PAST, "at": NOW})
        assert not await database_clock.moved_back(connection, NOW)
        assert await database_clock.moved_back(connection, NOW - timedelta(microseconds=1))


async def test_times_are_clamped_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    """A transaction that waits for a deadline holds none with a greater id, so two never wait for each other."""
    low, high = sorted((uuid4(), uuid4()))

    async def clamp() -> None:
        async with transaction(engine) as connection:
            await database_clock.clamp_chunk(connection, NOW, ClampPosition(), 10)

    async with transaction(engine) as connection:
        for task_id in (high, low):
            await connection.execute(text(ADD[0]), {"id": task_id, "at": FUTURE})
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT FROM task_deadlines WHERE task_id = :id FOR UPDATE"), {"id": low})
        clamping = asyncio.create_task(clamp())
        assert await waits_for_lock(engine, clamping)
        async with transaction(engine) as other:
            unlocked = text("SELECT task_id FROM task_deadlines FOR UPDATE SKIP LOCKED")
            assert (await other.execute(unlocked)).scalars().all() == [high]
    await clamping


async def test_only_times_in_the_future_of_workers_and_actions_are_clamped(engine: AsyncEngine) -> None:
    """Others stay. A finished action is clamped, too: the next one of its user waits for its pause."""
    add = """
    INSERT INTO task_actions (id, user_id, token_id, action, digest, total, refused, created_at, next_at, finished_at)
    VALUES (:id, :id, 'token', 'pause', '', 1, 0, :past, :next, :finished)"""
    nexts = [(FUTURE, None), (PAST, None), (FUTURE, PAST)]
    async with transaction(engine) as connection:
        await connection.execute(
            text("""INSERT INTO workers (worker_id, started_at, seen_at, drained_since)
            VALUES ('ahead', :past, :future, :future), ('drained', :past, :future, :past), ('past', :past, :past, NULL)
            """),
            {"past": PAST, "future": FUTURE},
        )
        await connection.execute(
            text("INSERT INTO users (id, username, name, email, avatar_url) VALUES (:id, 'a', '', '', '')"),
            {"id": UUID(int=1)},
        )
        for number, (next_at, finished) in enumerate(nexts, start=1):
            values = {"id": UUID(int=number), "past": PAST, "next": next_at, "finished": finished}
            await connection.execute(text(add), values)
        await database_clock.clamp_workers(connection, NOW)
        seen = await connection.execute(text("SELECT seen_at, drained_since FROM workers ORDER BY worker_id"))
        assert [tuple(row) for row in seen] == [(NOW, NOW), (NOW, PAST), (PAST, None)]
        due = await connection.execute(text("SELECT next_at FROM task_actions ORDER BY id"))
        assert due.scalars().all() == [NOW, PAST, NOW]
