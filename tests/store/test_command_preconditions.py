"""What commands depend on: read after its locks were acquired, so that nothing committed meanwhile is missed."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import command_log, parked_reports
from taskherd.store.command_preconditions import References, lock_and_read
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, task_row, waits_for_lock


async def test_what_commands_refer_to_is_found(engine: AsyncEngine) -> None:
    """Tasks that exist after all, commands executed earlier, and names that are taken, each by its owner."""
    owner, absent = uuid4(), uuid4()
    row = task_row(owner_id=owner, name="Fix-It")
    executed = command_log.ExecutedCommand(uuid4(), row.task.id, b"digest", "{}", NOW)
    names = [(uuid4(), "fix-it"), (owner, "free"), (owner, "fix-it")]
    async with transaction(engine) as connection:
        await insert_tasks(connection, [row])
        await command_log.record(connection, [executed])
        references = References([absent, row.task.id], [uuid4(), executed.command_id], [], names)
        found = await lock_and_read(connection, references, 1)
    assert (found.existing, found.recorded) == ([row.task.id], [executed.command_id])
    assert (found.names_in_use, found.has_parked_reports) == ({owner: {"fix-it"}}, False)


async def test_a_create_sees_what_was_parked_while_it_waited(engine: AsyncEngine) -> None:
    """It waits for who parks a report of its task, and is told of it, because it reads after it has waited."""
    task_id = uuid4()

    async def create() -> bool:
        async with transaction(engine) as connection:
            found = await lock_and_read(connection, References([uuid4(), task_id], [], [], []), 1)
            return found.has_parked_reports

    async with transaction(engine) as parking:
        await parked_reports.lock_task_ids(parking, [task_id])
        creating = asyncio.create_task(create())
        assert await waits_for_lock(engine, creating)
        await parked_reports.park(parking, [parked_reports.ReportToPark(task_id, NOW, "{}")], 10)
    assert await creating
