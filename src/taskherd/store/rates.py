"""Rates by hour: what became of tasks, and what was dead-lettered. Workers add what they counted, the API reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, order=True, slots=True)
class RateKey:
    """An hour, and the organization and owner of the tasks that are counted."""

    hour: datetime
    organization_id: UUID
    owner_id: UUID


@dataclass(slots=True)
class TaskCounts:
    """Numbers of tasks that were created, that completed, and that failed."""

    created: int = 0
    completed: int = 0
    failed: int = 0


# The rows are in the order of their key, so that two workers that add at once do not deadlock.
ADD: Final = text("""
INSERT INTO task_rates AS r (hour, organization_id, owner_id, created, completed, failed)
SELECT * FROM unnest(CAST(:hours AS timestamptz[]), CAST(:organizations AS uuid[]), CAST(:owners AS uuid[]),
                     CAST(:created AS bigint[]), CAST(:completed AS bigint[]), CAST(:failed AS bigint[]))
    AS n(hour, organization_id, owner_id, created, completed, failed)
ORDER BY hour, organization_id, owner_id
ON CONFLICT (hour, organization_id, owner_id) DO UPDATE SET
    created = r.created + excluded.created, completed = r.completed + excluded.completed,
    failed = r.failed + excluded.failed
""")

ADD_DEAD_LETTERS: Final = text("""
INSERT INTO dead_letter_rates AS r (hour, reason, letters)
SELECT * FROM unnest(CAST(:hours AS timestamptz[]), CAST(:reasons AS text[]), CAST(:letters AS bigint[]))
    AS n(hour, reason, letters)
ORDER BY hour, reason
ON CONFLICT (hour, reason) DO UPDATE SET letters = r.letters + excluded.letters
""")

PRUNE: Final = text("""
DELETE FROM task_rates WHERE (hour, organization_id, owner_id) IN (
    SELECT hour, organization_id, owner_id FROM task_rates WHERE hour < :before ORDER BY hour LIMIT :limit)
""")

PRUNE_DEAD_LETTERS: Final = text("DELETE FROM dead_letter_rates WHERE hour < :before")


async def add(connection: AsyncConnection, counts: Mapping[RateKey, TaskCounts]) -> None:
    """Add counts of tasks to those of their hours."""
    keys = sorted(counts)
    values = {
        "hours": [key.hour for key in keys],
        "organizations": [key.organization_id for key in keys],
        "owners": [key.owner_id for key in keys],
        "created": [counts[key].created for key in keys],
        "completed": [counts[key].completed for key in keys],
        "failed": [counts[key].failed for key in keys],
    }
    await connection.execute(ADD, values)


async def add_dead_letters(connection: AsyncConnection, letters: Mapping[tuple[datetime, str], int]) -> None:
    """Add numbers of dead letters, by hour and reason."""
    keys = sorted(letters)
    values = {
        "hours": [hour for hour, _ in keys],
        "reasons": [reason for _, reason in keys],
        "letters": [letters[key] for key in keys],
    }
    await connection.execute(ADD_DEAD_LETTERS, values)


async def prune(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to ``limit`` rows of tasks older than ``before``, and all of dead letters; return the former number."""
    await connection.execute(PRUNE_DEAD_LETTERS, {"before": before})
    return (await connection.execute(PRUNE, {"before": before, "limit": limit})).rowcount
