"""The database clock: read it, and recover the stored times after it was set back."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

READ: Final = text("SELECT clock_timestamp()")

# The latest published change, a worker's last sign of life or a heartbeat is in the future. Of many leases the first
# 1,024 blocks are read, about 45,000: heartbeats renew all of them every few seconds, so a part says as much as all.
MOVED_BACK: Final = text("""
SELECT COALESCE((SELECT occurred_at FROM task_feed ORDER BY position DESC LIMIT 1) > :now, false)
    OR EXISTS (SELECT FROM workers WHERE seen_at > :now)
    OR EXISTS (SELECT FROM leases WHERE ctid < '(1024,0)' AND last_heartbeat_at > :now)
""")

CLAMP_DEADLINES: Final = text("UPDATE task_deadlines SET due_at = :now WHERE due_at > :now")
CLAMP_PARKED: Final = text("UPDATE parked SET parked_at = :now WHERE parked_at > :now")
CLAMP_REQUESTS: Final = text("""
UPDATE work_requests SET next_at = LEAST(next_at, :now), first_sent_at = LEAST(first_sent_at, :now)
WHERE next_at > :now OR first_sent_at > :now
""")
CLAMP_WORKERS: Final = text("""
UPDATE workers SET seen_at = :now, drained_since = LEAST(drained_since, :now) WHERE seen_at > :now
""")
CLAMP_ACTIONS: Final = text("UPDATE task_actions SET next_at = :now WHERE finished_at IS NULL AND next_at > :now")
CLAMP_STATEMENTS: Final = (CLAMP_DEADLINES, CLAMP_PARKED, CLAMP_REQUESTS, CLAMP_WORKERS, CLAMP_ACTIONS)


async def read(connection: AsyncConnection) -> datetime:
    """Return the current time of the database clock."""
    now: datetime = (await connection.execute(READ)).scalar_one()
    return now


async def moved_back(connection: AsyncConnection, now: datetime) -> bool:
    """Return whether the clock was set back while no worker was running: stored times are later than ``now``."""
    is_back: bool = (await connection.execute(MOVED_BACK, {"now": now})).scalar_one()
    return is_back


async def clamp_future_times(connection: AsyncConnection, now: datetime) -> None:
    """Move the stored times in the future to ``now``, so that after the clock was set back every timer is due.

    Leases keep theirs: there may be millions, heartbeats renew them, and ``leases.scan`` finds those without any.
    """
    for statement in CLAMP_STATEMENTS:
        await connection.execute(statement, {"now": now})
