"""The claims of builds: for each task, the runner that claimed the latest build that was claimed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.claims import BuildClaim

LATEST: Final = text("""
SELECT task_id, build_number, runner FROM build_claims WHERE task_id = ANY(CAST(:ids AS uuid[]))
""")

SAVE: Final = text("""
INSERT INTO build_claims (task_id, build_number, runner, claimed_at)
SELECT task_id, build_number, runner, :now
FROM unnest(CAST(:task_id AS uuid[]), CAST(:build_number AS integer[]), CAST(:runner AS text[]))
    AS c(task_id, build_number, runner)
ORDER BY task_id
ON CONFLICT (task_id) DO UPDATE
SET build_number = excluded.build_number, runner = excluded.runner, claimed_at = excluded.claimed_at
""")


async def latest(connection: AsyncConnection, task_ids: Collection[UUID]) -> dict[UUID, BuildClaim]:
    """Return the latest granted claim of each of these tasks that has one."""
    rows = await connection.execute(LATEST, {"ids": list(task_ids)})
    return {task_id: BuildClaim(task_id, number, runner) for task_id, number, runner in rows}


async def save(connection: AsyncConnection, claims: Sequence[BuildClaim], now: datetime) -> None:
    """Save granted claims, one per task; the tasks must be locked in this transaction."""
    values = {
        "task_id": [claim.task_id for claim in claims],
        "build_number": [claim.build_number for claim in claims],
        "runner": [claim.runner for claim in claims],
        "now": now,
    }
    await connection.execute(SAVE, values)
