"""Parked reports: reports that arrived before their task was created, kept until then or until they expire.

To park a report or create a task, first call ``lock_task_ids`` in the same transaction, before checking whether the
task exists. So no report is parked after a create has read the parked reports of its task.
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

LOCK_CLASS: Final = 7_745_501
"""First key of the advisory locks; any number that no other application in the database uses."""

BUCKETS: Final = 256


@dataclass(frozen=True, slots=True)
class ReportToPark:
    """A report to park, as JSON text."""

    task_id: UUID
    parked_at: datetime
    report: str


@dataclass(frozen=True, slots=True)
class ParkedReport:
    """A parked report, as JSON text; ids rise in the order in which reports were parked."""

    id: int
    task_id: UUID
    parked_at: datetime
    report: str


# One lock per bucket instead of per task, because the server's lock table has room for only a few thousand locks.
TASK_KEYS: Final = f"""
SELECT DISTINCT hashtext(CAST(id AS text)) & {BUCKETS - 1} AS key FROM unnest(CAST(:ids AS uuid[])) AS id
"""
"""The second keys of the advisory locks of the tasks ``:ids``."""
LOCK_TASK_IDS: Final = text(f"""
SELECT pg_advisory_xact_lock({LOCK_CLASS}, key) FROM ({TASK_KEYS} ORDER BY key) AS buckets
""")

NEW: Final = [parked.c.task_id, parked.c.parked_at, parked.c.report]
NEW_ROWS: Final = ColumnArrays(NEW)

PARK: Final = text(f"""
WITH incoming AS (
    SELECT * FROM {NEW_ROWS.unnest("i", ordinality="position")}
), parked_counts AS (
    SELECT task_id, count(*) AS parked_count FROM parked WHERE task_id = ANY(CAST(:task_id AS uuid[])) GROUP BY task_id
), ranked AS (
    SELECT i.*, row_number() OVER (PARTITION BY i.task_id ORDER BY position) + COALESCE(c.parked_count, 0) AS rank
    FROM incoming AS i LEFT JOIN parked_counts AS c USING (task_id)
), inserted AS (
    INSERT INTO parked ({column_names(NEW)})
    SELECT {stored(NEW)} FROM ranked WHERE rank <= :max_per_task ORDER BY position
)
SELECT position - 1 FROM ranked WHERE rank > :max_per_task ORDER BY position
""")

LOCK: Final = text(f"""
SELECT {selected(parked.c)}
FROM parked WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY id
FOR UPDATE
""")

LOCK_EXPIRED: Final = text(f"""
SELECT {selected(parked.c)}
FROM parked WHERE parked_at < :before ORDER BY parked_at, id LIMIT :limit
FOR UPDATE SKIP LOCKED
""")

DELETE: Final = text("DELETE FROM parked WHERE id = ANY(CAST(:ids AS bigint[]))")


async def lock_task_ids(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Exclude other transactions from parking for or creating these tasks until this one ends.

    Lock all ids in one call, or transactions can deadlock.
    """
    await connection.execute(LOCK_TASK_IDS, {"ids": ids})


async def park(connection: AsyncConnection, reports: Sequence[ReportToPark], max_per_task: int) -> list[int]:
    """Park reports in order, up to ``max_per_task`` per task, and return the indexes of the reports beyond that."""
    values = {**NEW_ROWS.parameters(reports), "max_per_task": max_per_task}
    return [index for (index,) in await connection.execute(PARK, values)]


async def lock(connection: AsyncConnection, ids: Sequence[UUID]) -> list[ParkedReport]:
    """Lock and return the parked reports of these tasks in the order in which they were parked.

    The caller deletes those that it folded with ``delete``.
    """
    return [ParkedReport(*row) for row in await connection.execute(LOCK, {"ids": ids})]


async def lock_expired(connection: AsyncConnection, before: datetime, limit: int) -> list[ParkedReport]:
    """Lock and return up to ``limit`` reports parked before ``before``, skipping locked ones.

    The caller deletes them with ``delete`` once their dead letters are confirmed.
    """
    return [ParkedReport(*row) for row in await connection.execute(LOCK_EXPIRED, {"before": before, "limit": limit})]


async def delete(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Delete parked reports by their row ids."""
    await connection.execute(DELETE, {"ids": ids})
