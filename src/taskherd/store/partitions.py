"""Weekly partitions of history and logs: made ahead of time, dropped when nobody wants them any more.

Weeks begin on Monday, 00:00 UTC. Rows that find no partition go to the default one, and move when theirs is made.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.tables import PARTITIONED

AHEAD: Final = 4

ADD = text("""
SELECT count(*) FILTER (WHERE taskherd_add_partition(parent, monday))
FROM unnest(CAST(:parents AS text[])) AS parent, unnest(CAST(:mondays AS date[])) AS monday
""")

DROP = text("""
SELECT taskherd_drop_partitions(parent, LEAST(
    CAST(:before AS date),
    (SELECT CAST(min(occurred_at) AT TIME ZONE 'UTC' AS date) FROM outbox WHERE parent = 'task_events')))
FROM (SELECT CAST(:parent AS text) AS parent) AS of
""")

# Walks from the oldest position on, so that the cost is bounded by the limit and not by the feed's length.
PRUNE_FEED = text("""
DELETE FROM task_feed
WHERE occurred_at < :before AND position IN (SELECT position FROM task_feed ORDER BY position LIMIT :limit)
""")


def monday(at: datetime) -> date:
    """Return the first day of the week that `at`, an aware time, falls into."""
    day = at.astimezone(UTC).date()
    return day - timedelta(days=day.weekday())


async def ensure_ahead(conn: AsyncConnection, now: datetime, weeks: int = AHEAD) -> int:
    """Make the partitions of this week and the next `weeks`; return how many were missing. Safe at the same time."""
    first = monday(now)
    mondays = [first + timedelta(weeks=week) for week in range(weeks + 1)]
    found = await conn.execute(ADD, {"parents": list(PARTITIONED), "mondays": mondays})
    return int(found.scalar_one())


async def prune(conn: AsyncConnection, *, events_before: datetime, logs_before: datetime) -> list[str]:
    """Drop the partitions that ended by then and return their names; events not yet published are kept."""
    found: list[str] = []
    for parent, before in zip(PARTITIONED, (events_before, logs_before), strict=True):
        day = before.astimezone(UTC).date()
        found += (await conn.execute(DROP, {"parent": parent, "before": day})).scalars()
    return found


async def prune_feed(conn: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to `limit` of the oldest positions whose events occurred before `before`; call until it returns 0."""
    return (await conn.execute(PRUNE_FEED, {"before": before, "limit": limit})).rowcount
