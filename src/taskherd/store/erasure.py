"""Erase the contents of deleted tasks from every table. A tombstone of ids, builds and empty texts stays.

Rows are deleted in bounded steps by ``delete_contents``, without a lock, because nothing adds rows to a deleted task.
``finish`` then runs in the transaction that saves the tombstone, under the lock of its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Tasks with unpublished events wait, because publishing reads the contents. The limit bounds the rows looked at.
DUE: Final = text("""
SELECT c.id, c.deleted_at, NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.task_id = c.id) AS is_published
FROM (
    SELECT id, deleted_at FROM tasks
    WHERE deleted_at <= :before AND erased_at IS NULL
      AND (deleted_at, id) > (CAST(:deleted_at AS timestamptz), CAST(:task_id AS uuid))
    ORDER BY deleted_at, id LIMIT :limit
) AS c ORDER BY c.deleted_at, c.id
""")

_STEP: Final = """
DELETE FROM {table} WHERE ({key}) IN (
    SELECT {key} FROM {table} WHERE task_id = ANY(CAST(:ids AS uuid[])) {condition} LIMIT :limit)
"""

# The deletion stays in the history, for readers of the feed; its document is replaced by ``finish``.
STEPS: Final = (
    text(_STEP.format(table="task_logs", key="task_id, log_id, logged_at", condition="")),
    text(_STEP.format(table="task_events", key="task_id, version, occurred_at", condition="AND kind <> 'deleted'")),
    text(_STEP.format(table="inputs", key="input_id", condition="")),
    text(_STEP.format(table="agent_requests", key="task_id, request_id", condition="")),
)

# A command of a deleted task is refused without a record, too, so only those stay whose replies are promised.
FORGET: Final = text(
    _STEP.format(
        table="command_log",
        key="command_id",
        condition="AND kept_until_erased AND created_at < CAST(:forgotten AS timestamptz)",
    )
)

FINISH: Final = tuple(
    text(statement)
    for statement in (
        """UPDATE tasks SET name = CAST(id AS text), display_name = '', erased_at = :now
        WHERE id = ANY(CAST(:ids AS uuid[]))""",
        """DELETE FROM task_prompts AS p USING tasks AS t
        WHERE t.id = p.task_id AND p.version <> t.prompt_version AND p.task_id = ANY(CAST(:ids AS uuid[]))""",
        "UPDATE task_prompts SET prompt = '' WHERE task_id = ANY(CAST(:ids AS uuid[]))",
        """UPDATE task_events AS e
        SET document = CAST(
            jsonb_set(CAST(t.document AS jsonb), '{status}', CAST(e.document -> 'status' AS jsonb)) AS json)
        FROM tasks AS t WHERE t.id = e.task_id AND e.task_id = ANY(CAST(:ids AS uuid[]))""",
        "DELETE FROM task_builds WHERE task_id = ANY(CAST(:ids AS uuid[]))",
        "DELETE FROM task_log_heads WHERE task_id = ANY(CAST(:ids AS uuid[]))",
        "DELETE FROM build_claims WHERE task_id = ANY(CAST(:ids AS uuid[]))",
        "DELETE FROM parked WHERE task_id = ANY(CAST(:ids AS uuid[]))",
    )
)

# A repeated command still gets a reply of the same form, until it is pruned by age like all others. The details of
# refusals quote answers, and options of agents.
REPLACE_REPLIES: Final = text("""
UPDATE command_log AS c
SET kept_until_erased = false, reply = CAST(
    CASE WHEN c.reply -> 'task' IS NOT NULL
        THEN jsonb_set(CAST(c.reply AS jsonb), '{task}', CAST(e.document AS jsonb))
        ELSE CAST(c.reply AS jsonb) #- '{error,detail}' #- '{error,validations}' END AS json)
FROM unnest(CAST(:ids AS uuid[]), CAST(:documents AS text[])) AS e(task_id, document)
WHERE c.task_id = e.task_id AND c.reply IS NOT NULL
""")


class ErasureCursor(NamedTuple):
    """A place in the order in which deleted tasks are erased."""

    deleted_at: datetime
    task_id: UUID


START: Final = ErasureCursor(datetime(1, 1, 1, tzinfo=UTC), UUID(int=0))


class DuePage(NamedTuple):
    """Tasks to erase, and the place to continue after: the start if no more are due."""

    ids: Sequence[UUID]
    until: ErasureCursor


async def due(connection: AsyncConnection, before: datetime, limit: int, after: ErasureCursor = START) -> DuePage:
    """Look at up to ``limit`` tasks after a place that were deleted at or before ``before``.

    Return those whose events are published. Those whose erasure fails are due again only after all others.
    """
    values = {"before": before, "limit": limit, **after._asdict()}
    rows = (await connection.execute(DUE, values)).all()
    until = ErasureCursor(rows[-1].deleted_at, rows[-1].id) if len(rows) == limit else START
    return DuePage([row.id for row in rows if row.is_published], until)


async def delete_contents(
    connection: AsyncConnection, task_ids: Sequence[UUID], limit: int, forgotten: datetime
) -> int:
    """Delete up to ``limit`` rows each of the logs, the history, the inputs and the agents' requests of deleted tasks.

    Delete also the commands executed before ``forgotten`` that were recorded for as long as the tasks had contents.
    Return the greatest number deleted of one table; call it until that is less than ``limit``.
    """
    values = {"ids": task_ids, "limit": limit}
    deleted = [(await connection.execute(step, values)).rowcount for step in STEPS]
    deleted.append((await connection.execute(FORGET, {**values, "forgotten": forgotten})).rowcount)
    return max(deleted)


async def finish(connection: AsyncConnection, documents: Mapping[UUID, str], now: datetime) -> None:
    """Erase the rest of these tasks, whose rows are locked and saved; ``documents`` replaces those in replies."""
    ids = sorted(documents)
    for statement in FINISH:
        values = {"ids": ids, "now": now} if "now" in statement.compile().params else {"ids": ids}
        await connection.execute(statement, values)
    await connection.execute(REPLACE_REPLIES, {"ids": ids, "documents": [documents[task_id] for task_id in ids]})
