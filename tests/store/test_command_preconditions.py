"""What commands depend on: read after its locks were acquired, so that nothing committed meanwhile is missed."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import command_log, parked_reports, running_tasks, tasks
from taskherd.store.command_preconditions import References, lock_and_read
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, next_version, task_row, waits_for_lock


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


async def test_only_what_is_asked_for_counts(engine: AsyncEngine) -> None:
    """Not what exists, is parked, runs or has a name besides; deleted tasks have freed their names."""
    owner, other = uuid4(), uuid4()
    rows = [task_row(owner_id=owner, name=name) for name in ("one", "Two", "three")]
    rows.append(task_row(owner_id=other, name="four"))
    ids = [row.task.id for row in rows]
    commands = [command_log.ExecutedCommand(uuid4(), task_id, b"", "{}", NOW) for task_id in ids]
    names = [(other, "one"), (owner, "two"), (owner, "three"), (owner, "four"), (other, "four"), (owner, "one")]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.save(connection, [next_version(rows[2], 2, deleted_at=NOW)], [])
        await command_log.record(connection, commands)
        await parked_reports.park(connection, [parked_reports.ReportToPark(ids[0], NOW, "{}")], 10)
        await running_tasks.add(connection, [(ids[0], owner), (ids[1], owner), (ids[3], other)])
        await connection.execute(text("UPDATE directory_revision SET revision = 42"))
        asked = References(ids[1:3], [commands[3].command_id, commands[1].command_id], [other, owner], names)
        found = await lock_and_read(connection, asked, 9)
        assert found.directory_revision == 42
        assert set(found.existing) == set(ids[1:3])
        assert set(found.recorded) == {commands[1].command_id, commands[3].command_id}
        assert found.running == {owner: 2, other: 1}
        assert found.names_in_use == {owner: {"one", "two"}, other: {"four"}}
        assert not found.has_parked_reports
        found = await lock_and_read(connection, References(ids[:1], [], [owner], []), 1)
        assert (found.existing, found.recorded, found.names_in_use) == (ids[:1], [], {})
        assert (found.has_parked_reports, found.running) == (True, {owner: 1})
