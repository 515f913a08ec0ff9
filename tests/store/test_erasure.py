"""Which deleted tasks are due to be erased, and that finding them is an index lookup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import command_log, erasure, outbox, tasks
from taskherd.store.command_log import ExecutedCommand
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, event, ignore_indexes, next_version, task_row

HOUR = timedelta(hours=1)


async def test_which_tasks_are_due(engine: AsyncEngine) -> None:
    """Those deleted long enough ago, the earliest first, once their events are published, and not again."""
    live, early, late, unpublished, erased = rows = [task_row() for _ in range(5)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        deleted = [
            next_version(early, 2, deleted_at=NOW - 3 * HOUR),
            next_version(late, 2, deleted_at=NOW - HOUR),
            next_version(unpublished, 2, deleted_at=NOW - 4 * HOUR),
            next_version(erased, 2, deleted_at=NOW - 5 * HOUR),
        ]
        await tasks.save(connection, deleted, [event(unpublished.task.id, 2)])
        await connection.execute(text("UPDATE tasks SET erased_at = now() WHERE id = :id"), {"id": erased.task.id})

    async def due(age: timedelta, limit: int = 10) -> list[UUID]:
        async with transaction(engine) as connection:
            return list((await erasure.due(connection, NOW - age, limit)).ids)

    assert live.task.id not in await due(timedelta(0))
    assert await due(2 * HOUR) == [early.task.id]
    assert set(await due(HOUR)) == {early.task.id, late.task.id}
    async with transaction(engine) as connection:
        assert await outbox.mark_published(connection, [(unpublished.task.id, 2)]) == 1
    assert set(await due(2 * HOUR)) == {early.task.id, unpublished.task.id}
    assert await due(2 * HOUR, 1) == [unpublished.task.id]


async def test_tasks_that_stay_are_due_after_all_others(engine: AsyncEngine) -> None:
    """Of those deleted at the same time in the order of their ids; those that are not published hold up no other."""
    rows = sorted((task_row() for _ in range(5)), key=lambda row: row.task.id)
    ids = [row.task.id for row in rows]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        deleted = [next_version(row, 2, deleted_at=NOW - 2 * HOUR) for row in rows]
        deleted[0] = next_version(rows[0], 2, deleted_at=NOW - HOUR)
        await tasks.save(connection, deleted, [event(ids[1], 2), event(ids[2], 2)])

    async def pages(limit: int) -> list[list[UUID]]:
        found, after = [], erasure.START
        while True:
            async with transaction(engine) as connection:
                page = await erasure.due(connection, NOW, limit, after)
            found.append(list(page.ids))
            after = page.until
            if after == erasure.START:
                return found

    assert await pages(2) == [[], [ids[3], ids[4]], [ids[0]]]
    assert await pages(5) == [[ids[3], ids[4], ids[0]], []]
    assert await pages(9) == [[ids[3], ids[4], ids[0]]]


async def test_no_table_is_scanned_for_it(engine: AsyncEngine) -> None:
    """Due tasks, and the commands of a task, are found by an index."""
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plans = []
        for statement, values in (
            (erasure.DUE, {"before": NOW, "limit": 1, **erasure.START._asdict()}),
            (erasure.REPLACE_REPLIES, {"ids": [UUID(int=1)], "documents": ["{}"]}),
        ):
            rows = await connection.execute(text(f"EXPLAIN {statement.text}"), values)
            plans.append("\n".join(rows.scalars()))
    assert "tasks_unerased_idx" in plans[0]
    assert "command_log_task_id_idx" in plans[1]
    assert "Seq Scan" not in "".join(plans)


TABLES = ("task_logs", "task_events", "inputs", "agent_requests", "command_log")


def contents(task_id: UUID) -> str:
    """Return a script that stores three rows of a task in each table, one in those that have one of each task."""
    return f"""
INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at)
    SELECT '{task_id}', n, 1, n, 1, 'output', 'log of {task_id}', now(), '{NOW}' FROM generate_series(1, 3) AS n;
INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
    SELECT '{task_id}', n, '{NOW}', CASE n WHEN 3 THEN 'deleted' ELSE 'updated' END,
           json_build_object('status', 's' || n, 'name', 'secret'), '{{}}', '{{}}', 1 FROM generate_series(1, 3) AS n;
INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at)
    SELECT gen_random_uuid(), '{task_id}', n, 'input of {task_id}', 'queued', now() FROM generate_series(1, 3) AS n;
INSERT INTO agent_requests (task_id, request_id, organization_id, owner_id, build_number, shown, report, since,
                            received_at)
    SELECT '{task_id}', gen_random_uuid(), '{task_id}', '{task_id}', 1, 'open', '{{}}', now(), now()
    FROM generate_series(1, 3);
INSERT INTO task_prompts (task_id, version, prompt)
    SELECT '{task_id}', n + 1, 'prompt of {task_id}' FROM generate_series(1, 3) AS n;
INSERT INTO parked (task_id, parked_at, report) SELECT '{task_id}', now(), '{{}}' FROM generate_series(1, 3);
INSERT INTO task_builds (build_id, task_id, number, transition, job_status, created_at, updated_at)
    SELECT gen_random_uuid(), '{task_id}', n, 'start', 'failed', now(), now() FROM generate_series(1, 3) AS n;
INSERT INTO task_log_heads (task_id, next_log_id) VALUES ('{task_id}', 4);
INSERT INTO build_claims (task_id, build_number, runner, claimed_at) VALUES ('{task_id}', 1, 'r1', now());
"""


REPLIES = ('{"task":{"name":"secret"},"ok":true}', '{"error":{"detail":"secret","status":400}}', '{"a":1}')


def commands(task_id: UUID, number: int) -> list[ExecutedCommand]:
    """Return three commands of a task, of three hours, of which the last is not kept until it is erased."""
    return [
        ExecutedCommand(
            UUID(int=10 * number + each), task_id, b"", reply, NOW + each * HOUR, kept_until_erased=each < 3
        )
        for each, reply in enumerate(REPLIES, start=1)
    ]


async def store(connection: AsyncConnection, rows: Sequence[tasks.StoredTask]) -> None:
    """Store tasks with contents."""
    await insert_tasks(connection, rows)
    for number, row in enumerate(rows):
        for statement in contents(row.task.id).split(";\n")[:-1]:
            await connection.exec_driver_sql(statement)
        await command_log.record(connection, commands(row.task.id, number))


async def left(connection: AsyncConnection, task_id: UUID, tables: Iterable[str] = TABLES) -> list[int]:
    """Return how many rows of a task are in each table."""
    return [
        (
            await connection.execute(text(f"SELECT count(*) FROM {table} WHERE task_id = :task"), {"task": task_id})
        ).scalar_one()
        for table in tables
    ]


async def test_contents_are_deleted_in_steps(engine: AsyncEngine) -> None:
    """Up to the limit of each table, until less than that is left; the deletion stays, and so do other tasks' rows."""
    one, two, other = rows = [task_row() for _ in range(3)]
    forgotten = NOW + 2 * HOUR
    async with transaction(engine) as connection:
        await store(connection, rows)
        ids = [one.task.id, two.task.id]
        assert await erasure.delete_contents(connection, ids, 4, forgotten) == 4
        counted = [sum(pair) for pair in zip(*[await left(connection, each) for each in ids], strict=True)]
        assert counted == [2, 2, 2, 2, 4]
        assert await erasure.delete_contents(connection, ids, 4, forgotten) == 2
        assert await erasure.delete_contents(connection, ids, 4, forgotten) == 0
        for each in ids:
            assert await left(connection, each) == [0, 1, 0, 0, 2]
            kinds = await connection.execute(text("SELECT kind FROM task_events WHERE task_id = :id"), {"id": each})
            assert list(kinds.scalars()) == ["deleted"]
        assert await left(connection, other.task.id) == [3] * 5


async def test_what_finishes_an_erasure_leaves_other_tasks_alone(engine: AsyncEngine) -> None:
    """Of the tasks empty texts stay, the document that they show, and its status at the time of each event."""
    erased, other = rows = [task_row(), task_row()]
    at = NOW + timedelta(days=1)
    documents = {erased.task.id: '{"erased":true}'}
    async with transaction(engine) as connection:
        await store(connection, rows)
        tombstone = next_version(erased, 2, prompt_version=3)._replace(document='{"status":"deleted"}')
        await tasks.save(connection, [tombstone, next_version(other, 2, prompt_version=2)], [])
        await erasure.finish(connection, documents, at)

        async def values(query: str, row: tasks.StoredTask) -> list[tuple[Any, ...]]:
            return [tuple(found) for found in await connection.execute(text(query), {"id": row.task.id})]

        names = "SELECT name, display_name, erased_at FROM tasks WHERE id = :id"
        prompts = "SELECT version, prompt FROM task_prompts WHERE task_id = :id ORDER BY version"
        events = "SELECT document FROM task_events WHERE task_id = :id ORDER BY version"
        commands = "SELECT reply, kept_until_erased FROM command_log WHERE task_id = :id ORDER BY command_id"
        assert await values(names, erased) == [(str(erased.task.id), "", at)]
        assert await values(names, other) == [(other.task.name, other.task.display_name, None)]
        assert await values(prompts, erased) == [(3, "")]
        assert [prompt for _, prompt in await values(prompts, other)] == [
            other.task.prompt,
            *[f"prompt of {other.task.id}"] * 3,
        ]
        assert await values(events, erased) == [({"status": f"s{each}"},) for each in (1, 2, 3)]
        assert await values(events, other) == [({"status": f"s{each}", "name": "secret"},) for each in (1, 2, 3)]
        assert await values(commands, erased) == [
            ({"task": {"erased": True}, "ok": True}, False), ({"error": {"status": 400}}, False), ({"a": 1}, False)
        ]  # fmt: skip
        assert await values(commands, other) == [
            ({"task": {"name": "secret"}, "ok": True}, True),
            ({"error": {"detail": "secret", "status": 400}}, True),
            ({"a": 1}, False),
        ]
        emptied = ("task_builds", "task_log_heads", "build_claims", "parked")
        assert await left(connection, erased.task.id, emptied) == [0, 0, 0, 0]
        assert await left(connection, other.task.id, emptied) == [3, 1, 1, 3]


async def test_the_tasks_that_were_deleted_first_are_erased_first(engine: AsyncEngine) -> None:
    """Whatever the order in which they are stored; one that was deleted just at the time is due."""
    rows = [task_row() for _ in range(4)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        deleted = [
            next_version(row, 2, deleted_at=NOW - age * HOUR) for row, age in zip(rows, (2, 4, 1, 3), strict=True)
        ]
        await tasks.save(connection, deleted, [])
        await ignore_indexes(connection)
        assert set((await erasure.due(connection, NOW - HOUR, 2)).ids) == {rows[1].task.id, rows[3].task.id}
        assert set((await erasure.due(connection, NOW - HOUR, 9)).ids) == {row.task.id for row in rows}
        later = NOW - HOUR - timedelta(microseconds=1)
        assert set((await erasure.due(connection, later, 9)).ids) == {rows[number].task.id for number in (0, 1, 3)}
