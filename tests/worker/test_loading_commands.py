"""What a batch locks and reads for its commands, and what it finds out while it waits for a lock."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.commands import Pause, Resume, Send
from taskherd.domain.handle_command import EarlierInput, TemplateVersionInfo
from taskherd.domain.report_json import canonical_json
from taskherd.store import command_log, inputs, parked_reports, running_tasks
from taskherd.store.command_log import ExecutedCommand, RecordedCommand
from taskherd.store.engine import transaction
from taskherd.store.parked_reports import ReportToPark
from taskherd.worker.batch import Batch
from taskherd.worker.directory_cache import NO_ENTRIES
from tests.harness.histories import NOON
from tests.harness.worker import ALICE, ORGANIZATION, PRESET, TEMPLATE, VERSION
from tests.worker.loads import (
    BOB,
    CAROL,
    FOUR,
    LOCKS,
    ONE,
    QUEUED,
    SENT,
    THREE,
    TWO,
    UNASKED,
    Seen,
    command,
    context_of,
    create,
    load,
    load_while_created,
    new_input,
    status,
    store,
    task_row,
)


async def test_a_create_reads_what_it_depends_on(engine: AsyncEngine) -> None:
    """Its task is not looked up first; names are drawn for those without one, and all of them are compared."""
    await store(engine, task_row(ONE, name="sort-13-2"), task_row(TWO, BOB, name="CHOSEN"))
    async with transaction(engine) as connection:
        await running_tasks.add(connection, [(ONE, ALICE), (TWO, BOB)])
    context = context_of(engine, strict_send=True)
    batch = Batch(commands=[create(THREE), create(FOUR, 51, BOB, name="Chosen")])
    loaded, seen = await load(context, batch)
    assert seen == Seen([LOCKS, "directory_revision", "presets", "users"], {"ids": {THREE, FOUR}}, [])
    assert (loaded.rows, loaded.updates, loaded.parked) == ({}, {}, {})
    people = {each.username: each.active for each in loaded.entries.owners.values()}
    assert people == {"alice": True, "bob": False}
    assert {each: version.name for each, version in loaded.entries.versions.items()} == {VERSION: "v1"}
    judged_by = loaded.update_context.command_context
    assert judged_by.owners == {ALICE: frozenset({ORGANIZATION})}
    assert judged_by.versions == {
        VERSION: TemplateVersionInfo(ORGANIZATION, TEMPLATE, frozenset({PRESET}), usable=True)
    }
    assert judged_by.drawn_names == {THREE: ("sort-13-1", "sort-13-2")}
    assert judged_by.names_in_use == {ALICE: {"sort-13-2"}, BOB: {"chosen"}}
    assert (judged_by.strict_send, judged_by.earlier_inputs) == (True, {})
    assert (judged_by.running, judged_by.max_running) == ({}, 0)


async def test_a_create_sees_the_directory_of_its_own_transaction(engine: AsyncEngine) -> None:
    """What a worker has read of an earlier revision counts no more; of the same one nothing is read again."""
    context = context_of(engine)
    loaded, _ = await load(context, Batch(commands=[create(THREE)]))
    assert loaded.update_context.command_context.owners == {ALICE: frozenset({ORGANIZATION})}
    _, seen = await load(context, Batch(commands=[create(FOUR, 51)]))
    assert seen.read == [LOCKS, "directory_revision"]
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE users SET active = NOT active"))
        await connection.execute(text("UPDATE templates SET active = false"))
        await connection.execute(text("UPDATE directory_revision SET revision = revision + 1"))
    loaded, _ = await load(context, Batch(commands=[create(THREE), create(FOUR, 51, BOB)]))
    judged_by = loaded.update_context.command_context
    assert judged_by.owners == {BOB: frozenset()}
    assert {each: version.usable for each, version in judged_by.versions.items()} == {VERSION: False}


async def test_commands_for_tasks_that_exist_lock_them(engine: AsyncEngine) -> None:
    """And read no entries of the directory; one that does not exist is looked for once more."""
    await store(engine, task_row(ONE))
    batch = Batch(commands=[command(Pause, ONE), command(Pause, THREE, 51), command(Pause, FOUR, 52)])
    loaded, seen = await load_while_created(context_of(engine), batch, task_row(THREE))
    assert loaded.rows == {ONE: task_row(ONE), THREE: task_row(THREE)}
    assert {*loaded.updates} == {ONE, THREE}
    assert seen.locked == {"tasks": {ONE, THREE}, "ids": {THREE, FOUR}}
    assert seen.read == [LOCKS, "directory_revision", "leases", "tasks", "tasks", "template_versions"]
    assert seen.looked_up == [{ONE, THREE, FOUR}, {THREE}]
    assert loaded.entries is NO_ENTRIES
    assert loaded.recorded_replies == {}


async def add_running(engine: AsyncEngine, **numbers: int) -> None:
    """Add running tasks of these owners, by name."""
    owners = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    pairs = [(owner, each) for owner, number in numbers.items() for each in range(number)]
    rows = [(UUID(int=0x1000 + position), owners[owner]) for position, (owner, _) in enumerate(pairs)]
    async with transaction(engine) as connection:
        await running_tasks.add(connection, rows)


async def test_what_runs_is_counted_for_those_who_start_something(engine: AsyncEngine) -> None:
    """Creates and resumes, up to the maximum and one more for each command; pauses count nothing."""
    await store(engine, task_row(ONE, CAROL), task_row(TWO, BOB))
    await add_running(engine, alice=9, bob=2, carol=3)
    context = context_of(engine, max_running=5)
    starts = [create(THREE), command(Resume, TWO, 51), command(Pause, ONE, 52)]
    loaded, seen = await load(context, Batch(commands=starts))
    judged_by = loaded.update_context.command_context
    assert (judged_by.running, judged_by.max_running) == ({ALICE: 8, BOB: 2}, 5)
    assert seen.locked == {"tasks": {ONE, TWO}, "ids": {THREE}, "owners": {ALICE, BOB}}
    loaded, seen = await load(context, Batch(commands=[command(Resume, FOUR, 51), command(Pause, ONE, 52)]))
    assert loaded.update_context.command_context.running == {}
    assert seen.locked == {"tasks": {ONE}, "ids": {FOUR}}


@pytest.mark.parametrize(
    ("owner_id", "running", "reads"), [(BOB, {ALICE: 2, BOB: 8}, 2), (ALICE, {ALICE: 2}, 1)], ids=["bob", "alice"]
)
async def test_the_owner_of_a_task_that_appears_is_counted_too(
    engine: AsyncEngine, owner_id: UUID, running: dict[UUID, int], reads: int
) -> None:
    """One that was counted before is not counted again."""
    await store(engine, task_row(ONE))
    await add_running(engine, alice=2, bob=9)
    resumes = [command(Resume, each, number) for number, each in enumerate((THREE, FOUR, ONE), 50)]
    loaded, seen = await load_while_created(
        context_of(engine, max_running=5), Batch(commands=resumes), task_row(THREE, owner_id), task_row(FOUR)
    )
    assert loaded.update_context.command_context.running == running
    assert seen.locked == {"tasks": {ONE, THREE, FOUR}, "ids": {THREE, FOUR}, "owners": {*running}}
    assert seen.read.count("directory_revision") == reads


async def test_reports_that_were_parked_are_read_with_the_create(engine: AsyncEngine) -> None:
    """In the order in which they came, each with its row; those of other tasks wait on for theirs."""
    reports = [status(THREE, seq=2), status(FOUR), status(THREE, seq=1)]
    async with transaction(engine) as connection:
        rows = [ReportToPark(each.task_id, NOON, canonical_json(each)) for each in reports]
        assert await parked_reports.park(connection, rows, 5) == []
        stored = await parked_reports.lock(connection, [THREE])
    loaded, seen = await load(context_of(engine), Batch(commands=[command(Pause, FOUR, 51), create(THREE)]))
    assert loaded.parked == {THREE: [(stored[0].id, reports[0]), (stored[1].id, reports[2])]}
    assert seen.locked == {"ids": {THREE, FOUR}, "parked": {THREE}}


async def test_replies_are_read_of_commands_that_were_executed_before(engine: AsyncEngine) -> None:
    """If there are any, and no others."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        executed = [
            ExecutedCommand(UUID(int=number), ONE, b"%d" % number, f'{{"n":{number}}}', NOON) for number in (50, 52)
        ]
        await command_log.record(connection, executed)
    loaded, seen = await load(context_of(engine), Batch(commands=[command(Pause, ONE), command(Pause, TWO, 51)]))
    assert loaded.recorded_replies == {UUID(int=50): RecordedCommand(b"50", '{"n":50}')}
    assert seen.read.count("command_log") == 1


async def test_a_send_may_be_one_whose_reply_is_gone(engine: AsyncEngine) -> None:
    """Its input has the id of its command, so that it is not appended twice."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        await inputs.append(connection, [new_input(ONE, SENT), new_input(TWO, QUEUED), new_input(ONE, UNASKED)])
        await inputs.mark_sent(connection, [SENT], NOON)
    sends = [
        command(Send, TWO, QUEUED.int, input="b"), command(Send, ONE, SENT.int, input="a"),
        command(Pause, THREE, UNASKED.int), command(Send, FOUR, input="c"),
    ]  # fmt: skip
    loaded, seen = await load(context_of(engine), Batch(commands=sends))
    assert loaded.update_context.command_context.earlier_inputs == {
        SENT: EarlierInput(ONE, f"text {SENT.int}", BOB, queued=False),
        QUEUED: EarlierInput(TWO, f"text {QUEUED.int}", BOB, queued=True),
    }
    assert seen.read.count("inputs") == 1
