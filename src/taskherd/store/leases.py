"""Leases: the latest heartbeat of each connected agent, in a narrow table of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store.direct import DirectStatement
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names
from taskherd.store.tables import leases

ROWS: Final = ColumnArrays(leases.c)
"""For leases and for heartbeat summaries, which have the same fields."""

# A heartbeat with the seq of the lease is left to ``reconcile``, since breaking the tie takes the whole report.
RENEW: Final = DirectStatement(f"""
WITH heartbeats AS (
    SELECT * FROM {ROWS.unnest("h")}
), locked AS (
    SELECT l.task_id, h.seq, h.observed_at, h.last_heartbeat_at
    FROM leases AS l JOIN heartbeats AS h ON h.task_id = l.task_id
    WHERE (h.build_number IS NULL OR h.build_number = l.build_number)
      AND h.agent_id IS NOT DISTINCT FROM l.agent_id
      AND h.seq <> l.seq
    ORDER BY l.task_id
    FOR UPDATE OF l
)
UPDATE leases AS l
SET last_heartbeat_at = h.last_heartbeat_at,
    seq = GREATEST(l.seq, h.seq),
    observed_at = CASE WHEN h.seq > l.seq THEN h.observed_at ELSE l.observed_at END
FROM locked AS h
WHERE l.task_id = h.task_id
RETURNING l.task_id
""")

LOCK: Final = DirectStatement(f"""
SELECT {column_names(leases.c)}
FROM leases WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY task_id
FOR UPDATE
""")

UPSERT: Final = text(f"""
INSERT INTO leases ({column_names(leases.c)})
SELECT * FROM {ROWS.unnest("u")}
ORDER BY task_id
ON CONFLICT (task_id) DO UPDATE
SET {assignments(changing(leases), "excluded")}
""")

DELETE: Final = text("""
WITH locked AS (
    SELECT task_id FROM leases WHERE task_id = ANY(CAST(:ids AS uuid[])) ORDER BY task_id FOR UPDATE
)
DELETE FROM leases USING locked WHERE leases.task_id = locked.task_id
""")

BLOCKS: Final = text("SELECT pg_relation_size('leases') / CAST(current_setting('block_size') AS bigint)")

# Each range of blocks is a TID range scan, which reads these blocks and nothing else, whatever the table's size. No
# index has the heartbeat's time: it would make each heartbeat write to all indexes (ADR 6).
SCAN: Final = text("""
SELECT l.connected, l.silent
FROM unnest(CAST(:starts AS bigint[])) WITH ORDINALITY AS r(start, number)
CROSS JOIN LATERAL (
    SELECT count(*) AS connected, COALESCE(
        array_agg(task_id) FILTER (WHERE last_heartbeat_at < :before OR last_heartbeat_at > :until), '{}') AS silent
    FROM leases
    WHERE ctid >= CAST(format('(%s,0)', r.start) AS tid) AND ctid < CAST(format('(%s,0)', r.start + :blocks) AS tid)
) AS l
ORDER BY r.number
""")

LIMIT_TIME: Final = text("SELECT set_config('statement_timeout', :milliseconds, true)")


class LeaseRange(NamedTuple):
    """The leases in a range of blocks: their number, and the tasks of those that are silent."""

    connected: int
    silent: Sequence[UUID]


async def renew(connection: AsyncConnection, summaries: Sequence[HeartbeatSummary]) -> set[UUID]:
    """Renew leases of the same build and agent, and return the ids of the tasks whose lease was renewed.

    ``summaries`` has at most one entry per task. The heartbeats of the other tasks must be reconciled: there is no
    lease, it belongs to another build or agent, or it has the same seq.
    """
    return {task_id for (task_id,) in await RENEW.fetch(connection, ROWS.parameters(summaries))}


async def lock(connection: AsyncConnection, ids: Sequence[UUID]) -> list[Lease]:
    """Lock and return the existing leases among ``ids``, in id order; without ``ids`` run no statement."""
    if not ids:
        return []
    rows = await LOCK.fetch(connection, {"ids": ids})
    return [Lease(*row) for row in rows]


async def upsert(connection: AsyncConnection, new: Sequence[Lease]) -> None:
    """Insert leases or replace existing ones; at most one per task."""
    await connection.execute(UPSERT, ROWS.parameters(new))


async def delete(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Delete the leases of these tasks."""
    await connection.execute(DELETE, {"ids": ids})


async def count_blocks(connection: AsyncConnection) -> int:
    """Return the number of blocks of the table."""
    return int((await connection.execute(BLOCKS)).scalar_one())


async def scan(
    connection: AsyncConnection,
    starts: Sequence[int],
    blocks: int,
    *,
    before: datetime,
    until: datetime,
    time_limit: timedelta,
) -> list[LeaseRange]:
    """Return the leases in the ranges of ``blocks`` blocks that begin at ``starts``, without locking.

    A lease is silent if its last heartbeat is before ``before``, or after ``until``, which only a wrong clock explains.
    An update may move a lease to another block while it is not silent, so a silent lease is in some range.

    Raises:
        StatementTimeout: reading took longer than ``time_limit``; read fewer ranges.
    """
    await connection.execute(LIMIT_TIME, {"milliseconds": str(int(time_limit / timedelta(milliseconds=1)))})
    rows = await connection.execute(SCAN, {"starts": starts, "blocks": blocks, "before": before, "until": until})
    return [LeaseRange(*row) for row in rows]
