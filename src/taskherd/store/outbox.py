"""The outbox of unpublished events, and the feed that assigns positions to published ones.

``tasks.save`` fills the outbox. Positions are assigned under one lock that is held until commit, so they become visible
in rising order: a reader that has read up to a position has missed nothing below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.direct import DirectStatement


class OutboxEvent(NamedTuple):
    """An event to publish; ``document`` and ``cause`` are JSON text, ``prompt`` is the prompt at that version."""

    task_id: UUID
    version: int
    occurred_at: datetime
    owner_id: UUID
    template_version_id: UUID
    kind: str
    document: str
    changes: Sequence[str]
    cause: str
    prompt: str


MAX_STALE_BYTES: Final = 32 * 1024 * 1024
"""Size of the prompts of stale events at which no further one is read: each has up to 256 KiB, and is in memory."""

MAX_STALE_SCANNED: Final = 20_000
"""Number of stale events among which the oldest are looked for: what a round costs does not grow with the outbox."""

# A task's next events are those with its lowest versions, also if a later version has an earlier time because the clock
# was set back: of each task that has events among the oldest, as many are taken, in the order of their versions. Events
# that are left out are looked up in a hash table for each row.
STALE: Final = text("""
WITH left_out AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:task_id AS uuid[]), CAST(:version AS bigint[])) AS k(task_id, version)
)
SELECT task_id, version, occurred_at, owner_id, template_version_id, kind, document, changes, cause, prompt
FROM (
    SELECT *, sum(octet_length(prompt)) OVER (ORDER BY due_at, task_id, version) - octet_length(prompt) AS bytes_before
    FROM (
        SELECT o.task_id, o.version, o.occurred_at, t.owner_id, t.template_version_id, e.kind,
               CAST(e.document AS text) AS document, e.changes, CAST(e.cause AS text) AS cause, p.prompt,
               max(o.occurred_at) OVER (PARTITION BY o.task_id ORDER BY o.version) AS due_at
        FROM (
            SELECT task_id, max(version) AS last, count(*) AS count
            FROM (
                SELECT task_id, version
                FROM (
                    SELECT task_id, version, occurred_at FROM outbox
                    WHERE (occurred_at <= :before OR occurred_at > :until)
                      AND (task_id, version) NOT IN (SELECT * FROM left_out)
                    LIMIT :scanned
                ) AS found
                ORDER BY occurred_at, task_id, version LIMIT :limit
            ) AS oldest
            GROUP BY task_id
        ) AS s
        CROSS JOIN LATERAL (
            SELECT * FROM outbox
            WHERE task_id = s.task_id AND version <= s.last AND (task_id, version) NOT IN (SELECT * FROM left_out)
            ORDER BY version LIMIT s.count
        ) AS o
        JOIN task_events AS e ON e.task_id = o.task_id AND e.version = o.version AND e.occurred_at = o.occurred_at
        JOIN tasks AS t ON t.id = o.task_id
        JOIN task_prompts AS p ON p.task_id = e.task_id AND p.version = e.prompt_version
    ) AS due
) AS counted
WHERE bytes_before < :bytes
ORDER BY due_at, task_id, version
""")

# Versions of a task have no gaps. A run of consecutive versions is removed unless an earlier version is unpublished:
# then it stays, to be published again after that one. The outbox's size swings from empty to thousands of rows within
# seconds, so the planner's estimates of it are useless: a join of 1,000 keys with 10,000 rows and 50,000 dead ones,
# planned for an empty outbox, took 54 s. This form leaves the planner a single plan: one key lookup per run, then the
# rows by ``ctid``, which stay where they are because they are locked.
#
# Locking the rows first, in order, makes a transaction with a later version of a task wait for one with an earlier
# version. The lock of the feed is taken after that, when all rows are known, and before the first position: it is held
# for the insert and the commit only.
MARK_PUBLISHED: Final = DirectStatement("""
WITH runs AS (
    SELECT * FROM unnest(CAST(:task_id AS uuid[]), CAST(:first AS bigint[]), CAST(:last AS bigint[]))
        AS k(task_id, first, last)
), removed AS (
    DELETE FROM outbox WHERE ctid = ANY(ARRAY(
        SELECT unnest(lowest.row_ids)
        FROM runs AS r CROSS JOIN LATERAL (
            SELECT array_agg(ctid) AS row_ids, min(version) AS first
            FROM (
                SELECT ctid, version FROM outbox WHERE task_id = r.task_id AND version <= r.last
                ORDER BY version LIMIT r.last - r.first + 1
                FOR UPDATE
            ) AS o
        ) AS lowest
        WHERE lowest.first >= r.first
    ))
    RETURNING task_id, version, occurred_at
), locked AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtextextended('taskherd feed', 0)) FROM (SELECT count(*) FROM removed) AS known
), appended AS (
    INSERT INTO task_feed (position, task_id, version, occurred_at)
    SELECT nextval('task_feed_position'), task_id, version, occurred_at
    FROM (
        SELECT r.* FROM locked CROSS JOIN removed AS r
        ORDER BY max(r.occurred_at) OVER (PARTITION BY r.task_id ORDER BY r.version), r.task_id, r.version
    ) AS ordered
    RETURNING 1
)
SELECT count(*) FROM appended
""")

_UNPUBLISHED: Final = text("""
SELECT task_id, version FROM outbox
WHERE (task_id, version) IN (SELECT * FROM unnest(CAST(:task_id AS uuid[]), CAST(:version AS bigint[])))
""")

# The rows that MARK_PUBLISHED would lock, in the same order.
LOCKED_BY_OTHERS: Final = text("""
SELECT k.task_id
FROM unnest(CAST(:task_id AS uuid[]), CAST(:last AS bigint[])) AS k(task_id, last)
CROSS JOIN LATERAL (
    SELECT count(*) AS count FROM outbox AS o WHERE o.task_id = k.task_id AND o.version <= k.last
) AS stored
CROSS JOIN LATERAL (
    SELECT count(*) AS count
    FROM (
        SELECT FROM outbox AS o WHERE o.task_id = k.task_id AND o.version <= k.last
        ORDER BY o.version
        FOR UPDATE SKIP LOCKED
    ) AS unlocked
) AS free
WHERE free.count < stored.count
""")


async def stale(
    connection: AsyncConnection,
    before: datetime,
    until: datetime,
    limit: int,
    left_out: Sequence[tuple[UUID, int]] = (),
) -> list[OutboxEvent]:
    """Return up to ``limit`` events that occurred at or before ``before``, oldest first, without locking.

    There may be fewer, at least one, if their prompts are large. With more than ``MAX_STALE_SCANNED`` they are the
    oldest of so many.

    Those after ``until`` too: only a clock that was set back since explains them. An event never comes without the
    unpublished ones of its task that precede it, but for the (task id, version) pairs in ``left_out``: the caller has
    published those, and waits for a lock to remove them.

    Two relays may publish the same event, which readers recognize by its version; it gets one position.
    """
    values = {
        "before": before,
        "until": until,
        "limit": limit,
        "scanned": MAX_STALE_SCANNED,
        "bytes": MAX_STALE_BYTES,
        "task_id": [task_id for task_id, _ in left_out],
        "version": [version for _, version in left_out],
    }
    rows = await connection.execute(STALE, values)
    return [OutboxEvent(*row) for row in rows]


async def mark_published(connection: AsyncConnection, keys: Sequence[tuple[UUID, int]]) -> int:
    """Move (task id, version) pairs from the outbox to the feed, with the next positions; return the number moved.

    Within a call positions rise with the events' times. Those of one task always rise with its versions: an event whose
    predecessor is unpublished stays in the outbox. Keep the transaction short: only one at a time can assign positions.
    """
    if not keys:
        return 0
    return int((await MARK_PUBLISHED.fetch(connection, _runs(keys)))[0][0])


async def unpublished(connection: AsyncConnection, keys: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Return which of these (task id, version) pairs are in the outbox."""
    task_ids, versions = [task_id for task_id, _ in keys], [version for _, version in keys]
    rows = await connection.execute(_UNPUBLISHED, {"task_id": task_ids, "version": versions})
    return {(task_id, version) for task_id, version in rows}


async def find_locked(connection: AsyncConnection, last: Mapping[UUID, int]) -> frozenset[UUID]:
    """Return those of the tasks of which another transaction has locked rows of the outbox, up to a version of each.

    This waits for no row, and locks the others until the end of the transaction. A row that another relay is removing
    at this moment counts as locked, too.
    """
    task_ids = sorted(last)
    values = {"task_id": task_ids, "last": [last[task_id] for task_id in task_ids]}
    return frozenset((await connection.execute(LOCKED_BY_OTHERS, values)).scalars())


def _runs(keys: Sequence[tuple[UUID, int]]) -> dict[str, list[Any]]:
    """Return the runs of consecutive versions of each task, in order, as parameters."""
    task_ids: list[UUID] = []
    first: list[int] = []
    last: list[int] = []
    for task_id, version in sorted(set(keys)):
        if task_ids and task_ids[-1] == task_id and last[-1] == version - 1:
            last[-1] = version
        else:
            task_ids.append(task_id)
            first.append(version)
            last.append(version)
    return {"task_id": task_ids, "first": first, "last": last}
