"""What the sweeper asks the database: its time, whose input nobody took, and how to begin anew after a clock jump."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

CLOCK: Final = text("SELECT clock_timestamp()")

EXPIRED_INPUTS: Final = text("""
SELECT task_id, input_id FROM work_requests
WHERE input_id IS NOT NULL AND first_sent_at <= :before
ORDER BY first_sent_at LIMIT :limit
""")

# The latest change that was told, or the latest heartbeat or life sign of a worker, lies in the future.
CLOCK_MOVED_BACK: Final = text("""
SELECT COALESCE((SELECT occurred_at FROM task_feed ORDER BY position DESC LIMIT 1) > :now, false)
    OR EXISTS (SELECT FROM workers WHERE seen_at > :now)
    OR EXISTS (SELECT FROM leases WHERE last_heartbeat_at > :now)
""")

CLAMP_LEASES: Final = text("UPDATE leases SET last_heartbeat_at = :now WHERE last_heartbeat_at > :now")
CLAMP_DEADLINES: Final = text("UPDATE task_deadlines SET due_at = :now WHERE due_at > :now")
CLAMP_PARKED: Final = text("UPDATE parked SET parked_at = :now WHERE parked_at > :now")
CLAMP_REQUESTS: Final = text("""
UPDATE work_requests SET next_at = LEAST(next_at, :now), first_sent_at = LEAST(first_sent_at, :now)
WHERE next_at > :now OR first_sent_at > :now
""")
CLAMP_WORKERS: Final = text("""
UPDATE workers SET seen_at = :now, drained_since = LEAST(drained_since, :now) WHERE seen_at > :now
""")
CLAMP_STATEMENTS: Final = (CLAMP_LEASES, CLAMP_DEADLINES, CLAMP_PARKED, CLAMP_REQUESTS, CLAMP_WORKERS)


async def clock(conn: AsyncConnection) -> datetime:
    """The database's time now."""
    told: datetime = (await conn.execute(CLOCK)).scalar_one()
    return told


async def expired_inputs(conn: AsyncConnection, before: datetime, limit: int) -> Sequence[tuple[UUID, UUID]]:
    """Up to `limit` (task id, input id) of inputs first sent at or before `before` of which nothing was heard."""
    return [(row[0], row[1]) for row in await conn.execute(EXPIRED_INPUTS, {"before": before, "limit": limit})]


async def clock_moved_back(conn: AsyncConnection, now: datetime) -> bool:
    """Whether the clock was set back while no worker looked: it has shown later times than `now` before."""
    told: bool = (await conn.execute(CLOCK_MOVED_BACK, {"now": now})).scalar_one()
    return told


async def clamp_future_times(conn: AsyncConnection, now: datetime) -> None:
    """After the clock was set back: let nothing have happened in the future, and look at whatever is to come."""
    for statement in CLAMP_STATEMENTS:
        await conn.execute(statement, {"now": now})
