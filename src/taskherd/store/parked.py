"""Parked reports: those that came before their task's create, kept until it comes or their time is up.

Whoever parks for a task or creates one first takes `lock_task_ids` for it, in this transaction and before looking
whether the task exists; so no report is parked behind a create that has just taken what was parked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.statements import ColumnArrays, column_names, selected, stored
from taskherd.store.tables import parked

CLASS: Final = 7_745_501
BUCKETS: Final = 256


@dataclass(frozen=True, slots=True)
class ReportToPark:
    """A report to park, as JSON text."""

    task_id: UUID
    parked_at: datetime
    report: str


@dataclass(frozen=True, slots=True)
class ParkedReport:
    """A parked report, as JSON text; ids rise in the order of parking."""

    id: int
    task_id: UUID
    parked_at: datetime
    report: str


# A lock for each bucket, not for each task: the server's table of locks holds only some thousands in all.
LOCK_TASK_IDS: Final = text(f"""
SELECT pg_advisory_xact_lock({CLASS}, bucket)
FROM (
    SELECT DISTINCT hashtext(CAST(id AS text)) & {BUCKETS - 1} AS bucket
    FROM unnest(CAST(:ids AS uuid[])) AS id
    ORDER BY bucket
) AS buckets
""")

NEW: Final = [parked.c.task_id, parked.c.parked_at, parked.c.report]
NEW_ROWS: Final = ColumnArrays(NEW)

PARK: Final = text(f"""
WITH incoming AS (
    SELECT * FROM {NEW_ROWS.unnest("i", ordinality="place")}
), held AS (
    SELECT task_id, count(*) AS held FROM parked WHERE task_id = ANY(CAST(:task_id AS uuid[])) GROUP BY task_id
), ranked AS (
    SELECT i.*, row_number() OVER (PARTITION BY i.task_id ORDER BY place) + COALESCE(held.held, 0) AS rank
    FROM incoming AS i LEFT JOIN held USING (task_id)
), kept AS (
    INSERT INTO parked ({column_names(NEW)})
    SELECT {stored(NEW)} FROM ranked WHERE rank <= :most ORDER BY place
)
SELECT place - 1 FROM ranked WHERE rank > :most ORDER BY place
""")

READ: Final = text(f"""
SELECT {selected(parked.c)}
FROM parked WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY id
FOR UPDATE
""")

EXPIRED: Final = text(f"""
SELECT {selected(parked.c)}
FROM parked WHERE parked_at < :before ORDER BY parked_at, id LIMIT :limit
FOR UPDATE SKIP LOCKED
""")

REMOVE: Final = text("DELETE FROM parked WHERE id = ANY(CAST(:ids AS bigint[]))")


async def lock_task_ids(conn: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Keep parking and creating of these tasks to this transaction until it ends; one call for all of them."""
    await conn.execute(LOCK_TASK_IDS, {"ids": ids})


async def park(conn: AsyncConnection, reports: Sequence[ReportToPark], most_per_task: int) -> list[int]:
    """Park reports, in order, up to `most_per_task` a task; return the indexes of those that found no room."""
    values = {**NEW_ROWS.parameters(reports), "most": most_per_task}
    return [place for (place,) in await conn.execute(PARK, values)]


async def read(conn: AsyncConnection, ids: Sequence[UUID]) -> list[ParkedReport]:
    """Lock what is parked for these tasks, in the order of parking; `remove` what was folded."""
    return [ParkedReport(*row) for row in await conn.execute(READ, {"ids": ids})]


async def expired(conn: AsyncConnection, before: datetime, limit: int) -> list[ParkedReport]:
    """Lock up to `limit` reports parked before `before`; `remove` them once their dead letters are confirmed."""
    return [ParkedReport(*row) for row in await conn.execute(EXPIRED, {"before": before, "limit": limit})]


async def remove(conn: AsyncConnection, ids: Sequence[int]) -> None:
    """Forget parked reports by their row ids."""
    await conn.execute(REMOVE, {"ids": ids})
