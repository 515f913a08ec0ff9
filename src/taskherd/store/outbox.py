"""Events not yet published, and the feed that gives published ones their position.

`tasks.save` fills the outbox. Positions are given under one lock that is held until commit, so they appear in rising
order: who has read up to a position has missed nothing below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event to publish; `document` and `cause` are JSON text, `prompt` is the one that held at that version."""

    task_id: UUID
    version: int
    occurred_at: datetime
    owner_id: UUID
    template_version_id: UUID
    kind: str
    document: str
    changes: list[str]
    cause: str
    prompt: str


DUE: Final = text("""
SELECT o.task_id, o.version, o.occurred_at, t.owner_id, t.template_version_id, e.kind, CAST(e.document AS text),
       e.changes, CAST(e.cause AS text), p.prompt
FROM (SELECT * FROM outbox WHERE occurred_at <= :older_than ORDER BY occurred_at, task_id, version LIMIT :limit) AS o
JOIN task_events AS e ON e.task_id = o.task_id AND e.version = o.version AND e.occurred_at = o.occurred_at
JOIN tasks AS t ON t.id = o.task_id
JOIN task_prompts AS p ON p.task_id = e.task_id AND p.version = e.prompt_version
ORDER BY o.occurred_at, o.task_id, o.version
""")

FEED_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd feed', 0))")

# Versions of a task follow each other without a gap. A run of them goes unless an earlier one is unpublished: then
# it stays, to be published once more after that one. The outbox is empty now and long the next moment, so PostgreSQL's
# idea of its size is worth nothing: a join of 1,000 keys with 10,000 rows and 50,000 dead ones, planned for an empty
# one, took 54 s. Hence nothing to choose: one look into the key for each run, then the rows by their place.
MARK_PUBLISHED: Final = text("""
WITH told AS (
    SELECT task_id, version, version - dense_rank() OVER (PARTITION BY task_id ORDER BY version) AS run
    FROM unnest(CAST(:task_id AS uuid[]), CAST(:version AS bigint[])) AS k(task_id, version)
), runs AS (
    SELECT task_id, min(version) AS first, max(version) AS last FROM told GROUP BY task_id, run
), gone AS (
    DELETE FROM outbox WHERE ctid = ANY(ARRAY(
        SELECT unnest(lowest.places)
        FROM runs AS r CROSS JOIN LATERAL (
            SELECT array_agg(ctid) AS places, min(version) AS first
            FROM (
                SELECT ctid, version FROM outbox WHERE task_id = r.task_id AND version <= r.last
                ORDER BY version LIMIT r.last - r.first + 1
            ) AS o
        ) AS lowest
        WHERE lowest.first >= r.first
    ))
    RETURNING task_id, version, occurred_at
), fed AS (
    INSERT INTO task_feed (position, task_id, version, occurred_at)
    SELECT nextval('task_feed_position'), task_id, version, occurred_at
    FROM (
        SELECT * FROM gone
        ORDER BY max(occurred_at) OVER (PARTITION BY task_id ORDER BY version), task_id, version
    ) AS ordered
    RETURNING 1
)
SELECT count(*) FROM fed
""")


async def due(conn: AsyncConnection, older_than: datetime, limit: int) -> list[OutboxEvent]:
    """Return up to `limit` events that occurred at or before `older_than`, oldest first; nothing is locked.

    Two relays may thus publish the same event, which readers drop by its version; its position is given once.
    """
    found = await conn.execute(DUE, {"older_than": older_than, "limit": limit})
    return [OutboxEvent(*row) for row in found]


async def mark_published(conn: AsyncConnection, keys: Sequence[tuple[UUID, int]]) -> int:
    """Take (task id, version) pairs out of the outbox and give them the next positions; return how many.

    They rise with time, and for each task with its versions, whatever a clock did: one whose predecessor is still
    unpublished stays. Keep the transaction short, since positions are given to one at a time.
    """
    if not keys:
        return 0
    await conn.execute(FEED_LOCK)
    values = {"task_id": [task_id for task_id, _ in keys], "version": [version for _, version in keys]}
    return int((await conn.execute(MARK_PUBLISHED, values)).scalar_one())
