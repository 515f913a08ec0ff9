"""Log entries: numbered per task, and replaced in place."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import logs
from taskherd.store.engine import transaction
from taskherd.store.logs import LogEntryRow
from tests.store.conftest import NOW


def entry(task_id: UUID, entry_id: int, seq: int, content: str, build: int = 1) -> LogEntryRow:
    """Return an entry of the agent's output."""
    return LogEntryRow(task_id, build, entry_id, seq, "output", content, NOW)


async def test_log_ids_count_per_task_and_never_change(engine: AsyncEngine) -> None:
    """Entries get 0, 1, 2 … when first committed; a greater seq replaces the content in place, a lesser one nothing."""
    one, other = uuid4(), uuid4()

    async def stored() -> list[tuple[int, str]]:
        rows = await connection.execute(
            text("SELECT log_id, content FROM task_logs WHERE task_id = :id ORDER BY log_id"), {"id": one}
        )
        return [(row.log_id, row.content) for row in rows]

    async with transaction(engine) as connection:
        batch = [entry(one, 7, 1, "a"), entry(other, 0, 1, "x"), entry(one, 3, 1, "b"), entry(one, 7, 2, "a2")]
        assert await logs.append(connection, batch, NOW) == 3
        assert await stored() == [(0, "a2"), (1, "b")]
        again = [entry(one, 3, 2, "b2"), entry(one, 7, 1, "old"), entry(one, 7, 1, "c", build=2)]
        assert await logs.append(connection, again, NOW + timedelta(weeks=1)) == 1
        assert await stored() == [(0, "a2"), (1, "b2"), (2, "c")]
        await connection.execute(text("DELETE FROM task_logs"))
        assert await logs.append(connection, [entry(one, 9, 1, "d")], NOW) == 1
        assert await stored() == [(3, "d")]
