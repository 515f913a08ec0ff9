"""Task rows: locked in id order, and saved together with their history in one statement (new ones: ``task_creation``).

The lists of columns are generated from the table, ``Task`` and ``StoredTask``, so a column is added there. A document
that a task and its event share is sent once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.task import Task, TaskState
from taskherd.store import task_index, task_state_codec
from taskherd.store.direct import DirectStatement
from taskherd.store.engine import PromptSizeError
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names, selected, stored
from taskherd.store.tables import outbox, task_events, task_prompts, tasks


class StoredTask(NamedTuple):
    """A task and the columns derived from it; ``document`` is JSON text.

    ``due_changed`` may be False only if the row in the database already has this ``due_at``: ``save`` then leaves it.
    """

    task: Task
    status: str
    document: str
    due_at: datetime | None
    due_changed: bool = True

    @property
    def encoded_state(self) -> str:
        """The task state as JSON text."""
        return task_state_codec.dumps(self.task.state)


class TaskEventRow(NamedTuple):
    """The change that led to a version of a task; ``document`` and ``cause`` are JSON text, ``changes`` field names."""

    task: Task
    kind: str  # created, updated or deleted
    document: str
    changes: Sequence[str]
    cause: str


TASK_FIELDS: Final[tuple[str, ...]] = Task.__match_args__
"""The fields of ``Task`` in constructor order: columns of ``tasks``; the prompt is a column of ``task_prompts``."""

DERIVED: Final = tuple(name for name in StoredTask._fields if name not in ("task", "due_changed"))
"""The columns that are fields of ``StoredTask``, in constructor order."""

_ID, _PROMPT, _STATE = (TASK_FIELDS.index(name) for name in ("id", "prompt", "state"))

TASK_ATTRIBUTES: Final = {**{name: f"task.{name}" for name in TASK_FIELDS}, "state": "encoded_state"}
_EVENT_ATTRIBUTES: Final = {
    "task_id": "task.id",
    "version": "task.version",
    "occurred_at": "task.updated_at",
    "prompt_version": "task.prompt_version",
}
_SAVED: Final = [tasks.c.id, *changing(tasks)]

_SAVED_ROWS: Final = ColumnArrays(_SAVED, attributes=TASK_ATTRIBUTES)
EVENT_ROWS: Final = ColumnArrays(task_events.c, prefix="e_", attributes=_EVENT_ATTRIBUTES)
_PROMPT_ROWS: Final = ColumnArrays(task_prompts.c, attributes={"task_id": "id", "version": "prompt_version"})

SMALL_PROMPT: Final = 16 * 1024
"""Size up to which a prompt is read with its task's row, in bytes."""

MAX_PROMPT_BYTES: Final = 32 * 1024 * 1024
"""Size of the larger prompts that are in memory together, in bytes; one has up to 256 KiB."""

_SMALL_PROMPT: Final = f"CASE WHEN octet_length(p.prompt) <= {SMALL_PROMPT} THEN p.prompt END AS prompt"

_LOCKED: Final = ", ".join(
    selected([tasks.c[name]], "t") if name in tasks.c else _SMALL_PROMPT for name in (*TASK_FIELDS, *DERIVED)
)

LOCK: Final = DirectStatement(f"""
SELECT {_LOCKED}
FROM tasks AS t LEFT JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version
WHERE t.id = ANY(CAST(:ids AS uuid[]))
ORDER BY t.id
FOR UPDATE OF t
""")

# PostgreSQL knows the size of a prompt without reading it.
PROMPTS: Final = text("""
SELECT p.task_id, CASE WHEN sum(octet_length(p.prompt)) OVER () <= :max_bytes THEN p.prompt END AS prompt
FROM tasks AS t JOIN task_prompts AS p ON p.task_id = t.id AND p.version = t.prompt_version
WHERE t.id = ANY(CAST(:ids AS uuid[]))
""")

_NO_LONGER_DUE: Final = "DELETE FROM task_deadlines WHERE task_id = ANY(CAST(:no_longer_due AS uuid[]))"

_DUE: Final = """
    INSERT INTO task_deadlines AS d (task_id, due_at)
    SELECT * FROM unnest(CAST(:due_changed AS uuid[]), CAST(:new_due_at AS timestamptz[])) AS m(task_id, due_at)
    ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET due_at = excluded.due_at WHERE d.due_at <> excluded.due_at
"""

SAVE_DEADLINES: Final = DirectStatement(f"""
WITH moved AS (
    SELECT * FROM unnest(CAST(:due_changed AS uuid[]), CAST(:new_due_at AS timestamptz[])) AS m(task_id, due_at)
    UNION ALL SELECT task_id, NULL FROM unnest(CAST(:no_longer_due AS uuid[])) AS m(task_id)
), saved AS (
    UPDATE tasks SET due_at = m.due_at FROM moved AS m WHERE tasks.id = m.task_id
), no_longer_due AS ({_NO_LONGER_DUE}
) {_DUE}""")

SAVE: Final = DirectStatement(f"""
WITH incoming AS MATERIALIZED (
    SELECT {stored(_SAVED)}
    FROM {_SAVED_ROWS.unnest("s")}
), saved AS (
    UPDATE tasks
    SET {assignments(changing(tasks), "s")}
    FROM incoming AS s
    WHERE tasks.id = s.id
    RETURNING 1
), no_longer_due AS ({_NO_LONGER_DUE}
), due AS ({_DUE}), events AS MATERIALIZED (
    SELECT * FROM {EVENT_ROWS.unnest("e")}
), history AS (
    INSERT INTO task_events ({column_names(task_events.c)})
    SELECT {stored(task_events.c, "e", instead={"document": "COALESCE(CAST(e.document AS json), s.document)"})}
    FROM events AS e LEFT JOIN incoming AS s ON s.id = e.task_id
), unpublished AS (
    INSERT INTO outbox ({column_names(outbox.c)}) SELECT {column_names(outbox.c)} FROM events
), indexed AS ({task_index.RECORD}
)
SELECT count(*) FROM saved
""")

ADD_PROMPTS: Final = text(f"""
INSERT INTO task_prompts ({column_names(task_prompts.c)})
SELECT * FROM {_PROMPT_ROWS.unnest("p")}
""")

STATES: Final = text("SELECT id, CAST(state AS text), deleted_at FROM tasks WHERE id = ANY(CAST(:ids AS uuid[]))")

DUE: Final = text("""
SELECT task_id FROM task_deadlines WHERE due_at <= :now ORDER BY due_at LIMIT :limit
""")

_OWN_ROWS: Final = {
    "tasks": ("id", "id"),
    "task_deadlines": ("task_id", "task_id"),
    "leases": ("task_id", "task_id"),
    "work_requests": ("task_id", "request_id"),
}
"""The tables of whose rows one that is locked holds up its task, each with the columns of the task and of the key."""

# Each table is read by an index. Nothing waits for a row, so their order cannot lead to a deadlock.
LOCKED_BY_OTHERS: Final = text(
    "WITH "
    + ", ".join(
        f"free_{table} AS MATERIALIZED (SELECT {key} FROM {table}"
        f" WHERE {task_id} = ANY(CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED)"
        for table, (task_id, key) in _OWN_ROWS.items()
    )
    + " UNION ".join(
        f" SELECT {task_id} FROM {table}"
        f" WHERE {task_id} = ANY(CAST(:ids AS uuid[])) AND {key} NOT IN (SELECT {key} FROM free_{table})"
        for table, (task_id, key) in _OWN_ROWS.items()
    )
)

_DAMAGED: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What decoding a damaged state raises."""

POSTPONE: Final = text("""
UPDATE task_deadlines SET due_at = :until WHERE task_id IN (
    SELECT task_id FROM task_deadlines WHERE task_id = ANY(CAST(:ids AS uuid[])) AND due_at < :until
    ORDER BY task_id FOR UPDATE SKIP LOCKED)
""")


async def lock(connection: AsyncConnection, ids: Sequence[UUID]) -> list[StoredTask]:
    """Lock and return the existing tasks among ``ids``, in id order; the locks last until the end of the transaction.

    Lock all tasks of a transaction in one call, or transactions can deadlock.

    Raises:
        PromptSizeError: lock fewer tasks; not of one task.
    """
    rows = await LOCK.fetch(connection, {"ids": ids})
    prompts = await _further_prompts(connection, [row[_ID] for row in rows if row[_PROMPT] is None])
    return [_from_row(row, prompts) for row in rows]


async def find_locked(connection: AsyncConnection, ids: Collection[UUID]) -> frozenset[UUID]:
    """Return the ids of those of the tasks that another transaction has locked, and lock the others without waiting.

    A task is locked if its row is, or its lease, the time of its next timer check, or one of its work requests. It may
    be that one is returned because such a row was deleted at this moment.
    """
    return frozenset((await connection.execute(LOCKED_BY_OTHERS, {"ids": sorted(ids)})).scalars())


def _from_row(row: Sequence[Any], prompts: dict[UUID, str]) -> StoredTask:
    values = list(row)
    task_id = values[_ID]
    values[_STATE] = task_state_codec.loads(task_id, values[_STATE])
    if prompts:
        values[_PROMPT] = prompts.get(task_id, values[_PROMPT])
    return StoredTask(Task(*values[: len(TASK_FIELDS)]), *values[len(TASK_FIELDS) :])


async def states(
    connection: AsyncConnection, ids: Collection[UUID]
) -> dict[UUID, tuple[TaskState | None, datetime | None]]:
    """Return the states of the existing tasks among ``ids``, with their times of deletion, without locking.

    A damaged state is None, so that it keeps no other from being read.
    """
    rows = await connection.execute(STATES, {"ids": list(ids)})
    return {task_id: (_load_unless_damaged(task_id, state), deleted_at) for task_id, state, deleted_at in rows}


def _load_unless_damaged(task_id: UUID, state: str) -> TaskState | None:
    try:
        return task_state_codec.loads(task_id, state)
    except _DAMAGED:
        return None


async def _further_prompts(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Read the prompts that a locked row came without.

    These are large ones, and those that were replaced while this transaction waited for their lock: after waiting for a
    row lock PostgreSQL reads the row again, but not the rows joined to it.
    https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
    """
    if not ids:
        return {}
    rows = await connection.execute(PROMPTS, {"ids": ids, "max_bytes": MAX_PROMPT_BYTES})
    prompts = {row.task_id: row.prompt for row in rows}
    if None in prompts.values():
        raise PromptSizeError(f"the prompts of {len(ids)} tasks together")
    return prompts


async def save(
    connection: AsyncConnection,
    rows: Sequence[StoredTask],
    events: Sequence[TaskEventRow],
    indexed: Sequence[task_index.IndexedTask] = (),
) -> int:
    """Save tasks locked in this transaction and append events to history and outbox, all in one statement.

    ``indexed`` is what the index should have of these tasks, where that changes. Return the number of tasks saved.
    There is at most one row per task; rows and events are independent of each other.
    """
    return int((await SAVE.fetch(connection, save_parameters(rows, events, indexed)))[0][0])


def save_parameters(
    rows: Sequence[StoredTask], events: Sequence[TaskEventRow], indexed: Sequence[task_index.IndexedTask] = ()
) -> dict[str, Any]:
    """Return the parameters of ``SAVE``."""
    due_changed = [row for row in rows if row.due_changed and row.due_at is not None]
    return {
        **_SAVED_ROWS.parameters(rows),
        "no_longer_due": [row.task.id for row in rows if row.due_changed and row.due_at is None],
        "due_changed": [row.task.id for row in due_changed],
        "new_due_at": [row.due_at for row in due_changed],
        **event_parameters(rows, events),
        **task_index.parameters(indexed),
    }


async def save_deadlines(connection: AsyncConnection, deadlines: Mapping[UUID, datetime | None]) -> None:
    """Save when to check tasks next that are locked in this transaction; None if no further check is necessary."""
    due = {task_id: due_at for task_id, due_at in deadlines.items() if due_at is not None}
    parameters = {"no_longer_due": [*(deadlines.keys() - due)], "due_changed": [*due], "new_due_at": [*due.values()]}
    await SAVE_DEADLINES.fetch(connection, parameters)


def event_parameters(rows: Sequence[StoredTask], events: Sequence[TaskEventRow]) -> dict[str, Any]:
    """Return the parameters of ``EVENT_ROWS``: an event's document is None if the task's row has the same."""
    documents = {row.task.id: row.document for row in rows}
    return {
        **EVENT_ROWS.parameters(events),
        "e_document": [None if event.document == documents.get(event.task.id) else event.document for event in events],
        "e_changes": [",".join(event.changes) for event in events],
    }


async def add_prompts(connection: AsyncConnection, changed: Sequence[Task]) -> None:
    """Insert the prompts of tasks that have a new ``prompt_version``."""
    await connection.execute(ADD_PROMPTS, _PROMPT_ROWS.parameters(changed))


async def due(connection: AsyncConnection, now: datetime, limit: int) -> list[UUID]:
    """Return the ids of up to ``limit`` tasks that are due, most overdue first, without locking."""
    return [task_id for (task_id,) in await connection.execute(DUE, {"now": now, "limit": limit})]


async def postpone(connection: AsyncConnection, ids: Collection[UUID], until: datetime) -> None:
    """Postpone the next timer checks of tasks that are earlier to ``until``; not those that others have locked."""
    await connection.execute(POSTPONE, {"ids": sorted(ids), "until": until})
