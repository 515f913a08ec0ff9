"""Which deleted tasks are due to be erased, and that finding them is an index lookup."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import erasure, outbox, tasks
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, event, next_version, task_row

HOUR = timedelta(hours=1)


async def test_which_tasks_are_due(engine: AsyncEngine) -> None:
    """Those deleted long enough ago, the earliest first, once their events are published, and not again."""
    live, early, late, unpublished, erased = rows = [task_row() for _ in range(5)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        deleted = [
            next_version(early, 2, deleted_at=NOW - 3 * HOUR),
            next_version(late, 2, deleted_at=NOW - HOUR),
            next_version(unpublished, 2, deleted_at=NOW - 4 * HOUR),
            next_version(erased, 2, deleted_at=NOW - 5 * HOUR),
        ]
        await tasks.save(connection, deleted, [event(unpublished.task.id, 2)])
        await connection.execute(text("UPDATE tasks SET erased_at = now() WHERE id = :id"), {"id": erased.task.id})

    async def due(age: timedelta, limit: int = 10) -> list[UUID]:
        async with transaction(engine) as connection:
            return await erasure.due(connection, NOW - age, limit)

    assert live.task.id not in await due(timedelta(0))
    assert await due(2 * HOUR) == [early.task.id]
    assert set(await due(HOUR)) == {early.task.id, late.task.id}
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(unpublished.task.id, 2)]) == 1
    assert set(await due(2 * HOUR)) == {early.task.id, unpublished.task.id}
    assert await due(2 * HOUR, 1) == [unpublished.task.id]


async def test_no_table_is_scanned_for_it(engine: AsyncEngine) -> None:
    """Due tasks, and the commands of a task, are found by an index."""
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plans = []
        for statement, values in (
            (erasure.DUE, {"before": NOW, "limit": 1}),
            (erasure.REPLACE_REPLIES, {"ids": [UUID(int=1)], "documents": ["{}"]}),
        ):
            rows = await connection.execute(text(f"EXPLAIN {statement.text}"), values)
            plans.append("\n".join(rows.scalars()))
    assert "tasks_unerased_idx" in plans[0]
    assert "command_log_task_id_idx" in plans[1]
    assert "Seq Scan" not in "".join(plans)
