"""Weekly partitions of history and logs: created ahead of time and dropped after the retention time.

Weeks start on Monday, 00:00 UTC. A row without a partition goes to the default partition, and moves when its partition
is created; so no row is left there when its week is past.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.liveness import MAX_SKEW
from taskherd.store.open_connections import driver_connection
from taskherd.store.tables import PARTITIONED

AHEAD: Final = 4
"""Number of weeks for which partitions are created in advance."""

ADD: Final = "SELECT taskherd_add_partition($1, $2)"

EXISTING: Final = """
SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS monday
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(quote_ident($1)) AND c.relname ~ ('^' || $1 || '_p[0-9]{8}$')
ORDER BY monday
"""

# PostgreSQL reads only the default partition, because no other has a part of the time in question.
STRAY: Final = {
    "task_events": "SELECT occurred_at FROM task_events WHERE occurred_at >= $1 AND occurred_at < $2 LIMIT 1",
    "task_logs": "SELECT logged_at FROM task_logs WHERE logged_at >= $1 AND logged_at < $2 LIMIT 1",
}
"""For each table, any row of a time for which it has no partition."""

# A week's rows are a good part of the default partition, which has no index by time.
READ_WHOLE_TABLES: Final = "SELECT set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'on', true)"

_WEEK: Final = timedelta(weeks=1)
_LONG_AGO: Final = date(1, 1, 1)

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


async def next_partition(
    connection: AsyncConnection,
    parent: str,
    now: datetime,
    limit: timedelta,
    *,
    weeks: int = AHEAD,
    past: bool = True,
) -> date:
    """Return the first day of the partition of a table to ``create`` next, which exists if none is missing.

    Missing are the next ``weeks``, this week, and with ``past`` those that have rows in the default partition, in this
    order. The search for the latter takes up to ``limit``, as ``create`` does. It must not be part of the transaction
    that creates the partition: that has to wait for all who read the default partition.
    """
    await _read_whole_tables(connection, limit)
    existing: list[date] = [week for (week,) in await _fetch(connection, limit, EXISTING, parent)]
    this = monday(now)
    for week in (*(this + number * _WEEK for number in range(1, weeks + 1)), this):
        if week not in existing:
            return week
    past_weeks = [week for week in existing if week <= this] if past else []
    for after, before in zip([_LONG_AGO, *(week + _WEEK for week in past_weeks)], past_weeks, strict=False):
        if after != before:
            for (at,) in await _fetch(connection, limit, STRAY[parent], _midnight(after), _midnight(before)):
                return monday(at)
    return this  # so that it shows early if this role may create none


async def create(connection: AsyncConnection, parent: str, week: date, limit: timedelta) -> bool:
    """Create a partition and return whether it was missing. Safe to run in parallel.

    Rows are moved to it from the default partition, and whoever uses that waits, for up to ``limit``.

    Raises:
        asyncpg.PostgresError: as ``StatementTimeout`` by ``transaction``: the time was too short, no row was moved.
    """
    await _read_whole_tables(connection, limit)
    ((created,),) = await _fetch(connection, limit, ADD, parent, week)
    return bool(created)


async def _read_whole_tables(connection: AsyncConnection, limit: timedelta) -> None:
    await _fetch(connection, limit, READ_WHOLE_TABLES, str(int(limit / timedelta(milliseconds=1))))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def _fetch(connection: AsyncConnection, limit: timedelta, sql: str, *values: object) -> Sequence[Any]:
    """Return the rows of a statement, for which the client waits a little longer than the server works on it."""
    rows: Sequence[Any] = await driver_connection(connection).fetch(sql, *values, timeout=limit.total_seconds() + 1)
    return rows


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
