from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain import builds
from taskherd.domain.value import replace
from taskherd.store import leases, tasks, work_requests
from taskherd.store.engine import PromptSizeError, transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, empty, event, ignore_indexes, next_version, task_row, waits_for_lock
from tests.store.test_leases import lease
from tests.store.test_work_requests import work_request

ROUNDS = 4
"""Updates of each row whose heap-only share is measured: while autovacuum reads the database, no space is reused."""

SMALL_PROMPT = 16 * 1024
"""Bytes of the largest prompt that is read with its task."""

READING = text("""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
""")


async def test_an_inserted_task_is_returned_unchanged(engine: AsyncEngine) -> None:
    """Locking returns tasks as they were inserted, in id order, and skips unknown ids."""
    rows = sorted((task_row() for _ in range(5)), key=lambda row: row.task.id)
    async with transaction(engine) as connection:
        assert (await insert_tasks(connection, rows)).tasks == {row.task.id for row in rows}
        assert await tasks.lock(connection, [rows[3].task.id, uuid4(), rows[1].task.id]) == [rows[1], rows[3]]


async def test_a_saved_task_is_returned_unchanged(engine: AsyncEngine) -> None:
    """Saving updates the columns that may change, and keeps those that are set once."""
    row = task_row()
    changed = next_version(
        row,
        2,
        updated_at=NOW + timedelta(seconds=1),
        deleted_at=NOW,
        state=builds.initial_state(row.task.id, NOW + timedelta(1)),
    )
    async with transaction(engine) as connection:
        await insert_tasks(connection, [row])
        await tasks.save(connection, [changed._replace(task=replace(changed.task, name="other", owner_id=uuid4()))], [])
        assert await tasks.lock(connection, [row.task.id]) == [changed._replace(due_changed=True)]


async def test_names_are_unique_among_an_owners_live_tasks(engine: AsyncEngine) -> None:
    """A task whose id or name (in any case) exists is skipped, no other; a deleted task releases its name."""
    owner = uuid4()
    first = task_row(owner_id=owner, name="Fix-It")
    async with transaction(engine) as connection:
        assert (await insert_tasks(connection, [first])).tasks == {first.task.id}
        again = task_row(owner_id=owner, name="fix-it")
        new = task_row(owner_id=owner)
        same_name = new._replace(task=replace(new.task, id=uuid4()))
        inserted = (await insert_tasks(connection, [first, again, new, same_name])).tasks
        assert inserted in ({new.task.id}, {same_name.task.id})
        await tasks.save(connection, [next_version(first, 2, deleted_at=NOW)], [])
        assert (await insert_tasks(connection, [again])).tasks == {again.task.id}


async def test_save_is_one_statement_and_heap_only(engine: AsyncEngine) -> None:
    """Saving a batch with its history is one statement, and nearly all updates are heap-only."""
    rows = [task_row() for _ in range(400)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
    statements: list[str] = []
    shares = []
    updated_before = hot_before = 0
    for version in range(2, 2 + ROUNDS):
        await until_nobody_reads(engine)
        for start in range(10):
            batch = rows[start::10]
            async with transaction(engine) as connection:
                events = [event(row.task.id, version) for row in batch]
                driver: Any = (await connection.get_raw_connection()).driver_connection
                with driver.query_logger(lambda executed: statements.append(executed.query)):
                    assert await tasks.save(connection, [next_version(row, version) for row in batch], events) == 40
        assert len(statements) == 10
        updated, hot = await _updates(engine)
        assert updated - updated_before == 400
        shares.append((hot - hot_before) / 400)
        updated_before, hot_before = updated, hot
        statements.clear()
    async with transaction(engine) as connection:
        counted = text("SELECT count(*), count(DISTINCT task_id), min(changes) FROM task_events")
        assert tuple((await connection.execute(counted)).one()) == (400 * ROUNDS, 400, ["status", "current_state"])
        assert (await connection.execute(text("SELECT count(*) FROM outbox"))).scalar_one() == 400 * ROUNDS
    assert max(shares) >= 0.9, shares


async def until_nobody_reads(engine: AsyncEngine) -> None:
    """Wait until no other session, such as autovacuum's, keeps the space of old rows from being reused."""
    async with asyncio.timeout(60):
        reading = 1
        while reading:
            async with transaction(engine) as connection:
                reading = (await connection.execute(READING)).scalar_one()
            await asyncio.sleep(0.02)


async def _updates(engine: AsyncEngine) -> tuple[int, int]:
    """Return the number of updates of tasks so far, and how many of them were heap-only."""
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))
    async with transaction(engine) as connection:
        counters = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'")
        updated, hot = (await connection.execute(counters)).one()
    return updated, hot


async def test_a_task_is_due_from_its_due_time(engine: AsyncEngine) -> None:
    """A task is due once its ``due_at`` is reached, and no longer once it has none."""
    early, late, never = task_row(), task_row(), task_row()
    async with transaction(engine) as connection:
        await insert_tasks(connection, [early, late, never._replace(due_at=None)])
        later = NOW + timedelta(minutes=1)
        await tasks.save(connection, [next_version(late, 1, due_at=later, due_changed=True)], [])
        assert await tasks.due(connection, NOW, 10) == [early.task.id]
        assert await tasks.due(connection, later, 10) == [early.task.id, late.task.id]
        await tasks.save(connection, [next_version(early, 1, due_at=None, due_changed=True)], [])
        assert await tasks.due(connection, later, 10) == [late.task.id]


async def test_the_most_overdue_tasks_are_checked_first(engine: AsyncEngine) -> None:
    """Up to the limit; a check that is postponed is never earlier than it was."""
    rows = [task_row()._replace(due_at=NOW - timedelta(seconds=seconds)) for seconds in (2, 3, 1)]
    second, first, third = (row.task.id for row in rows)
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await ignore_indexes(connection)
        assert await tasks.due(connection, NOW, 10) == [first, second, third]
        assert await tasks.due(connection, NOW, 2) == [first, second]
        await tasks.postpone(connection, [first], NOW - timedelta(seconds=1.5))
        await tasks.postpone(connection, [third], NOW - timedelta(seconds=4))
        assert await tasks.due(connection, NOW, 10) == [second, first, third]


async def test_a_transaction_that_waited_for_a_lock_reads_the_new_prompt(engine: AsyncEngine) -> None:
    """A transaction that waits for a task's lock while its prompt is replaced reads the new prompt."""
    row = task_row()
    async with transaction(engine) as connection:
        await insert_tasks(connection, [row])

    async def waiting() -> list[tasks.StoredTask]:
        async with transaction(engine) as connection:
            return await tasks.lock(connection, [row.task.id])

    async with transaction(engine) as connection:
        await tasks.lock(connection, [row.task.id])
        waiter = asyncio.create_task(waiting())
        assert await waits_for_lock(engine, waiter)
        changed = next_version(row, 2, prompt="Do it well.", prompt_version=2)
        await tasks.add_prompts(connection, [changed.task])
        await tasks.save(connection, [changed], [])
    (locked,) = await waiter
    assert (locked.task.version, locked.task.prompt) == (2, "Do it well.")


async def test_the_prompts_that_are_in_memory_together_are_bounded(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond that, fewer tasks are to be locked. Small prompts do not count, and are read with their tasks."""
    monkeypatch.setattr(tasks, "MAX_PROMPT_BYTES", 2 * SMALL_PROMPT + 2)
    small, *large = (
        row._replace(task=replace(row.task, prompt=f"{number}" * size))
        for number, size in enumerate([SMALL_PROMPT] + [SMALL_PROMPT + 1] * 3)
        for row in [task_row()]
    )
    async with transaction(engine) as connection:
        await insert_tasks(connection, [small, *large])

    async def lock(*rows: tasks.StoredTask) -> list[tasks.StoredTask]:
        async with transaction(engine) as connection:
            return await tasks.lock(connection, [row.task.id for row in rows])

    chosen = [small, *large[:2]]
    assert await lock(*chosen) == sorted(chosen, key=lambda row: row.task.id)
    with pytest.raises(PromptSizeError):
        await lock(*large)
    monkeypatch.setattr(tasks, "MAX_PROMPT_BYTES", 2 * SMALL_PROMPT + 1)
    with pytest.raises(PromptSizeError):
        await lock(*chosen)
    assert await lock(small, large[2]) == sorted([small, large[2]], key=lambda row: row.task.id)


async def test_an_event_has_its_own_document_and_that_of_its_task_is_sent_once(engine: AsyncEngine) -> None:
    """Each event is in the history and in the outbox, as it is, also one of a task that is not saved with it."""
    rows = [task_row() for _ in range(3)]
    saved = [next_version(row, 3) for row in rows[:2]]
    earlier = [event(row.task.id, 2, NOW - timedelta(seconds=1)) for row in rows[:2]]
    events = [
        *earlier,
        *(event(row.task.id, 3)._replace(document=row.document) for row in saved),
        event(rows[2].task.id, 7)._replace(kind="deleted", changes=(), cause='{"kind":"timer"}'),
    ]
    parameters = tasks.save_parameters(saved, events)
    assert parameters["e_document"] == [*(each.document for each in earlier), None, None, events[4].document]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        assert await tasks.save(connection, saved, events) == 2
        found = await connection.execute(
            text(
                "SELECT task_id, version, occurred_at, kind, CAST(document AS text), changes, CAST(cause AS text),"
                " prompt_version FROM task_events"
            )
        )
        assert sorted(tuple(row) for row in found) == sorted(
            (
                each.task.id, each.task.version, each.task.updated_at, each.kind, each.document, list(each.changes),
                each.cause, 1,
            )
            for each in events
        )  # fmt: skip
        found = await connection.execute(text("SELECT task_id, version, occurred_at FROM outbox"))
        assert {tuple(row) for row in found} == {
            (each.task.id, each.task.version, each.task.updated_at) for each in events
        }
        assert (await tasks.lock(connection, [rows[2].task.id]))[0].task.version == 1


async def test_a_deadline_is_written_only_if_it_changes(engine: AsyncEngine) -> None:
    """So that saving a task costs no write to the index of deadlines, and nobody else's deadline is touched."""
    kept, same, moved, ended, other = rows = [task_row() for _ in range(5)]
    later = NOW + timedelta(seconds=5)
    query = text("SELECT task_id, due_at, ctid FROM task_deadlines")
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        before = {row.task_id: (row.due_at, row.ctid) for row in await connection.execute(query)}
        await tasks.save(
            connection,
            [
                next_version(kept, 2, due_at=later, due_changed=False),
                next_version(same, 2, due_changed=True),
                next_version(moved, 2, due_at=later, due_changed=True),
                next_version(ended, 2, due_at=None, due_changed=True),
                next_version(other, 2, due_at=None, due_changed=False),
            ],
            [],
        )
        after = {row.task_id: (row.due_at, row.ctid) for row in await connection.execute(query)}
    assert after.keys() == {row.task.id for row in (kept, same, moved, other)}
    assert [after[row.task.id] == before[row.task.id] for row in (kept, same, other)] == [True] * 3
    assert after[moved.task.id][0] == later


async def test_deadlines_are_written_in_the_order_of_ids(engine: AsyncEngine) -> None:
    """Whatever the order in which tasks are saved, so that two transactions do not deadlock."""
    rows = sorted((task_row()._replace(due_at=None) for _ in range(4)), key=lambda row: row.task.id)
    async with transaction(engine) as connection:
        await empty(connection, "task_deadlines")
        await insert_tasks(connection, rows)
        saved = [next_version(rows[place], 2, due_changed=True) for place in (2, 0, 3, 1)]
        await tasks.save(connection, saved, [])
        found = await connection.execute(text("SELECT task_id FROM task_deadlines ORDER BY ctid"))
        assert list(found.scalars()) == [row.task.id for row in rows]


async def test_a_task_is_read_with_its_current_prompt(engine: AsyncEngine) -> None:
    """However large that and the earlier and later ones are; a state is read without a lock."""
    rows = sorted((task_row() for _ in range(3)), key=lambda row: row.task.id)
    sizes = [(1, 2 * SMALL_PROMPT), (2 * SMALL_PROMPT, 1), (2 * SMALL_PROMPT + 1,) * 2]
    changed = [
        [
            next_version(row, version, prompt_version=version, prompt=f"{version}" * size)
            for version, size in enumerate(of_row, 2)
        ]
        for row, of_row in zip(rows, sizes, strict=True)
    ]
    at = NOW + timedelta(seconds=1)
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.add_prompts(connection, [each.task for of_row in changed for each in of_row])
        await tasks.save(connection, [changed[0][1], changed[1][1], changed[2][0]], [])
        current = [each._replace(due_changed=True) for each in (changed[0][1], changed[1][1], changed[2][0])]
        assert await tasks.lock(connection, [row.task.id for row in rows]) == current
        await tasks.save(connection, [next_version(rows[0], 4, deleted_at=at)], [])
        ids = [row.task.id for row in rows]
        assert await tasks.states(connection, {ids[0], ids[2], uuid4()}) == {
            ids[0]: (rows[0].task.state, at), ids[2]: (rows[2].task.state, None)
        }  # fmt: skip


async def test_locked_tasks_are_the_given_ones_in_the_order_of_ids(engine: AsyncEngine) -> None:
    """A transaction that waits for a task holds none with a greater id, and others can lock the rest."""
    low, high, other = sorted((task_row() for _ in range(3)), key=lambda row: row.task.id)
    unlocked = text("SELECT id FROM tasks ORDER BY id FOR UPDATE SKIP LOCKED")
    async with transaction(engine) as connection:
        await insert_tasks(connection, [high, other, low])

    async def lock() -> list[UUID]:
        async with transaction(engine) as connection:
            await ignore_indexes(connection)
            return [row.task.id for row in await tasks.lock(connection, [high.task.id, low.task.id])]

    async with transaction(engine) as connection:
        await tasks.lock(connection, [low.task.id])
        waiting = asyncio.create_task(lock())
        assert await waits_for_lock(engine, waiting)
        async with transaction(engine) as observer:
            assert list((await observer.execute(unlocked)).scalars()) == [high.task.id, other.task.id]
    assert await waiting == [low.task.id, high.task.id]


async def test_a_check_that_is_postponed_waits_for_no_lock(engine: AsyncEngine) -> None:
    """Of two tasks, that of which somebody has locked the time of the next check stays due, the other one is later."""
    rows = sorted((task_row()._replace(due_at=NOW) for _ in range(2)), key=lambda row: row.task.id)
    ids = [row.task.id for row in rows]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
    async with transaction(engine) as somebody:
        await somebody.execute(text("SELECT FROM task_deadlines WHERE task_id = :id FOR UPDATE"), {"id": ids[0]})
        async with transaction(engine) as connection:
            await tasks.postpone(connection, ids, NOW + timedelta(seconds=9))
            assert await tasks.due(connection, NOW, 9) == ids[:1]


async def test_a_postponed_check_is_that_of_one_task(engine: AsyncEngine) -> None:
    """Others stay due when they were."""
    rows = [task_row() for _ in range(2)]
    until = NOW + timedelta(seconds=9)
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.postpone(connection, [rows[0].task.id], until)
        assert await tasks.due(connection, NOW, 9) == [rows[1].task.id]
        assert await tasks.due(connection, until, 9) == [rows[1].task.id, rows[0].task.id]


@pytest.mark.parametrize(
    "row",
    [
        "tasks WHERE id = :task_id",
        "leases WHERE task_id = :task_id",
        "task_deadlines WHERE task_id = :task_id",
        "work_requests WHERE task_id = :task_id AND build_number = 2",
    ],
)
async def test_a_task_is_locked_if_one_of_its_rows_is(engine: AsyncEngine, row: str) -> None:
    """That of a lease, of its next timer check, or one of several work requests; a task that has none is not."""
    first, second, bare = (task_row()._replace(due_at=due_at) for due_at in (NOW, NOW, None))
    ids = [each.task.id for each in (first, second, bare)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, [first, second, bare])
        await leases.upsert(connection, [replace(lease(), task_id=each) for each in ids[:2]])
        await work_requests.add(connection, [work_request(each, build) for each in ids[:2] for build in (1, 2, 3)])
    async with transaction(engine) as somebody:
        await somebody.execute(text(f"SELECT FROM {row} FOR UPDATE"), {"task_id": ids[0]})
        async with transaction(engine) as connection:
            assert await tasks.find_locked(connection, [*ids, uuid4()]) == {ids[0]}
            assert await tasks.find_locked(connection, ids[1:]) == set()
    async with transaction(engine) as connection:
        assert await tasks.find_locked(connection, ids) == set()
