"""The command log: one transaction executes a command, every repeat gets the same reply."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import command_log, erasure
from taskherd.store.command_log import ExecutedCommand, RecordedCommand
from taskherd.store.engine import transaction
from taskherd.store.task_creation import AddedRows, insert_tasks
from tests.store.conftest import NOW, ignore_indexes, task_row, waits_for_lock


@pytest.mark.parametrize("creating", [False, True], ids=["other commands", "creates"])
async def test_of_two_workers_one_records_a_command(engine: AsyncEngine, *, creating: bool) -> None:
    """The other one waits for it, and is told that a command was not recorded; the first one's reply is found."""
    old = ExecutedCommand(uuid4(), uuid4(), b"digest", '{"ok":true}', NOW)
    recorded, release = asyncio.Event(), asyncio.Event()

    async def record(*commands: ExecutedCommand) -> int:
        async with transaction(engine) as connection:
            if creating:
                count = (await insert_tasks(connection, [task_row()], AddedRows(commands=commands))).commands
            else:
                count = await command_log.record(connection, commands)
            recorded.set()
            await release.wait()
            return count

    first = asyncio.create_task(record(old))
    await recorded.wait()
    other = ExecutedCommand(uuid4(), uuid4(), b"other", '{"ok":false}', NOW)
    second = asyncio.create_task(record(old._replace(digest=b"same id"), other))
    assert await waits_for_lock(engine, second)
    release.set()
    assert (await first, await second) == (1, 1)
    async with transaction(engine) as connection:
        found = await command_log.find(connection, [old.command_id, uuid4()])
        assert found == {old.command_id: RecordedCommand(b"digest", '{"ok":true}')}
        assert await command_log.prune(connection, NOW + timedelta(seconds=1), 10) == 2


async def test_the_oldest_commands_are_forgotten_first(engine: AsyncEngine) -> None:
    """Up to the limit those executed before a time are deleted; a repeat of one of that time is still known."""
    ages = {UUID(int=number): age for number, age in ((1, 2), (2, 4), (3, 3), (4, 0))}
    commands = [ExecutedCommand(each, uuid4(), b"", "{}", NOW - timedelta(hours=age)) for each, age in ages.items()]
    async with transaction(engine) as connection:
        await command_log.record(connection, commands)
        await ignore_indexes(connection)
        for limit, deleted, left in ((2, 2, {1, 4}), (2, 1, {4}), (2, 0, {4})):
            assert await command_log.prune(connection, NOW, limit) == deleted
            assert set(await command_log.find(connection, list(ages))) == {UUID(int=number) for number in left}


async def test_a_command_without_a_trace_elsewhere_is_recorded_until_its_task_is_erased(engine: AsyncEngine) -> None:
    """It is not pruned by its age, nor does it lengthen the search for those that are; erasure gives it back to age."""
    task_id, old = uuid4(), NOW - timedelta(days=90)
    kept = [ExecutedCommand(uuid4(), task_id, b"", '{"ok":true}', old, kept_until_erased=True) for _ in range(3)]
    async with transaction(engine) as connection:
        await command_log.record(connection, [*kept, ExecutedCommand(uuid4(), task_id, b"", "{}", old)])
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = await connection.execute(text(f"EXPLAIN {command_log.PRUNE.text}"), {"before": NOW, "limit": 1})
        assert "command_log_created_at_idx" in "\n".join(plan.scalars())
        assert await command_log.prune(connection, NOW, 10) == 1
        assert len(await command_log.find(connection, [each.command_id for each in kept])) == 3
        await erasure.finish(connection, {task_id: "{}"}, NOW)
        assert await command_log.prune(connection, NOW, 10) == 3


async def test_what_erasure_rewrites_at_once_is_young(engine: AsyncEngine) -> None:
    """However many questions were answered in a task's life, all but those of the last day are deleted in steps."""
    task_id, other = uuid4(), uuid4()
    kept = [
        ExecutedCommand(uuid4(), of, b"", '{"ok":true}', NOW - timedelta(hours=age), kept_until_erased=True)
        for of, age in ((task_id, 50), (task_id, 40), (task_id, 30), (task_id, 20), (other, 60))
    ]
    async with transaction(engine) as connection:
        await command_log.record(connection, kept)
        day = NOW - timedelta(hours=24)
        for deleted in (2, 1, 0):
            assert await erasure.delete_contents(connection, [task_id], 2, day) == deleted
        assert set(await command_log.find(connection, [each.command_id for each in kept])) == {
            kept[3].command_id,
            kept[4].command_id,
        }
