"""Weekly partitions of history and logs: created ahead of time and dropped after the retention time.

Weeks start on Monday, 00:00 UTC. A row without a partition goes to the default partition, and moves when its partition
is created.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.liveness import MAX_SKEW
from taskherd.store.tables import PARTITIONED

AHEAD: Final = 4
"""Number of weeks for which partitions are created in advance."""

ADD = text("""
SELECT count(*) FILTER (WHERE taskherd_add_partition(parent, monday))
FROM unnest(CAST(:parents AS text[])) AS parent, unnest(CAST(:mondays AS date[])) AS monday
""")

DROP = text("""
SELECT taskherd_drop_partitions(parent, LEAST(
    CAST(:before AS date),
    (SELECT CAST(min(occurred_at) AT TIME ZONE 'UTC' AS date) FROM outbox WHERE parent = 'task_events')))
FROM (SELECT CAST(:parent AS text) AS parent) AS arguments
""")

# Starts at the oldest position, so the cost depends on the limit and not on the length of the feed. Rows from a time
# when the clock was ahead keep their times, by which their events are found. They go with those after them; if the
# oldest are all of this kind, single positions ever further on tell whether some after them are too old.
PRUNE_FEED = text("""
WITH oldest AS MATERIALIZED (
    SELECT position, occurred_at FROM task_feed ORDER BY position LIMIT :limit
), ahead AS MATERIALIZED (
    SELECT min(position) AS first FROM oldest WHERE occurred_at > :future
), too_old AS MATERIALIZED (
    SELECT position FROM oldest WHERE occurred_at < :before
    UNION ALL
    SELECT later.position
    FROM ahead CROSS JOIN generate_series(0, :probes) AS n CROSS JOIN LATERAL (
        SELECT position, occurred_at FROM task_feed WHERE position >= ahead.first + (CAST(:limit AS bigint) << n)
        ORDER BY position LIMIT 1) AS later
    WHERE ahead.first IS NOT NULL AND later.occurred_at < :before
)
DELETE FROM task_feed WHERE position = ANY(ARRAY(
    SELECT position FROM oldest
    WHERE occurred_at < :before OR (occurred_at > :future AND position < (SELECT max(position) FROM too_old))))
RETURNING (SELECT count(*) FROM oldest)
""")

FEED_PROBES: Final = 40
"""Number of positions that are looked at beyond the oldest, each twice as far from them as the one before."""


LIMIT_LOCK_WAITS = text("SELECT set_config('lock_timeout', :milliseconds, true)")


def monday(at: datetime) -> date:
    """Return the first day of the UTC week that contains ``at``, an aware time."""
    day = at.astimezone(UTC).date()
    return day - timedelta(days=day.weekday())


async def limit_lock_waits(connection: AsyncConnection, limit: timedelta) -> None:
    """Have the statements of this transaction wait for no lock longer than ``limit``; they raise ``Retry`` then."""
    await connection.execute(LIMIT_LOCK_WAITS, {"milliseconds": str(int(limit / timedelta(milliseconds=1)))})


async def ensure_ahead(connection: AsyncConnection, now: datetime, weeks: int = AHEAD) -> int:
    """Create the partitions of this week and the next ``weeks``; return the number created. Safe to run in parallel."""
    first = monday(now)
    mondays = [first + timedelta(weeks=week) for week in range(weeks + 1)]
    created = await connection.execute(ADD, {"parents": list(PARTITIONED), "mondays": mondays})
    return int(created.scalar_one())


async def prune(connection: AsyncConnection, *, events_before: datetime, logs_before: datetime) -> list[str]:
    """Drop the partitions that end before the given times and return their names; keep unpublished events."""
    dropped: list[str] = []
    for parent, before in zip(PARTITIONED, (events_before, logs_before), strict=True):
        day = before.astimezone(UTC).date()
        dropped += (await connection.execute(DROP, {"parent": parent, "before": day})).scalars()
    return dropped


async def prune_feed(connection: AsyncConnection, before: datetime, limit: int, now: datetime) -> int:
    """Delete those of the ``limit`` oldest positions that are older than ``before``, or in the future and before such.

    Return how many it looked at, 0 if it deleted none of them.
    """
    values = {"before": before, "limit": limit, "future": now + MAX_SKEW, "probes": FEED_PROBES}
    looked_at = (await connection.execute(PRUNE_FEED, values)).scalars().first()
    return int(looked_at or 0)
