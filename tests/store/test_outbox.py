from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import outbox, tasks
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, event, task_row


async def _events(engine: AsyncEngine, many: int, versions: int) -> list[tuple[UUID, int]]:
    rows = [task_row() for _ in range(many)]
    keys = [(row.task.id, version) for row in rows for version in range(1, versions + 1)]
    async with transaction(engine) as conn:
        await tasks.insert_tasks(conn, rows)
        await tasks.save(conn, [], [event(task_id, version) for task_id, version in keys])
    return keys


async def _feed(engine: AsyncEngine) -> list[tuple[int, UUID, int]]:
    async with transaction(engine) as conn:
        found = await conn.execute(text("SELECT position, task_id, version FROM task_feed ORDER BY position"))
        return [(row.position, row.task_id, row.version) for row in found]


async def test_due_events_carry_all_that_is_published(engine: AsyncEngine) -> None:
    """An unpublished event comes back with all that it says, until it is marked; a repeat marks nothing."""
    ((task_id, _),) = await _events(engine, 1, 1)
    async with transaction(engine) as conn:
        assert await outbox.due(conn, NOW - timedelta(seconds=1), 10) == []
        (found,) = await outbox.due(conn, NOW, 10)
        assert (found.task_id, found.version, found.kind, found.prompt) == (task_id, 1, "created", "Do it.")
        assert found.changes == ["status", "current_state"]
        assert orjson.loads(found.cause) == {"kind": "report", "type": "app.status"}
        assert await outbox.mark_published(conn, [(task_id, 1)]) == 1
        assert await outbox.mark_published(conn, [(task_id, 1)]) == 0
        assert await outbox.due(conn, NOW, 10) == []


async def test_a_later_version_waits_for_an_earlier_one(engine: AsyncEngine) -> None:
    """Positions of one task rise with its versions even when the confirms come the other way round."""
    ((task_id, _), *_) = await _events(engine, 1, 3)
    async with transaction(engine) as conn:
        assert await outbox.mark_published(conn, [(task_id, 2), (task_id, 3)]) == 0
    async with transaction(engine) as conn:
        assert await outbox.mark_published(conn, [(task_id, 1), (task_id, 3)]) == 1
    async with transaction(engine) as conn:
        assert await outbox.mark_published(conn, [(task_id, 3), (task_id, 2)]) == 2
    assert [version for _, _, version in await _feed(engine)] == [1, 2, 3]


async def test_positions_rise_with_time(engine: AsyncEngine) -> None:
    """Of tasks told together the earlier change comes first, but never a later version before an earlier one."""
    first, second, third = (task_row() for _ in range(3))
    at = {
        (third.task.id, 1): 0,
        (first.task.id, 1): 1,
        (second.task.id, 1): 2,
        (third.task.id, 2): 5,
        (third.task.id, 3): 3,
        (first.task.id, 2): 4,
    }
    told = [event(*key, NOW + timedelta(seconds=when)) for key, when in at.items()]
    async with transaction(engine) as conn:
        await tasks.insert_tasks(conn, [first, second, third])
        await tasks.save(conn, [], told)
        assert await outbox.mark_published(conn, list(at)) == len(at)
    assert [(task_id, version) for _, task_id, version in await _feed(engine)] == [
        (third.task.id, 1),
        (first.task.id, 1),
        (second.task.id, 1),
        (first.task.id, 2),
        (third.task.id, 2),
        (third.task.id, 3),
    ]


async def test_positions_have_no_gap_and_none_appears_behind(engine: AsyncEngine) -> None:
    """However many mark at once, a reader that remembers its position sees every event once, each task's in order."""
    keys = await _events(engine, 40, 10)
    shuffled = random.Random(7).sample(keys, len(keys))
    batches = [shuffled[start : start + 20] for start in range(0, len(shuffled), 20)]
    seen: list[tuple[int, UUID, int]] = []
    done = asyncio.Event()

    async def read_on() -> None:
        after = text("SELECT position, task_id, version FROM task_feed WHERE position > :at ORDER BY position")
        while True:
            last = done.is_set()
            async with transaction(engine) as conn:
                found = await conn.execute(after, {"at": seen[-1][0] if seen else 0})
                seen.extend((row.position, row.task_id, row.version) for row in found)
            if last:
                return

    async def mark(batch: list[tuple[UUID, int]]) -> None:
        async with transaction(engine) as conn:
            await outbox.mark_published(conn, batch)

    reader = asyncio.create_task(read_on())
    for _ in range(10):
        for start in range(0, len(batches), 5):
            await asyncio.gather(*(mark(batch) for batch in batches[start : start + 5]))
    done.set()
    await reader
    assert seen == await _feed(engine)
    assert [position for position, _, _ in seen] == list(range(1, len(keys) + 1))
    for task_id, _ in keys:
        assert [version for _, which, version in seen if which == task_id] == list(range(1, 11))
