"""The counts for the metrics."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import stats, tasks
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, event, task_row


@pytest.mark.parametrize("analyzed", [False, True])
async def test_counts_of_few_tasks_are_exact(engine: AsyncEngine, analyzed: bool) -> None:  # noqa: FBT001
    """Tasks are counted by status and their agents by health; deleted tasks are not counted."""
    rows = [task_row() for _ in range(3)]
    async with transaction(engine) as connection:
        await tasks.insert_tasks(connection, rows)
        await tasks.save(connection, [], [event(rows[0].task.id, 1)])
        unhealthy = '{"workspace_agent_health":{"healthy":false,"reason":"agent has lost connection"}}'
        await connection.execute(
            text("UPDATE tasks SET document = CAST(CAST(:d AS text) AS json) WHERE id = :id"),
            {"d": unhealthy, "id": rows[0].task.id},
        )
        await connection.execute(text("UPDATE tasks SET deleted_at = now() WHERE id = :id"), {"id": rows[1].task.id})
    if analyzed:
        async with transaction(engine) as connection:
            await connection.execute(text("ANALYZE tasks"))
    async with transaction(engine) as connection:
        counts = await stats.counts(connection)
    assert counts.tasks == {"pending": 2}
    assert counts.agents == {"none": 1, "agent has lost connection": 1}
    assert (counts.unpublished, counts.oldest_unpublished_at, counts.parked) == (1, NOW, 0)
