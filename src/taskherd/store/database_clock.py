"""The database clock: read it, and recover the stored times after it was set back."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

READ: Final = text("SELECT clock_timestamp()")

# The latest published change, a worker's last sign of life or a heartbeat is in the future. Of many leases the first
# 1,024 blocks are read, about 45,000: heartbeats renew all of them every few seconds, so a part says as much as all.
MOVED_BACK: Final = text("""
SELECT COALESCE((SELECT occurred_at FROM task_feed ORDER BY position DESC LIMIT 1) > :now, false)
    OR EXISTS (SELECT FROM workers WHERE seen_at > :now)
    OR EXISTS (SELECT FROM leases WHERE ctid < '(1024,0)' AND last_heartbeat_at > :now)
""")

# A chunk is a range of keys, so that a time that is set anew while others are clamped is not clamped again and again.
# Of its rows those in the future are locked, in order.
_CLAMP: Final = """
WITH chunk AS MATERIALIZED (
    SELECT {key}, {condition} AS is_future FROM {table} WHERE {key} > :after ORDER BY {key} LIMIT :limit
), locked AS MATERIALIZED (
    SELECT {key} FROM {table} WHERE {key} = ANY(ARRAY(SELECT {key} FROM chunk WHERE is_future)) ORDER BY {key}
    FOR UPDATE
), clamped AS (
    UPDATE {table} AS t SET {values} FROM locked WHERE t.{key} = locked.{key} AND ({condition})
)
SELECT {key} FROM chunk ORDER BY {key} DESC LIMIT 1
"""

CLAMP_DEADLINES: Final = text(
    _CLAMP.format(table="task_deadlines", key="task_id", condition="due_at > :now", values="due_at = :now")
)
CLAMP_PARKED: Final = text(
    _CLAMP.format(table="parked", key="id", condition="parked_at > :now", values="parked_at = :now")
)
CLAMP_REQUESTS: Final = text(
    _CLAMP.format(
        table="work_requests",
        key="request_id",
        condition="next_at > :now OR first_sent_at > :now",
        values="next_at = LEAST(next_at, :now), first_sent_at = LEAST(first_sent_at, :now)",
    )
)
CLAMP_WORKERS: Final = text("""
UPDATE workers SET seen_at = :now, drained_since = LEAST(drained_since, :now) WHERE seen_at > :now
""")
# In two, each of which has its index.
CLAMP_ACTIONS: Final = text("UPDATE task_actions SET next_at = :now WHERE finished_at IS NULL AND next_at > :now")
CLAMP_PAUSES: Final = text("UPDATE task_actions SET next_at = :now WHERE finished_at IS NOT NULL AND next_at > :now")
CLAMP_CHUNKS: Final[tuple[tuple[TextClause, UUID | int], ...]] = (
    (CLAMP_DEADLINES, UUID(int=0)),
    (CLAMP_PARKED, 0),
    (CLAMP_REQUESTS, UUID(int=0)),
)
"""The statements that clamp the next chunk of a large table, each with a key before that of any row."""


class ClampPosition(NamedTuple):
    """How far ``clamp_chunk`` has come: the index of the table, and the last key of its previous chunk."""

    table: int = 0
    after: Any = CLAMP_CHUNKS[0][1]


async def read(connection: AsyncConnection) -> datetime:
    """Return the current time of the database clock."""
    now: datetime = (await connection.execute(READ)).scalar_one()
    return now


async def moved_back(connection: AsyncConnection, now: datetime) -> bool:
    """Return whether the clock was set back while no worker was running: stored times are later than ``now``."""
    is_back: bool = (await connection.execute(MOVED_BACK, {"now": now})).scalar_one()
    return is_back


async def clamp_workers(connection: AsyncConnection, now: datetime) -> None:
    """Move the times of workers and of task actions that are in the future to ``now``; both are few."""
    for statement in (CLAMP_WORKERS, CLAMP_ACTIONS, CLAMP_PAUSES):
        await connection.execute(statement, {"now": now})


async def clamp_chunk(
    connection: AsyncConnection, now: datetime, position: ClampPosition, limit: int
) -> ClampPosition | None:
    """Move the times in the future among the next ``limit`` rows to ``now``, so that their timers are due.

    Return the position of the next chunk, None after the last one. These are the deadlines, parked reports and work
    requests. Leases keep their times: there may be millions, heartbeats renew them, and ``leases.scan`` finds those
    without any.
    """
    statement, _ = CLAMP_CHUNKS[position.table]
    found = await connection.execute(statement, {"now": now, "after": position.after, "limit": limit})
    last = found.scalar_one_or_none()
    if last is not None:
        return ClampPosition(position.table, last)
    table = position.table + 1
    return ClampPosition(table, CLAMP_CHUNKS[table][1]) if table < len(CLAMP_CHUNKS) else None
