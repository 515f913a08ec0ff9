"""Stored times after the database's clock was set back."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import database_clock
from taskherd.store.database_clock import ClampPosition
from taskherd.store.engine import transaction
from tests.store.conftest import NOW

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
