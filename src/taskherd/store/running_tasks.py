"""The running tasks of each owner, see ``domain.view.is_running``; ``command_preconditions`` counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

LOCK_CLASS: Final = 7_745_502
"""First key of the advisory locks of owners; any number that no other application in the database uses."""

OWNER_KEYS: Final = """
SELECT DISTINCT hashtext(CAST(id AS text)) AS key FROM unnest(CAST(:owner_ids AS uuid[])) AS id
"""
"""The second keys of the advisory locks of ``:owner_ids``."""

COUNT: Final = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM running_tasks AS r WHERE r.owner_id = o.id LIMIT :limit) AS counted)
FROM unnest(CAST(:owner_ids AS uuid[])) WITH ORDINALITY AS o(id, position)
ORDER BY o.position
"""
"""Counts the running tasks of each of ``:owner_ids``, in their order, up to ``:limit``; their owners must be locked."""

INSERT: Final = """
INSERT INTO running_tasks (task_id, owner_id)
SELECT * FROM unnest(CAST(:running AS uuid[]), CAST(:running_owners AS uuid[])) AS r(task_id, owner_id)
ORDER BY task_id
ON CONFLICT DO NOTHING
"""
ADD: Final = text(INSERT)

DELETE: Final = text("DELETE FROM running_tasks WHERE task_id = ANY(CAST(:task_ids AS uuid[]))")


async def add(connection: AsyncConnection, owners: Sequence[tuple[UUID, UUID]]) -> None:
    """Add tasks that run now, as pairs of task and owner."""
    await connection.execute(ADD, parameters(owners))


def parameters(owners: Sequence[tuple[UUID, UUID]]) -> dict[str, Any]:
    """Return the parameters of ``INSERT``."""
    return {"running": [task for task, _ in owners], "running_owners": [owner for _, owner in owners]}


async def delete(connection: AsyncConnection, task_ids: Sequence[UUID]) -> None:
    """Remove tasks that do not run any more."""
    await connection.execute(DELETE, {"task_ids": task_ids})
