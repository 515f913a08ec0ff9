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

CALM_LEASES: Final = text("UPDATE leases SET heard_at = :now WHERE heard_at > :now")
CALM_DEADLINES: Final = text("UPDATE task_deadlines SET due_at = :now WHERE due_at > :now")


async def clock(conn: AsyncConnection) -> datetime:
    """The database's time now."""
    told: datetime = (await conn.execute(CLOCK)).scalar_one()
    return told


async def expired_inputs(conn: AsyncConnection, before: datetime, limit: int) -> Sequence[tuple[UUID, UUID]]:
    """Up to `limit` (task id, input id) of inputs first sent at or before `before` of which nothing was heard."""
    return [(row[0], row[1]) for row in await conn.execute(EXPIRED_INPUTS, {"before": before, "limit": limit})]


async def calm(conn: AsyncConnection, now: datetime) -> None:
    """After the clock was set back: let nothing have been heard in the future, and look at whatever has a deadline."""
    await conn.execute(CALM_LEASES, {"now": now})
    await conn.execute(CALM_DEADLINES, {"now": now})
