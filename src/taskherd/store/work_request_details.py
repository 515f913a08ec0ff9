"""Details of a task for a work request, joined at send time, which keeps request rows narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

DEFAULT_POOL: Final = "default"


@dataclass(frozen=True, slots=True)
class WorkRequestDetails:
    """The details of a task that a work request contains; ``run`` and ``preset_parameters`` are decoded JSON.

    ``prompt`` is empty if it was not read.
    """

    task_id: UUID
    task_name: str
    owner_id: UUID
    owner_username: str
    template_version_id: UUID
    prompt: str
    run: dict[str, Any]
    preset_id: UUID | None
    preset_name: str | None
    preset_parameters: dict[str, Any] | None

    @property
    def pool(self) -> str:
        """The pool of the task's template version."""
        pool = self.run.get("pool")
        return pool if isinstance(pool, str) and pool else DEFAULT_POOL


READ: Final = text("""
SELECT t.id, t.name, t.owner_id, u.username, t.template_version_id,
       CASE WHEN t.id = ANY(CAST(:with_prompt AS uuid[])) THEN p.prompt ELSE '' END, v.run, s.id, s.name, s.parameters
FROM tasks AS t
JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version
JOIN users AS u ON u.id = t.owner_id
JOIN template_versions AS v ON v.id = t.template_version_id
LEFT JOIN presets AS s ON s.id = t.preset_id
WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")

INPUTS: Final = text("SELECT input_id, content FROM inputs WHERE input_id = ANY(CAST(:ids AS uuid[]))")


async def read(
    connection: AsyncConnection, task_ids: Sequence[UUID], *, with_prompt: Sequence[UUID]
) -> dict[UUID, WorkRequestDetails]:
    """Return the details of these tasks, by task id; with its prompt, of up to 256 KiB, for those in ``with_prompt``.

    The other prompts are not read, also not by PostgreSQL.
    """
    values = {"ids": task_ids, "with_prompt": with_prompt}
    return {row[0]: WorkRequestDetails(*row) for row in await connection.execute(READ, values)}


async def input_contents(connection: AsyncConnection, input_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the contents of these inputs, by input id."""
    return {row[0]: row[1] for row in await connection.execute(INPUTS, {"ids": input_ids})}
