"""New tasks with everything that their batch adds, and nothing of those that are skipped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain.value import replace
from taskherd.store.builds import BuildRow
from taskherd.store.command_log import ExecutedCommand
from taskherd.store.engine import transaction
from taskherd.store.task_creation import AddedRows, Inserted, insert_tasks
from taskherd.store.work_requests import WorkRequestRow
from tests.store.conftest import NOW, empty, event, task_row


async def rows_of(connection: AsyncConnection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return [tuple(row) for row in await connection.execute(text(query))]


async def test_a_batch_adds_each_row_to_its_table(engine: AsyncEngine) -> None:
    """A task with its prompt, deadline and events; builds, requests, commands and running tasks of any task."""
    first, second = rows = sorted((task_row(), task_row()._replace(due_at=None)), key=lambda row: row.task.id)
    due = [row for row in rows if row.due_at is not None]
    other = uuid4()
    events = [
        event(first.task.id, 1)._replace(document=first.document),
        event(second.task.id, 1, NOW + timedelta(seconds=1)),
    ]
    added = AddedRows(
        events,
        [BuildRow(UUID(int=1), other, 7, "start", "pending", None, None, None, NOW)],
        [WorkRequestRow(UUID(int=2), other, 7, "workspace.start", None, None, 0, NOW, NOW, None)],
        [(other, UUID(int=3)), (first.task.id, UUID(int=3))],
        [ExecutedCommand(UUID(int=number), other, b"digest", "{}", NOW) for number in (4, 5)],
    )
    async with transaction(engine) as connection:
        await empty(connection, "tasks")
        assert await insert_tasks(connection, rows[::-1], added) == Inserted({first.task.id, second.task.id}, 2)
        assert await rows_of(connection, "SELECT id FROM tasks ORDER BY ctid") == [(row.task.id,) for row in rows]
        assert await rows_of(connection, "SELECT task_id, version, prompt FROM task_prompts ORDER BY task_id") == [
            (row.task.id, 1, row.task.prompt) for row in rows
        ]
        assert await rows_of(connection, "SELECT task_id, due_at FROM task_deadlines") == [
            (row.task.id, row.due_at) for row in due
        ]
        assert await rows_of(
            connection,
            "SELECT task_id, version, occurred_at, kind, CAST(document AS text), changes, prompt_version"
            " FROM task_events ORDER BY occurred_at",
        ) == [
            (each.task.id, 1, each.task.updated_at, "created", each.document, list(each.changes), 1) for each in events
        ]
        assert await rows_of(connection, "SELECT task_id, version, occurred_at FROM outbox ORDER BY occurred_at") == [
            (each.task.id, 1, each.task.updated_at) for each in events
        ]
        assert await rows_of(connection, "SELECT task_id, number FROM task_builds") == [(other, 7)]
        assert await rows_of(connection, "SELECT task_id, build_number FROM work_requests") == [(other, 7)]
        assert set(await rows_of(connection, "SELECT task_id, owner_id FROM running_tasks")) == set(added.running)
        assert await rows_of(connection, "SELECT count(*) FROM command_log") == [(2,)]


async def test_of_a_task_that_is_skipped_nothing_is_added(engine: AsyncEngine) -> None:
    """Neither its prompt, nor its deadline, nor its events; a command that is recorded already is not counted."""
    old, new = task_row(), task_row()
    again = old._replace(task=replace(old.task, prompt="Do it again."))
    command = ExecutedCommand(UUID(int=4), new.task.id, b"digest", "{}", NOW)
    async with transaction(engine) as connection:
        assert await insert_tasks(connection, [old], AddedRows(commands=[command])) == Inserted({old.task.id}, 1)
        await connection.execute(text("DELETE FROM task_deadlines"))
        added = AddedRows([event(old.task.id, 1), event(new.task.id, 1)], commands=[command])
        assert await insert_tasks(connection, [again, new], added) == Inserted({new.task.id}, 0)
        assert set(await rows_of(connection, "SELECT task_id, prompt FROM task_prompts")) == {
            (row.task.id, row.task.prompt) for row in (old, new)
        }
        for table in ("task_deadlines", "task_events", "outbox"):
            assert await rows_of(connection, f"SELECT task_id FROM {table}") == [(new.task.id,)]
        assert await insert_tasks(connection, [again]) == Inserted(set(), 0)
