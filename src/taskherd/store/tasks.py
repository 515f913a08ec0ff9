"""The rows of tasks on the hot path: locked in id order, saved with their history in one statement.

Rows travel as arrays, one for each column, so that a batch of any size is one statement with one plan. JSON travels as
text, which PostgreSQL stores as it is; a document that its row and its event share travels once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class TaskRow(NamedTuple):
    """A task as it is stored, with the prompt that holds; `document` and `memory` are JSON text."""

    id: UUID
    owner_id: UUID
    organization_id: UUID
    template_id: UUID
    template_version_id: UUID
    preset_id: UUID | None
    name: str
    display_name: str
    created_at: datetime
    version: int
    updated_at: datetime
    deleted_at: datetime | None
    status: str
    document: str
    memory: str
    due_at: datetime | None
    prompt_version: int
    prompt: str


class SavedTask(NamedTuple):
    """What may change about a task; leave `due_moved` true unless `due_at` is what the row already has."""

    id: UUID
    version: int
    updated_at: datetime
    deleted_at: datetime | None
    status: str
    document: str
    memory: str
    due_at: datetime | None
    prompt_version: int
    due_moved: bool = True


class EventRow(NamedTuple):
    """One change of a task; `document` and `cause` are JSON text, `changes` names of fields, without commas."""

    task_id: UUID
    version: int
    occurred_at: datetime
    kind: str  # created, updated or deleted
    document: str
    changes: Sequence[str]
    cause: str
    prompt_version: int


class Prompt(NamedTuple):
    """The prompt that holds from the task's `version` on."""

    task_id: UUID
    version: int
    prompt: str


LOCK: Final = text("""
SELECT t.id, t.owner_id, t.organization_id, t.template_id, t.template_version_id, t.preset_id, t.name, t.display_name,
       t.created_at, t.version, t.updated_at, t.deleted_at, t.status, CAST(t.document AS text), CAST(t.memory AS text),
       t.due_at, t.prompt_version, p.prompt
FROM tasks AS t LEFT JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version
WHERE t.id = ANY(CAST(:ids AS uuid[]))
ORDER BY t.id
FOR UPDATE OF t
""")

PROMPTS: Final = text("""
SELECT p.task_id, p.prompt
FROM tasks AS t JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version
WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")

SAVE: Final = text("""
WITH said AS MATERIALIZED (
    SELECT id, version, updated_at, deleted_at, status, CAST(document AS json) AS document,
           CAST(memory AS json) AS memory, due_at, prompt_version
    FROM unnest(
        CAST(:id AS uuid[]), CAST(:version AS bigint[]), CAST(:updated_at AS timestamptz[]),
        CAST(:deleted_at AS timestamptz[]), CAST(:status AS text[]), CAST(:document AS text[]),
        CAST(:memory AS text[]), CAST(:due_at AS timestamptz[]), CAST(:prompt_version AS bigint[])
    ) AS s(id, version, updated_at, deleted_at, status, document, memory, due_at, prompt_version)
), saved AS (
    UPDATE tasks
    SET version = s.version, updated_at = s.updated_at, deleted_at = s.deleted_at, status = s.status,
        document = s.document, memory = s.memory, due_at = s.due_at, prompt_version = s.prompt_version
    FROM said AS s
    WHERE tasks.id = s.id
    RETURNING 1
), settled AS (
    DELETE FROM task_deadlines WHERE task_id = ANY(CAST(:settled AS uuid[]))
), due AS (
    INSERT INTO task_deadlines AS d (task_id, due_at)
    SELECT * FROM unnest(CAST(:moved AS uuid[]), CAST(:moved_to AS timestamptz[])) AS m(task_id, due_at)
    ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET due_at = excluded.due_at WHERE d.due_at <> excluded.due_at
), events AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:e_task_id AS uuid[]), CAST(:e_version AS bigint[]), CAST(:e_occurred_at AS timestamptz[]),
        CAST(:e_kind AS text[]), CAST(:e_document AS text[]), CAST(:e_changes AS text[]),
        CAST(:e_cause AS text[]), CAST(:e_prompt_version AS bigint[])
    ) AS e(task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
), told AS (
    INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
    SELECT e.task_id, e.version, e.occurred_at, e.kind, COALESCE(CAST(e.document AS json), s.document),
           string_to_array(e.changes, ','), CAST(e.cause AS json), e.prompt_version
    FROM events AS e LEFT JOIN said AS s ON s.id = e.task_id
), unpublished AS (
    INSERT INTO outbox (task_id, version, occurred_at) SELECT task_id, version, occurred_at FROM events
)
SELECT count(*) FROM saved
""")

INSERT: Final = text("""
WITH new AS (
    SELECT * FROM unnest(
        CAST(:id AS uuid[]), CAST(:owner_id AS uuid[]), CAST(:organization_id AS uuid[]), CAST(:template_id AS uuid[]),
        CAST(:template_version_id AS uuid[]), CAST(:preset_id AS uuid[]), CAST(:name AS text[]),
        CAST(:display_name AS text[]), CAST(:created_at AS timestamptz[]), CAST(:version AS bigint[]),
        CAST(:updated_at AS timestamptz[]), CAST(:deleted_at AS timestamptz[]), CAST(:status AS text[]),
        CAST(:document AS text[]), CAST(:memory AS text[]), CAST(:due_at AS timestamptz[]),
        CAST(:prompt_version AS bigint[]), CAST(:prompt AS text[])
    ) AS n(id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name, created_at,
           version, updated_at, deleted_at, status, document, memory, due_at, prompt_version, prompt)
), made AS (
    INSERT INTO tasks (
        id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name, created_at,
        version, updated_at, deleted_at, status, document, memory, due_at, prompt_version)
    SELECT id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name, created_at,
           version, updated_at, deleted_at, status, CAST(document AS json), CAST(memory AS json), due_at, prompt_version
    FROM new
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
), prompts AS (
    INSERT INTO task_prompts (task_id, version, prompt)
    SELECT id, prompt_version, prompt FROM new JOIN made USING (id)
), due AS (
    INSERT INTO task_deadlines (task_id, due_at)
    SELECT id, due_at FROM new JOIN made USING (id) WHERE due_at IS NOT NULL
)
SELECT id FROM made
""")

ADD_PROMPTS: Final = text("""
INSERT INTO task_prompts (task_id, version, prompt)
SELECT * FROM unnest(CAST(:task_id AS uuid[]), CAST(:version AS bigint[]), CAST(:prompt AS text[]))
""")

DUE: Final = text("""
SELECT task_id FROM task_deadlines WHERE due_at <= :now ORDER BY due_at LIMIT :limit
""")

TAKEN: Final = text("""
SELECT lower(name) FROM tasks
WHERE owner_id = :owner_id AND deleted_at IS NULL AND lower(name) = ANY(CAST(:names AS text[]))
""")


async def lock(conn: AsyncConnection, ids: Sequence[UUID]) -> list[TaskRow]:
    """Lock the tasks that exist among `ids` until the end of the transaction, in id order, and return them so.

    Whoever locks more than one task must do it here, in one call.
    """
    found = (await conn.execute(LOCK, {"ids": ids})).all()
    late = await _late_prompts(conn, [row.id for row in found if row.prompt is None])
    rows = [TaskRow._make(row) for row in found]
    return [row._replace(prompt=late.get(row.id, row.prompt)) for row in rows] if late else rows


async def _late_prompts(conn: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Read the prompts of tasks whose prompt was replaced while we waited for their lock.

    PostgreSQL reads a row again after waiting for its lock, but not the rows joined to it.
    https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
    """
    if not ids:
        return {}
    return {row.task_id: row.prompt for row in await conn.execute(PROMPTS, {"ids": ids})}


async def save(conn: AsyncConnection, rows: Sequence[SavedTask], events: Sequence[EventRow]) -> int:
    """Save tasks locked in this transaction and append events to history and outbox, all in one statement.

    Returns how many tasks were saved. At most one row for each task; an event needs no row, nor a row an event.
    """
    documents = {row.id: row.document for row in rows}
    moved = [row for row in rows if row.due_moved and row.due_at is not None]
    values = {
        "id": [row.id for row in rows],
        "version": [row.version for row in rows],
        "updated_at": [row.updated_at for row in rows],
        "deleted_at": [row.deleted_at for row in rows],
        "status": [row.status for row in rows],
        "document": [row.document for row in rows],
        "memory": [row.memory for row in rows],
        "due_at": [row.due_at for row in rows],
        "prompt_version": [row.prompt_version for row in rows],
        "settled": [row.id for row in rows if row.due_moved and row.due_at is None],
        "moved": [row.id for row in moved],
        "moved_to": [row.due_at for row in moved],
        "e_task_id": [event.task_id for event in events],
        "e_version": [event.version for event in events],
        "e_occurred_at": [event.occurred_at for event in events],
        "e_kind": [event.kind for event in events],
        "e_document": [None if event.document == documents.get(event.task_id) else event.document for event in events],
        "e_changes": [",".join(event.changes) for event in events],
        "e_cause": [event.cause for event in events],
        "e_prompt_version": [event.prompt_version for event in events],
    }
    return int((await conn.execute(SAVE, values)).scalar_one())


async def insert_tasks(conn: AsyncConnection, new: Sequence[TaskRow]) -> set[UUID]:
    """Insert tasks with their prompts and return the ids of those inserted.

    A task is left out when its id is taken, or its name by a live task of the same owner; of two in
    `new` that are of one name, one is inserted.
    """
    values = {name: [getattr(row, name) for row in new] for name in TaskRow._fields}
    return {task_id for (task_id,) in await conn.execute(INSERT, values)}


async def add_prompts(conn: AsyncConnection, prompts: Sequence[Prompt]) -> None:
    """Store new prompts; each holds while its task has that `prompt_version`."""
    values = {
        "task_id": [prompt.task_id for prompt in prompts],
        "version": [prompt.version for prompt in prompts],
        "prompt": [prompt.prompt for prompt in prompts],
    }
    await conn.execute(ADD_PROMPTS, values)


async def taken(conn: AsyncConnection, owner_id: UUID, names: Sequence[str]) -> frozenset[str]:
    """Return which of these names, lowercase, live tasks of the owner bear."""
    found = await conn.execute(TAKEN, {"owner_id": owner_id, "names": names})
    return frozenset(name for (name,) in found)


async def due(conn: AsyncConnection, now: datetime, limit: int) -> list[UUID]:
    """Return up to `limit` tasks whose `due_at` has come, the longest due first; nothing is locked."""
    return [task_id for (task_id,) in await conn.execute(DUE, {"now": now, "limit": limit})]
