"""What users read of their task actions, and which step an API process executes next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import task_actions
from taskherd.store.engine import transaction
from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_actions import ClaimedStep, NewAction, StoredActions, TaskResult
from tests.store.conftest import execute_script, ignore_indexes, reading_whole_tables
from tests.store.world import ADA, ALICE, BOB, DELETED, DORA, EVERYBODY, OF_ALICE, OF_BOB, OF_DORA, OF_EVE, SEEN, WORLD

LEASE = timedelta(seconds=30)
MOST = StoredActions(unfinished=10, actions=100, tasks=1_000)
TASKS = (OF_BOB, OF_ALICE, DELETED, OF_DORA, UUID(int=99))
FIRST, SECOND, THIRD = (UUID(int=number) for number in (0x91, 0x92, 0x93))


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with tasks of several people."""
    await execute_script(engine, WORLD)
    async with reading_whole_tables(database_url) as pool:
        yield pool


async def add(engine: AsyncEngine, action_id: UUID, user_id: UUID = ALICE, missing: tuple[UUID, ...] = ()) -> None:
    """Add an action for ``TASKS``."""
    new = NewAction(action_id, user_id, f"k-{user_id.hex}", "send", "Go on", "q", b"d", TASKS, frozenset(missing))
    async with transaction(engine) as connection:
        assert await task_actions.add(connection, new, "Not found.", MOST) is None


async def cancel(engine: AsyncEngine, user_id: UUID, action_id: UUID) -> None:
    """Cancel an action on behalf of a user."""
    async with transaction(engine) as connection:
        await task_actions.cancel(connection, user_id, action_id)


async def claim(engine: AsyncEngine) -> ClaimedStep:
    """Claim the step that is due."""
    async with transaction(engine) as connection:
        step = await task_actions.claim(connection, LEASE, UUID(int=1))
    assert step is not None
    return step


async def save(engine: AsyncEngine, step: ClaimedStep, *results: TaskResult, failed: bool = False) -> None:
    """Store the results of a step, whose next one is due at once."""
    async with transaction(engine) as connection:
        await task_actions.save(connection, step, results, failed=failed, delay=timedelta(0))


async def sign_in(engine: AsyncEngine, *user_ids: UUID) -> None:
    """Add the tokens with which users request actions."""
    async with transaction(engine) as connection:
        for user_id in user_ids:
            await connection.execute(
                text("INSERT INTO api_tokens (id, user_id, secret_hash) VALUES (:id, :user_id, '')"),
                {"id": f"k-{user_id.hex}", "user_id": user_id},
            )


async def test_the_tasks_of_an_action_are_those_that_the_user_may_see(reader: ReadPool) -> None:
    """The preview names them in the order of the request."""
    for caller in EVERYBODY:
        expected = [task_id for task_id in TASKS if caller in SEEN.get(task_id, ())]
        assert await task_actions.visible(reader, caller, TASKS) == set(expected)
        rows = await reader.fetch(task_actions.PREVIEW, caller, TASKS)
        assert [row["id"] for row in rows] == expected
    rows = await reader.fetch(task_actions.PREVIEW, ADA, [OF_EVE, OF_BOB, OF_ALICE])
    assert [(row["name"], row["username"], row["status"]) for row in rows] == [
        ("fix-it", "Eve", "active"), ("fix-it", "Bob", "active"), ("Fix-It", "Alice", "active")
    ]  # fmt: skip


async def test_actions_are_listed_to_their_user(engine: AsyncEngine, reader: ReadPool) -> None:
    """The newest first; of several at the same time by id."""
    for action_id, user_id in ((FIRST, ALICE), (THIRD, ALICE), (SECOND, ALICE), (UUID(int=0x94), BOB)):
        await add(engine, action_id, user_id)
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE task_actions SET created_at = '2026-01-01T00:00Z'"))
        await connection.execute(
            text("UPDATE task_actions SET created_at = '2026-01-02T00:00Z' WHERE id = :id"), {"id": FIRST}
        )

    async def listed(day: int, after: UUID, limit: int = 10, user_id: UUID = ALICE) -> list[UUID]:
        at = datetime(2026, 1, day, tzinfo=UTC)
        return [row["id"] for row in await reader.fetch(task_actions.LIST, user_id, at, after, limit)]

    assert await listed(3, FIRST) == [FIRST, THIRD, SECOND]
    assert await listed(3, FIRST, 2) == [FIRST, THIRD]
    assert await listed(2, FIRST) == [THIRD, SECOND]
    assert await listed(1, THIRD) == [SECOND]
    assert await listed(3, FIRST, user_id=BOB) == [UUID(int=0x94)]
    assert await task_actions.find(reader, BOB, FIRST) is None
    assert await task_actions.find(reader, ALICE, UUID(int=0x94)) is None
    found = await task_actions.find(reader, ALICE, FIRST)
    assert found is not None
    assert [found[name] for name in ("id", "action", "query", "total", "digest")] == [FIRST, "send", "q", 5, b"d"]


async def test_results_name_only_tasks_that_the_user_sees_now(engine: AsyncEngine, reader: ReadPool) -> None:
    """By their place in the request; on demand only what was refused, for which no result is not enough."""
    await add(engine, SECOND, BOB)
    await add(engine, FIRST, missing=(TASKS[-1],))
    step = await claim(engine)
    assert step.id == SECOND
    await save(
        engine, await claim(engine), TaskResult(3, 204), TaskResult(1, 409, "Busy.", "It is."), TaskResult(0, 300)
    )

    async def results(after: int = -1, limit: int = 10, *, refused: bool = False) -> Sequence[Row]:
        return await reader.fetch(task_actions.RESULTS, ALICE, FIRST, after, refused, limit)

    rows = await results()
    assert [(row["ordinal"], row["status"]) for row in rows] == [(0, 300), (1, 409), (2, None), (3, 204), (4, 404)]
    assert [row["ordinal"] for row in await results(1)] == [2, 3, 4]
    assert [row["ordinal"] for row in await results(limit=2)] == [0, 1]
    assert [row["ordinal"] for row in await results(refused=True)] == [0, 1, 4]
    assert [(row["name"], row["username"], row["message"], row["detail"]) for row in rows] == [
        (None, None, None, None),
        ("Fix-It", "Alice", "Busy.", "It is."),
        (None, None, None, None),
        ("fix-it", "Dora", None, None),
        (None, None, "Not found.", None),
    ]
    assert [row["decided_at"] is not None for row in rows] == [True, True, False, True, True]
    found = await task_actions.find(reader, ALICE, FIRST)
    assert found is not None
    assert [found[name] for name in ("succeeded", "refused", "finished_at")] == [1, 3, None]


async def test_only_the_user_cancels_an_action(engine: AsyncEngine, reader: ReadPool) -> None:
    """And only this one, once; one that waits for another ends at once. A finished one stays as it is."""
    await add(engine, FIRST)
    await add(engine, SECOND)
    await cancel(engine, BOB, SECOND)
    await cancel(engine, ALICE, UUID(int=1))
    untouched = [await task_actions.find(reader, ALICE, action_id) for action_id in (FIRST, SECOND)]
    assert [row is not None and row["canceled_at"] for row in untouched] == [None, None]
    first = await claim(engine)
    assert (first.id, first.canceled) == (FIRST, False)
    await cancel(engine, ALICE, SECOND)
    second = await claim(engine)
    assert (second.id, second.canceled) == (SECOND, True)
    one, two = await task_actions.find(reader, ALICE, FIRST), await task_actions.find(reader, ALICE, SECOND)
    assert one is not None
    assert two is not None
    assert one["canceled_at"] is None
    await cancel(engine, ALICE, SECOND)
    again = await task_actions.find(reader, ALICE, SECOND)
    assert again is not None
    assert again["canceled_at"] == two["canceled_at"] is not None
    async with transaction(engine) as connection:
        await task_actions.finish(connection, FIRST, "ended")
        await task_actions.finish(connection, SECOND, None)
        await task_actions.finish(connection, FIRST, "again")
    await cancel(engine, ALICE, FIRST)
    ended, canceled = await task_actions.find(reader, ALICE, FIRST), await task_actions.find(reader, ALICE, SECOND)
    assert ended is not None
    assert canceled is not None
    assert (ended["failure"], ended["canceled_at"]) == ("ended", None)
    assert (canceled["failure"], canceled["finished_at"] is not None) == (None, True)


async def test_an_action_of_which_nothing_is_left_to_do_is_finished(engine: AsyncEngine, reader: ReadPool) -> None:
    """At once if no task of it exists, else with its last result."""
    await add(engine, FIRST, missing=TASKS)
    await add(engine, SECOND, missing=TASKS[:4])
    assert await task_actions.is_due(reader)
    step = await claim(engine)
    assert step.id == SECOND
    assert not await task_actions.is_due(reader)
    await save(engine, step)
    assert await task_actions.is_due(reader)
    await save(engine, step, TaskResult(4, 204))
    assert not await task_actions.is_due(reader)
    for action_id, succeeded, refused in ((FIRST, 0, 5), (SECOND, 1, 4)):
        row = await task_actions.find(reader, ALICE, action_id)
        assert row is not None
        assert (row["succeeded"], row["refused"], row["finished_at"] is not None) == (succeeded, refused, True)


@pytest.mark.usefixtures("reader")
async def test_a_step_says_of_its_action_what_the_executor_must_know(engine: AsyncEngine) -> None:
    """Since when it exists, how many steps in a row failed, and whether the token that requested it is valid."""
    await add(engine, FIRST)
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE task_actions SET created_at = now() - interval '1 hour'"))
    await sign_in(engine, BOB)
    signed_in, failures = [], []
    for sign_in_now, failed in ((False, True), (True, True), (False, False), (False, False)):
        if sign_in_now:
            await sign_in(engine, ALICE)
        step = await claim(engine)
        assert (step.id, step.user_id, step.action, step.input) == (FIRST, ALICE, "send", "Go on")
        assert timedelta(hours=1) <= step.age < timedelta(hours=2)
        signed_in.append(step.signed_in)
        failures.append(step.failures)
        await save(engine, step, failed=failed)
    assert failures == [0, 1, 2, 0]
    assert signed_in == [False, True, True, True]
    for change, expected in (
        ("users SET active = id = CAST(:id AS uuid)", True),
        ("users SET active = id <> CAST(:id AS uuid)", False),
        ("users SET active = true WHERE id = CAST(:id AS uuid)", True),
        ("api_tokens SET revoked_at = now() WHERE user_id = CAST(:id AS uuid)", False),
    ):
        async with transaction(engine) as connection:
            await connection.execute(text(f"UPDATE {change}"), {"id": ALICE})
            await connection.execute(text("UPDATE task_actions SET next_at = now()"))
        assert (await claim(engine)).signed_in is expected, change


@pytest.mark.usefixtures("reader")
async def test_a_step_that_is_being_claimed_is_passed_over(engine: AsyncEngine) -> None:
    """Nobody waits for the process that claims it."""
    await add(engine, FIRST)
    async with transaction(engine) as connection:
        first = await task_actions.claim(connection, LEASE, UUID(int=1))
        async with transaction(engine) as other, asyncio.timeout(30):
            assert await task_actions.claim(other, LEASE, UUID(int=2)) is None
        await add(engine, SECOND, BOB)
        async with asyncio.timeout(30):
            second = await claim(engine)
    assert first is not None
    assert (first.id, second.id) == (FIRST, SECOND)


@pytest.mark.usefixtures("reader")
async def test_the_step_that_has_been_due_for_longest_is_next(engine: AsyncEngine) -> None:
    """Of several since the same time that of the least id."""
    for user_id, action_id in ((DORA, THIRD), (ALICE, SECOND), (BOB, FIRST), (ADA, UUID(int=0x94))):
        await add(engine, action_id, user_id)
    order = []
    async with transaction(engine) as connection:
        await ignore_indexes(connection)
        await connection.execute(text("UPDATE task_actions SET next_at = now() - interval '1 hour'"))
        await connection.execute(
            text("UPDATE task_actions SET next_at = now() - interval '2 hours' WHERE id = :id"), {"id": SECOND}
        )
        for _ in range(4):
            step = await task_actions.claim(connection, LEASE, UUID(int=1))
            assert step is not None
            order.append(step.id)
    assert order == [SECOND, FIRST, THIRD, UUID(int=0x94)]


@pytest.mark.usefixtures("reader")
async def test_an_action_is_due_at_once(engine: AsyncEngine) -> None:
    """Even by the clock of the transaction that adds it."""
    new = NewAction(FIRST, ALICE, "token", "pause", None, None, b"d", TASKS, frozenset())
    async with transaction(engine) as connection:
        assert await task_actions.add(connection, new, "Not found.", MOST) is None
        step = await task_actions.claim(connection, LEASE, UUID(int=1))
    assert step is not None
    assert step.id == FIRST


async def test_the_start_of_an_action_is_that_of_its_first_step(engine: AsyncEngine, reader: ReadPool) -> None:
    """No other action has one before."""
    await add(engine, FIRST)
    await add(engine, SECOND)
    step = await claim(engine)
    first, second = await task_actions.find(reader, ALICE, FIRST), await task_actions.find(reader, ALICE, SECOND)
    assert first is not None
    assert second is not None
    assert (first["started_at"] is not None, second["started_at"]) == (True, None)
    await save(engine, step)
    await claim(engine)
    again = await task_actions.find(reader, ALICE, FIRST)
    assert again is not None
    assert again["started_at"] == first["started_at"]


@pytest.mark.usefixtures("reader")
async def test_the_tasks_of_a_step_are_the_next_without_a_result(engine: AsyncEngine) -> None:
    """One that the user no longer sees is not executed, but a deleted one may have been deleted by the action."""
    await add(engine, SECOND, BOB)
    await add(engine, FIRST)
    await claim(engine)
    step = await claim(engine)

    async def pending(limit: int) -> list[tuple[int, UUID, bool]]:
        async with transaction(engine) as connection:
            await ignore_indexes(connection)
            tasks = await task_actions.pending(connection, step, limit)
        return [(task.ordinal, task.task_id, task.visible) for task in tasks]

    async with transaction(engine) as connection:  # the first one is now the last one in the table
        await connection.execute(text("UPDATE task_action_tasks SET detail = NULL WHERE ordinal = 0"))
    visible = (False, True, True, True, False)
    assert step.id == FIRST
    assert await pending(10) == list(zip(range(5), TASKS, visible, strict=True))
    assert await pending(2) == [(0, OF_BOB, False), (1, OF_ALICE, True)]
    await save(engine, step, TaskResult(1, 204), TaskResult(3, 409))
    assert [ordinal for ordinal, *_ in await pending(2)] == [0, 2]


@pytest.mark.usefixtures("reader")
async def test_the_next_step_is_due_after_the_delay(engine: AsyncEngine) -> None:
    """Not before."""
    await add(engine, FIRST)
    step = await claim(engine)
    async with transaction(engine) as connection:
        await task_actions.save(connection, step, (), failed=False, delay=LEASE)
        assert await task_actions.claim(connection, LEASE, UUID(int=2)) is None
        await connection.execute(
            text("UPDATE task_actions SET next_at = next_at - CAST(:by AS interval)"), {"by": LEASE}
        )
        assert await task_actions.claim(connection, LEASE, UUID(int=2)) is not None


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("same_time", [False, True])
async def test_what_each_user_keeps(engine: AsyncEngine, *, same_time: bool) -> None:
    """The newest of one user's own, of several since the same time that of the greatest id; others' do not count."""
    ids = [UUID(int=0x95 - number) for number in range(5)]
    for number, (action_id, user_id) in enumerate(zip(ids, (ALICE, BOB, ALICE, BOB, ALICE), strict=True)):
        await add(engine, action_id, user_id)
        async with transaction(engine) as connection:
            if number < 4:
                await task_actions.finish(connection, action_id, "ended")
            if same_time:
                await connection.execute(text("UPDATE task_actions SET created_at = '2026-01-01T00:00Z'"))
            else:  # their keys need not be remembered any more
                await connection.execute(text("UPDATE task_actions SET created_at = created_at - interval '2 days'"))
    kept = sorted([*ids[:2], ids[4]] if same_time else ids[2:])
    async with transaction(engine) as connection:
        await ignore_indexes(connection)
        assert await task_actions.prune(connection, datetime(2026, 1, 1, tzinfo=UTC), 1, 100) == 10
        left = await connection.execute(text("SELECT id FROM task_actions ORDER BY id"))
        assert left.scalars().all() == kept
        tasks = await connection.execute(text("SELECT DISTINCT action_id FROM task_action_tasks ORDER BY 1"))
        assert tasks.scalars().all() == kept


@pytest.mark.usefixtures("reader")
async def test_an_action_is_kept_until_its_time_is_over(engine: AsyncEngine) -> None:
    """What finished at that time is not over."""
    await add(engine, FIRST)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    async with transaction(engine) as connection:
        await task_actions.finish(connection, FIRST, "ended")
        await connection.execute(text("UPDATE task_actions SET finished_at = :at"), {"at": at})
        assert await task_actions.prune(connection, at, 1, 100) == 0
        assert await task_actions.prune(connection, at + timedelta(microseconds=1), 1, 100) == 5
