"""Leases: that an agent is alive, kept in a narrow table so that a heartbeat touches nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names
from taskherd.store.tables import leases

ROWS: Final = ColumnArrays(leases.c)
"""Both leases and heartbeats: they have the same fields."""

# A repeat (the same seq) is left to the corridor, which knows how to break the tie.
TOUCH: Final = text(f"""
WITH beats AS (
    SELECT * FROM {ROWS.unnest("b")}
), held AS (
    SELECT l.task_id, b.seq, b.observed_at, b.last_heartbeat_at
    FROM leases AS l JOIN beats AS b ON b.task_id = l.task_id
    WHERE (b.build_number IS NULL OR b.build_number = l.build_number)
      AND b.agent_id IS NOT DISTINCT FROM l.agent_id
      AND b.seq <> l.seq
    ORDER BY l.task_id
    FOR UPDATE OF l
)
UPDATE leases AS l
SET last_heartbeat_at = h.last_heartbeat_at,
    seq = GREATEST(l.seq, h.seq),
    observed_at = CASE WHEN h.seq > l.seq THEN h.observed_at ELSE l.observed_at END
FROM held AS h
WHERE l.task_id = h.task_id
RETURNING l.task_id
""")

LOAD: Final = text(f"""
SELECT {column_names(leases.c)}
FROM leases WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY task_id
FOR UPDATE
""")

UPSERT: Final = text(f"""
INSERT INTO leases ({column_names(leases.c)})
SELECT * FROM {ROWS.unnest("u")}
ORDER BY task_id
ON CONFLICT (task_id) DO UPDATE
SET {assignments(changing(leases), "excluded")}
""")

REMOVE: Final = text("""
WITH gone AS (
    SELECT task_id FROM leases WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY task_id FOR UPDATE
)
DELETE FROM leases USING gone WHERE leases.task_id = gone.task_id
""")

SILENT: Final = text("""
SELECT task_id FROM leases WHERE last_heartbeat_at < :before ORDER BY last_heartbeat_at LIMIT :limit
""")

COUNT: Final = text("SELECT count(*), count(*) FILTER (WHERE last_heartbeat_at < :before) FROM leases")


async def touch(conn: AsyncConnection, summaries: Sequence[HeartbeatSummary]) -> set[UUID]:
    """Renew leases that exist and are held by that very build and agent; return the tasks whose lease was renewed.

    At most one beat for each task. The others need the corridor: no lease, another build or agent, or a repeat.
    """
    return {task_id for (task_id,) in await conn.execute(TOUCH, ROWS.parameters(summaries))}


async def load(conn: AsyncConnection, ids: Sequence[UUID]) -> list[Lease]:
    """Lock the leases that exist among `ids`, in id order, and return them so; nothing is asked for none."""
    if not ids:
        return []
    rows = await conn.execute(LOAD, {"ids": ids})
    return [Lease(*row) for row in rows]


async def upsert(conn: AsyncConnection, stamped: Sequence[Lease]) -> None:
    """Put leases in place, whoever held them before; at most one for each task."""
    await conn.execute(UPSERT, ROWS.parameters(stamped))


async def remove(conn: AsyncConnection, ids: Sequence[UUID]) -> None:
    """End the leases of these tasks."""
    await conn.execute(REMOVE, {"ids": ids})


async def silent(conn: AsyncConnection, before: datetime, limit: int) -> list[UUID]:
    """Return up to `limit` tasks last heard before `before`, the longest silent first; nothing is locked."""
    return [task_id for (task_id,) in await conn.execute(SILENT, {"before": before, "limit": limit})]


async def count(conn: AsyncConnection, before: datetime) -> tuple[int, int]:
    """Return how many agents hold a lease, and how many of them were last heard before `before`.

    Reads all leases, about 1 µs for each.
    """
    row = (await conn.execute(COUNT, {"before": before})).one()
    return int(row[0]), int(row[1])
