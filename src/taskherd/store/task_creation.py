"""Insert new tasks, and everything else that their batch adds, in one statement.

A batch of creates is small: one statement per table would cost more in round trips than the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import builds, command_log, running_tasks, task_index, work_requests
from taskherd.store.direct import DirectStatement
from taskherd.store.statements import ColumnArrays, column_names, stored
from taskherd.store.tables import outbox, task_events, task_prompts, tasks
from taskherd.store.tasks import EVENT_ROWS, TASK_ATTRIBUTES, StoredTask, TaskEventRow, event_parameters


class AddedRows(NamedTuple):
    """The rows that a batch adds besides its new tasks; ``events`` only of those, the others of any of its tasks.

    ``running`` are pairs of a task and its owner.
    """

    events: Sequence[TaskEventRow] = ()
    builds: Sequence[builds.BuildRow] = ()
    requests: Sequence[work_requests.WorkRequestRow] = ()
    running: Sequence[tuple[UUID, UUID]] = ()
    commands: Sequence[command_log.ExecutedCommand] = ()
    indexed: Sequence[task_index.IndexedTask] = ()


NOTHING_ADDED: Final = AddedRows()

_NEW_ROWS: Final = ColumnArrays([*tasks.c, task_prompts.c.prompt], attributes=TASK_ATTRIBUTES)

INSERT: Final = DirectStatement(f"""
WITH new AS MATERIALIZED (
    SELECT * FROM {_NEW_ROWS.unnest("n")}
), inserted AS (
    INSERT INTO tasks ({column_names(tasks.c)})
    SELECT {stored(tasks.c)}
    FROM new
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
), prompts AS (
    INSERT INTO task_prompts (task_id, version, prompt)
    SELECT id, prompt_version, prompt FROM new JOIN inserted USING (id)
), due AS (
    INSERT INTO task_deadlines (task_id, due_at)
    SELECT id, due_at FROM new JOIN inserted USING (id) WHERE due_at IS NOT NULL
), events AS MATERIALIZED (
    SELECT * FROM {EVENT_ROWS.unnest("e")} JOIN inserted ON inserted.id = e.task_id
), history AS (
    INSERT INTO task_events ({column_names(task_events.c)})
    SELECT {stored(task_events.c, "e", instead={"document": "CAST(COALESCE(e.document, n.document) AS json)"})}
    FROM events AS e JOIN new AS n ON n.id = e.task_id
), unpublished AS (
    INSERT INTO outbox ({column_names(outbox.c)}) SELECT {column_names(outbox.c)} FROM events
), added_builds AS ({builds.UPSERT}
), requested AS ({work_requests.INSERT}
), started AS ({running_tasks.INSERT}
), indexed AS ({task_index.RECORD}
), executed AS ({command_log.INSERT}
    RETURNING 1
)
SELECT id, (SELECT count(*) FROM executed) FROM inserted
""")


class Inserted(NamedTuple):
    """The ids of the tasks that were inserted, and the number of commands that were recorded if there are any."""

    tasks: set[UUID]
    commands: int


async def insert_tasks(
    connection: AsyncConnection, new: Sequence[StoredTask], added: AddedRows = NOTHING_ADDED
) -> Inserted:
    """Insert tasks with their prompts and ``added``.

    A task is skipped if its id exists, or if a live task of the same owner has its name; of two tasks in ``new`` with
    the same name, one is inserted. A command is skipped if it is recorded already. Roll the transaction back if
    anything was skipped: what else was added of it stays.
    """
    values = {
        **_NEW_ROWS.parameters(new),
        **event_parameters(new, added.events),
        **builds.parameters(added.builds),
        **work_requests.parameters(added.requests),
        **running_tasks.parameters(added.running),
        **command_log.parameters(added.commands),
        **task_index.parameters(added.indexed),
    }
    rows = await INSERT.fetch(connection, values)
    return Inserted({row[0] for row in rows}, rows[0][1] if rows else 0)
