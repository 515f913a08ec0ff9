from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from uuid import UUID

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import outbox, tasks
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from tests.harness.tasks import prompt_of
from tests.store.conftest import NOW, event, ignore_indexes, task_row, waits_for_lock

LATER = NOW + timedelta(seconds=30)


async def _store_events(engine: AsyncEngine, task_count: int, versions: int) -> list[tuple[UUID, int]]:
    rows = [task_row() for _ in range(task_count)]
    keys = [(row.task.id, version) for row in rows for version in range(1, versions + 1)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.save(connection, [], [event(task_id, version) for task_id, version in keys])
    return keys


async def _feed(engine: AsyncEngine) -> list[tuple[int, UUID, int]]:
    async with transaction(engine) as connection:
        rows = await connection.execute(text("SELECT position, task_id, version FROM task_feed ORDER BY position"))
        return [(row.position, row.task_id, row.version) for row in rows]


async def test_due_events_contain_everything_to_publish(engine: AsyncEngine) -> None:
    """An event is returned completely until it is marked as published; marking it again has no effect."""
    ((task_id, _),) = await _store_events(engine, 1, 1)
    async with transaction(engine) as connection:
        await connection.execute(  # the time is a part of an event's key
            text(
                "INSERT INTO task_events SELECT task_id, version, occurred_at - interval '1 s', kind, document,"
                " changes, cause, prompt_version FROM task_events"
            )
        )
        assert await outbox.stale(connection, NOW - timedelta(seconds=1), LATER, 10) == []
        (due,) = await outbox.stale(connection, NOW, LATER, 10)
        assert (due.task_id, due.version, due.kind, due.prompt) == (task_id, 1, "created", prompt_of(task_id))
        assert due.changes == ["status", "current_state"]
        assert orjson.loads(due.cause) == {"kind": "report", "type": "app.status"}
        assert await outbox.mark_published(connection, [(task_id, 1)]) == 1
        assert await outbox.mark_published(connection, [(task_id, 1)]) == 0
        assert await outbox.stale(connection, NOW, LATER, 10) == []


async def test_after_the_clock_was_set_back_first_versions_come_first(engine: AsyncEngine) -> None:
    """An event from the future is due, and before the later versions of its task, whose times are earlier.

    However few events are asked for, they are those that can be marked next.
    """
    rows = sorted((task_row() for _ in range(2)), key=lambda row: row.task.id)
    first, second = (row.task.id for row in rows)
    at = {
        (first, 1): NOW + timedelta(hours=1),
        (first, 2): NOW - timedelta(seconds=9),
        (first, 3): NOW,
        (second, 1): NOW + timedelta(seconds=5),
        (second, 2): NOW + timedelta(hours=2),
    }
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.save(connection, [], [event(*key, when) for key, when in at.items()])
        await connection.execute(text("UPDATE outbox SET version = version WHERE version = 1"))  # now last in the table
        await ignore_indexes(connection)
        found: list[list[tuple[UUID, int]]] = []
        while due := await outbox.stale(connection, NOW - timedelta(seconds=3), LATER, 2):
            found.append([(row.task_id, row.version) for row in due])
            assert await outbox.mark_published(connection, found[-1]) == len(due)
    assert found == [[(first, 1), (first, 2)], [(second, 1)], [(second, 2)]]


async def test_what_a_round_reads_of_a_large_outbox_is_bounded(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of so many are returned, and round by round all are, each task's in the order of its versions."""
    stored = await _store_events(engine, 5, 2)
    monkeypatch.setattr(outbox, "MAX_STALE_SCANNED", 3)
    found: list[tuple[UUID, int]] = []
    async with transaction(engine) as connection:
        while due := await outbox.stale(connection, NOW, LATER, 10):
            assert len(due) <= 3
            keys = [(row.task_id, row.version) for row in due]
            assert await outbox.mark_published(connection, keys) == len(due)
            found += keys
    assert sorted(found) == sorted(stored)
    assert [version for _, version in sorted(found, key=lambda key: key[0])] == [1, 2] * 5


async def test_large_prompts_are_read_a_few_at_a_time(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many events as fit are returned, at least one, the oldest first, until none is left."""
    stored = await _store_events(engine, 4, 2)
    found: list[int] = []
    monkeypatch.setattr(outbox, "MAX_STALE_BYTES", 3 * len(prompt_of(stored[0][0])) - 1)
    async with transaction(engine) as connection:
        while due := await outbox.stale(connection, NOW, LATER, 10):
            found.append(len(due))
            assert await outbox.mark_published(connection, [(row.task_id, row.version) for row in due]) == len(due)
    assert found == [3, 3, 2]
    assert len(await _feed(engine)) == len(stored)


async def test_a_later_version_waits_for_an_earlier_one(engine: AsyncEngine) -> None:
    """Positions of a task rise with its versions even if the confirms arrive in another order."""
    ((task_id, _), *_) = await _store_events(engine, 1, 3)
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(task_id, 2), (task_id, 3)]) == 0
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(task_id, 1), (task_id, 3)]) == 1
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(task_id, 3), (task_id, 2)]) == 2
    assert [version for _, _, version in await _feed(engine)] == [1, 2, 3]


async def test_what_is_still_in_the_outbox_is_found(engine: AsyncEngine) -> None:
    """Of the events that are asked for."""
    (task_id, _), _, _, (other, _), *_ = await _store_events(engine, 2, 3)
    async with transaction(engine) as connection:
        await outbox.mark_published(connection, [(task_id, 1), (task_id, 3)])
        asked = [(task_id, 1), (task_id, 3), (other, 2), (other, 7)]
        assert await outbox.unpublished(connection, asked) == {(task_id, 3), (other, 2)}


async def test_a_later_version_waits_for_the_transaction_with_an_earlier_one(engine: AsyncEngine) -> None:
    """Two relays mark versions of one task at the same time: the later version waits and is not left behind."""
    ((task_id, _), *_) = await _store_events(engine, 1, 2)

    async def mark(version: int) -> int:
        async with transaction(engine) as connection:
            return await outbox.mark_published(connection, [(task_id, version)])

    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(task_id, 1)]) == 1
        later = asyncio.create_task(mark(2))
        assert await waits_for_lock(engine, later)
    assert await later == 1
    assert [version for _, _, version in await _feed(engine)] == [1, 2]


async def test_only_the_assignment_of_positions_is_exclusive(engine: AsyncEngine) -> None:
    """While one relay holds the lock of the feed, another already removes its events, and then waits for the lock."""
    (first, _), (second, _) = await _store_events(engine, 2, 1)

    async def mark() -> int:
        async with transaction(engine) as connection:
            return await outbox.mark_published(connection, [(second, 1)])

    locked = text("SELECT task_id FROM outbox FOR UPDATE SKIP LOCKED")
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(first, 1)]) == 1
        other = asyncio.create_task(mark())
        assert await waits_for_lock(engine, other)
        async with transaction(engine) as observer:
            assert (await observer.execute(locked)).all() == []
    assert await other == 1
    assert [task_id for _, task_id, _ in await _feed(engine)] == [first, second]


async def test_positions_rise_with_time(engine: AsyncEngine) -> None:
    """Of changes marked together the earlier one comes first, but a later version never before an earlier one."""
    first, second, third = (task_row() for _ in range(3))
    at = {
        (third.task.id, 1): 0,
        (first.task.id, 1): 1,
        (second.task.id, 1): 2,
        (third.task.id, 2): 5,
        (third.task.id, 3): 3,
        (first.task.id, 2): 4,
    }
    events = [event(*key, NOW + timedelta(seconds=when)) for key, when in at.items()]
    async with transaction(engine) as connection:
        await insert_tasks(connection, [first, second, third])
        await tasks.save(connection, [], events)
        assert await outbox.mark_published(connection, list(at)) == len(at)
    assert [(task_id, version) for _, task_id, version in await _feed(engine)] == [
        (third.task.id, 1),
        (first.task.id, 1),
        (second.task.id, 1),
        (first.task.id, 2),
        (third.task.id, 2),
        (third.task.id, 3),
    ]


async def test_positions_have_no_gaps_and_appear_in_order(engine: AsyncEngine) -> None:
    """A reader that follows by position reads every event once, each task's in order, while many transactions mark."""
    keys = await _store_events(engine, 40, 10)
    shuffled = random.Random(7).sample(keys, len(keys))
    batches = [shuffled[start : start + 20] for start in range(0, len(shuffled), 20)]
    read: list[tuple[int, UUID, int]] = []
    done = asyncio.Event()

    async def follow() -> None:
        after = text("SELECT position, task_id, version FROM task_feed WHERE position > :at ORDER BY position")
        while True:
            last = done.is_set()
            async with transaction(engine) as connection:
                rows = await connection.execute(after, {"at": read[-1][0] if read else 0})
                read.extend((row.position, row.task_id, row.version) for row in rows)
            if last:
                return

    async def mark(batch: list[tuple[UUID, int]]) -> None:
        async with transaction(engine) as connection:
            await outbox.mark_published(connection, batch)

    reader = asyncio.create_task(follow())
    for _ in range(10):
        for start in range(0, len(batches), 5):
            await asyncio.gather(*(mark(batch) for batch in batches[start : start + 5]))
    done.set()
    await reader
    assert read == await _feed(engine)
    assert [position for position, _, _ in read] == list(range(1, len(keys) + 1))
    for task_id, _ in keys:
        assert [version for _, event_task, version in read if event_task == task_id] == list(range(1, 11))


async def test_tasks_with_locked_rows_are_found_without_waiting(engine: AsyncEngine) -> None:
    """If one up to the version that is to be removed is locked, of an earlier version too; the rest is not locked."""
    (first, _), _, (second, _), _, (third, _), _ = await _store_events(engine, 3, 2)
    lock = text("SELECT version FROM outbox WHERE (task_id, version) IN ((:first, 1), (:second, 2)) FOR UPDATE")
    wanted = {first: 2, second: 2, third: 2, UUID(int=1): 7}
    async with transaction(engine) as connection:
        assert await outbox.find_locked(connection, wanted) == frozenset()
    async with transaction(engine) as somebody, transaction(engine) as connection:
        await somebody.execute(lock, {"first": first, "second": second})
        assert await outbox.find_locked(connection, wanted) == {first, second}
        assert await outbox.find_locked(connection, {**wanted, second: 1}) == {first}


async def test_events_that_are_left_out_are_not_stale(engine: AsyncEngine) -> None:
    """Others of their tasks are, and as many as are asked for."""
    keys = await _store_events(engine, 3, 3)
    (task_id, _), (other, _) = keys[0], keys[3]
    left_out = [(task_id, 1), (task_id, 2), (other, 2)]
    async with transaction(engine) as connection:
        few = await outbox.stale(connection, NOW, LATER, 3, left_out)
        assert len(few) == 3
        assert not {(row.task_id, row.version) for row in few}.intersection(left_out)
        due = await outbox.stale(connection, NOW, LATER, 100, left_out)
        assert sorted((row.task_id, row.version) for row in due) == sorted(set(keys) - set(left_out))
        assert await outbox.stale(connection, NOW, LATER, 100, keys) == []
