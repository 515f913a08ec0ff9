"""Live workers, and since when the report queues of each have been drained without interruption."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker; ``drained_since`` is None while its report queues are not known to be drained."""

    worker_id: str
    started_at: datetime
    seen_at: datetime
    drained_since: datetime | None


RECORD_SEEN: Final = text("""
INSERT INTO workers (worker_id, started_at, seen_at, drained_since)
VALUES (:worker_id, :started_at, :seen_at, :drained_since)
ON CONFLICT (worker_id) DO UPDATE
SET started_at = excluded.started_at, seen_at = excluded.seen_at, drained_since = excluded.drained_since
""")

LIVE: Final = text("""
SELECT worker_id, started_at, seen_at, drained_since FROM workers WHERE seen_at >= :since ORDER BY worker_id
""")

DELETE: Final = text("DELETE FROM workers WHERE worker_id = :worker_id")

PRUNE: Final = text("DELETE FROM workers WHERE seen_at < :before")


async def record_seen(connection: AsyncConnection, row: WorkerRow) -> None:
    """Insert or update the row of a live worker."""
    values = {
        "worker_id": row.worker_id,
        "started_at": row.started_at,
        "seen_at": row.seen_at,
        "drained_since": row.drained_since,
    }
    await connection.execute(RECORD_SEEN, values)


async def live(connection: AsyncConnection, since: datetime) -> list[WorkerRow]:
    """Return the workers seen at or after ``since``."""
    return [WorkerRow(*row) for row in await connection.execute(LIVE, {"since": since})]


async def delete(connection: AsyncConnection, worker_id: str) -> None:
    """Delete the row of a worker that shuts down."""
    await connection.execute(DELETE, {"worker_id": worker_id})


async def prune(connection: AsyncConnection, before: datetime) -> int:
    """Delete workers last seen before ``before`` and return the number deleted."""
    return (await connection.execute(PRUNE, {"before": before})).rowcount
