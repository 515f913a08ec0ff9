"""The running tasks of each owner, see ``domain.view.is_running``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

LOCK_CLASS: Final = 7_745_502
"""First key of the advisory locks of owners; any number that no other application in the database uses."""

LOCK_OWNERS: Final = text(f"""
SELECT pg_advisory_xact_lock({LOCK_CLASS}, hash)
FROM (
    SELECT DISTINCT hashtext(CAST(id AS text)) AS hash FROM unnest(CAST(:owner_ids AS uuid[])) AS id ORDER BY hash
) AS hashes
""")

COUNT: Final = text("""
SELECT o.id, (SELECT count(*) FROM (SELECT 1 FROM running_tasks AS r WHERE r.owner_id = o.id LIMIT :limit) AS counted)
FROM unnest(CAST(:owner_ids AS uuid[])) AS o(id)
""")

ADD: Final = text("""
INSERT INTO running_tasks (task_id, owner_id)
SELECT * FROM unnest(CAST(:task_ids AS uuid[]), CAST(:owner_ids AS uuid[])) AS r(task_id, owner_id)
ORDER BY task_id
ON CONFLICT DO NOTHING
""")

DELETE: Final = text("DELETE FROM running_tasks WHERE task_id = ANY(CAST(:task_ids AS uuid[]))")


async def lock_and_count(connection: AsyncConnection, owner_ids: Sequence[UUID], limit: int) -> dict[UUID, int]:
    """Return the number of running tasks of each owner, at most ``limit``.

    Until the end of the transaction no other transaction can count them, so two starts cannot both see the last place.
    Lock the tasks of the transaction before.
    """
    await connection.execute(LOCK_OWNERS, {"owner_ids": owner_ids})
    rows = await connection.execute(COUNT, {"owner_ids": owner_ids, "limit": limit})
    return {row[0]: row[1] for row in rows}


async def add(connection: AsyncConnection, owners: Sequence[tuple[UUID, UUID]]) -> None:
    """Add tasks that run now, as pairs of task and owner."""
    parameters = {"task_ids": [task for task, _ in owners], "owner_ids": [owner for _, owner in owners]}
    await connection.execute(ADD, parameters)


async def delete(connection: AsyncConnection, task_ids: Sequence[UUID]) -> None:
    """Remove tasks that do not run any more."""
    await connection.execute(DELETE, {"task_ids": task_ids})
