"""Task actions: steps are claimed by one process at a time, in turns, and old actions are deleted."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import database_clock, task_actions
from taskherd.store.engine import transaction
from taskherd.store.task_actions import (
    ClaimedStep,
    NewAction,
    NotAdded,
    PendingTask,
    StoredActions,
    TaskResult,
)

LEASE = timedelta(seconds=30)
MOST = StoredActions(unfinished=10, actions=100, tasks=1_000)
NO_DELAY = timedelta(0)


async def add_user(engine: AsyncEngine, name: str) -> UUID:
    """Add a user."""
    user_id = uuid4()
    async with transaction(engine) as connection:
        await connection.execute(
            text("INSERT INTO users (id, username, name, email, avatar_url) VALUES (:id, :name, '', '', '')"),
            {"id": user_id, "name": name},
        )
    return user_id


async def add(engine: AsyncEngine, user_id: UUID, tasks: int, most: StoredActions = MOST) -> UUID | None:
    """Add an action for tasks that do not exist, and return its id; None if the user has too many."""
    new = action_of(user_id, tasks)
    while (reason := await try_to_add(engine, new, most)) is NotAdded.BUSY:
        continue
    return new.id if reason is None else None


def action_of(user_id: UUID, tasks: int) -> NewAction:
    """Return an action for tasks that do not exist."""
    ids = [uuid4() for _ in range(tasks)]
    return NewAction(uuid4(), user_id, "token", "send", "Hello", None, b"digest", ids, frozenset())


async def try_to_add(engine: AsyncEngine, new: NewAction, most: StoredActions = MOST) -> NotAdded | None:
    """Add an action in a transaction of its own, or return why it was not added."""
    async with transaction(engine) as connection:
        return await task_actions.add(connection, new, "Not found.", most)


async def claim(engine: AsyncEngine) -> ClaimedStep | None:
    """Claim a step in a transaction of its own."""
    async with transaction(engine) as connection:
        return await task_actions.claim(connection, LEASE, uuid4())


async def save(engine: AsyncEngine, step: ClaimedStep, statuses: list[int], delay: timedelta = NO_DELAY) -> None:
    """Store results for the next tasks of a step."""
    async with transaction(engine) as connection:
        tasks = await task_actions.pending(connection, step, len(statuses))
        results = [TaskResult(task.ordinal, status) for task, status in zip(tasks, statuses, strict=True)]
        await task_actions.save(connection, step, results, failed=False, delay=delay)


async def column(engine: AsyncEngine, name: str, action_id: UUID) -> object:
    """Return one column of an action."""
    async with transaction(engine) as connection:
        return (
            await connection.execute(text(f"SELECT {name} FROM task_actions WHERE id = :id"), {"id": action_id})
        ).scalar_one()


async def count(engine: AsyncEngine, table: str) -> object:
    """Return the number of rows of a table."""
    async with transaction(engine) as connection:
        return (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()


async def test_a_step_is_claimed_once(engine: AsyncEngine) -> None:
    """Of several processes one gets a step; it is due again after it was saved, or when its lease is over."""
    action_id = await add(engine, await add_user(engine, "one"), 3)
    claimed = [step for step in await asyncio.gather(*(claim(engine) for _ in range(4))) if step is not None]
    assert [step.id for step in claimed] == [action_id]
    assert await claim(engine) is None
    await save(engine, claimed[0], [204])
    second = await claim(engine)
    assert second is not None
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE task_actions SET next_at = now()"))  # the lease is over
    third = await claim(engine)
    assert third is not None
    await save(engine, second, [204], delay=-LEASE)  # stored, but the step of the other process stays claimed
    assert await claim(engine) is None
    await save(engine, third, [404])
    assert action_id is not None
    assert await column(engine, "(succeeded, refused, finished_at IS NULL, input)::text", action_id) == "(2,1,f,)"


async def test_an_action_is_stored_once(engine: AsyncEngine) -> None:
    """Of two requests with the same key the second one changes nothing, whatever its tasks are."""
    user_id = await add_user(engine, "one")
    one, *others = tasks = [uuid4() for _ in range(3)]
    new = NewAction(uuid4(), user_id, "token", "send", "Hello", None, b"digest", tasks[:1], frozenset())
    async with transaction(engine) as connection:
        for each in (new, replace(new, input="Bye", digest=b"other", task_ids=others, missing=frozenset(others))):
            assert await task_actions.add(connection, each, "Not found.", MOST) is None
        stored = await connection.execute(text("SELECT task_id FROM task_action_tasks"))
        assert stored.scalars().all() == [one]
    assert await column(engine, "(total, refused, digest, input)::text", new.id) == '(1,0,"\\\\x646967657374",Hello)'


async def test_results_are_stored_once(engine: AsyncEngine) -> None:
    """A task that has a result keeps it, and is counted once, however often its step is saved."""
    action_id = await add(engine, await add_user(engine, "one"), 2)
    step = await claim(engine)
    assert step is not None
    assert action_id is not None
    async with transaction(engine) as connection:
        for status in (409, 204, 204):
            await task_actions.save(connection, step, [TaskResult(0, status)], failed=False, delay=NO_DELAY)
    assert await column(engine, "(succeeded, refused, finished_at, input)::text", action_id) == "(0,1,,Hello)"


async def test_users_take_turns_and_their_actions_are_in_order(engine: AsyncEngine) -> None:
    """A user's second action waits for the first; the first step of another user comes before the next of the first."""
    one, two = await add_user(engine, "one"), await add_user(engine, "two")
    first, second, other = await add(engine, one, 2), await add(engine, one, 1), await add(engine, two, 1)
    order = []
    for _ in range(4):
        step = await claim(engine)
        assert step is not None
        order.append(step.id)
        await save(engine, step, [204])
    assert order == [first, other, first, second]
    assert await claim(engine) is None


async def test_the_next_action_of_a_user_waits_for_the_pause_of_the_last_one(engine: AsyncEngine) -> None:
    """The pause after an action's last step holds for its user, also for what is added later, but for nobody else."""
    one, two = await add_user(engine, "one"), await add_user(engine, "two")
    first, second = await add(engine, one, 1), await add(engine, one, 1)
    step = await claim(engine)
    assert step is not None
    assert step.id == first
    await save(engine, step, [204], LEASE)
    assert await column(engine, "finished_at IS NOT NULL", step.id)
    third, other = await add(engine, one, 1), await add(engine, two, 1)
    step = await claim(engine)
    assert step is not None
    assert step.id == other
    assert await claim(engine) is None
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE task_actions SET next_at = now() WHERE id = :id"), {"id": first})
    step = await claim(engine)
    assert step is not None
    assert step.id == second
    await save(engine, step, [204])
    step = await claim(engine)
    assert step is not None
    assert step.id == third


@pytest.mark.parametrize("failure", [None, "ended"])
async def test_an_action_that_ends_without_a_step_holds_nobody_up(engine: AsyncEngine, failure: str | None) -> None:
    """The next one is due when an action was canceled or failed, not when the lease of that is over."""
    user_id = await add_user(engine, "one")
    first, second = await add(engine, user_id, 3), await add(engine, user_id, 1)
    assert first is not None
    async with transaction(engine) as connection:
        if failure is None:
            await task_actions.cancel(connection, user_id, first)
        claimed = await task_actions.claim(connection, LEASE, uuid4())
        assert claimed is not None
        assert claimed.id == first
        await task_actions.finish(connection, first, failure)
    step = await claim(engine)
    assert step is not None
    assert step.id == second


async def test_pauses_are_found_by_an_index(engine: AsyncEngine) -> None:
    """However many actions are finished, a claim reads only those whose pause is not over, and no whole table."""
    async with transaction(engine) as connection:
        values = {"lease": LEASE, "lease_id": uuid4()}
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {task_actions.CLAIM.text}"), values)).scalars())
    assert re.search(r"on task_actions_pause_idx .*\n +Index Cond: \(next_at > now\(\)\)", plan), plan
    assert "Seq Scan on task_actions" not in plan


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (database_clock.CLAMP_ACTIONS, "task_actions_next_at_idx"),
        (database_clock.CLAMP_PAUSES, "task_actions_pause_idx"),
    ],
)
async def test_times_in_the_future_are_found_by_an_index(
    engine: AsyncEngine, statement: TextClause, index: str
) -> None:
    """Each sweep looks for them after the clock was set back, beside what says that the worker lives."""
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        values = {"now": datetime.now(UTC)}
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {statement.text}"), values)).scalars())
    assert index in plan, plan


async def test_the_unfinished_actions_of_a_user_are_limited(engine: AsyncEngine) -> None:
    """The limit also holds for requests at the same time; a finished action does not count."""
    user_id = await add_user(engine, "one")
    most = MOST._replace(unfinished=2)
    results = await asyncio.gather(*(add(engine, user_id, 1, most) for _ in range(4)))
    added = [each for each in results if each is not None]
    assert len(added) == 2
    assert await add(engine, await add_user(engine, "two"), 1, most) is not None
    async with transaction(engine) as connection:
        await task_actions.cancel(connection, user_id, added[0])
        await task_actions.finish(connection, added[0], None)
    assert await add(engine, user_id, 1, most) is not None


async def test_an_action_that_is_stored_already_does_not_count(engine: AsyncEngine) -> None:
    """A repetition of the last action that a user may have is not refused, unlike another one."""
    new = action_of(await add_user(engine, "one"), 3)
    for most in (MOST._replace(unfinished=1), MOST._replace(actions=1), MOST._replace(tasks=3)):
        assert await try_to_add(engine, new, most) is None
        assert await try_to_add(engine, action_of(new.user_id, 1), most) is not None
    assert await count(engine, "task_actions") == 1


async def test_nobody_waits_while_another_transaction_adds_an_action_of_the_same_user(engine: AsyncEngine) -> None:
    """One adds, the other one is told so at once; other users are not held up."""
    one, two = await add_user(engine, "one"), await add_user(engine, "two")
    async with asyncio.timeout(30), transaction(engine) as connection:
        assert await task_actions.add(connection, action_of(one, 1), "Not found.", MOST) is None
        assert await try_to_add(engine, action_of(one, 1)) is NotAdded.BUSY
        assert await try_to_add(engine, action_of(two, 1)) is None
    assert await try_to_add(engine, action_of(one, 1)) is None


async def test_what_is_stored_of_a_user_is_limited(engine: AsyncEngine) -> None:
    """Finished actions count until they are pruned: their tasks, and later their rows."""
    one, two = await add_user(engine, "one"), await add_user(engine, "two")
    most = StoredActions(unfinished=2, actions=4, tasks=10)
    finished = replace(new := action_of(one, 4), missing=frozenset(new.task_ids))
    assert await try_to_add(engine, finished, most) is None
    assert await column(engine, "finished_at IS NOT NULL", finished.id)
    assert await try_to_add(engine, action_of(one, 7), most) is NotAdded.TOO_MANY_STORED
    assert await try_to_add(engine, action_of(one, 6), most) is None
    assert await try_to_add(engine, action_of(one, 1), most) is NotAdded.TOO_MANY_STORED
    assert await try_to_add(engine, action_of(two, 10), most) is None
    async with transaction(engine) as connection:
        assert await task_actions.prune(connection, datetime.now(UTC) + LEASE, 20, 100) == 4
    assert await count(engine, "task_actions") == 3
    assert await try_to_add(engine, action_of(one, 4), most) is None
    assert await try_to_add(engine, action_of(one, 1), most) is NotAdded.TOO_MANY_UNFINISHED
    many = most._replace(unfinished=9)
    assert await try_to_add(engine, action_of(one, 0), many) is None
    assert await try_to_add(engine, action_of(one, 0), many) is NotAdded.TOO_MANY_STORED


async def test_what_is_stored_of_a_user_is_found_by_indexes(engine: AsyncEngine) -> None:
    """It is counted for each new action, and costs no more the more others have stored."""
    async with transaction(engine) as connection:
        values = {"user_id": uuid4(), "id": uuid4()}
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {task_actions.STORED.text}"), values)).scalars())
    assert re.search(r"task_actions_user_idx.*\n +Index Cond: \(user_id =", plan), plan
    assert re.search(r"task_action_tasks_pkey on .*\n +Index Cond: \(action_id = a\.id\)", plan), plan


@pytest.mark.parametrize("hours", [23, 25])
@pytest.mark.parametrize(("before", "kept", "left"), [(-1, 20, 3), (-1, 1, 2), (1, 20, 1)])
async def test_old_finished_actions_are_deleted(
    engine: AsyncEngine, before: int, kept: int, left: int, hours: int
) -> None:
    """Those are deleted that finished before a time, and all but the newest of a user; unfinished ones never are.

    For a day after it was made, an action is remembered without what became of its tasks.
    """
    user_id = await add_user(engine, "one")
    ids = [await add(engine, user_id, 5) for _ in range(3)]
    for action_id in ids[:2]:
        assert action_id is not None
        async with transaction(engine) as connection:
            await task_actions.finish(connection, action_id, "ended")
    async with transaction(engine) as connection:
        await connection.execute(text(f"UPDATE task_actions SET created_at = created_at - interval '{hours} hours'"))
    limit, rounds = 4, 0
    while True:
        rounds += 1
        async with transaction(engine) as connection:
            if await task_actions.prune(connection, datetime.now(UTC) + timedelta(hours=before), kept, limit) < limit:
                break
    assert await count(engine, "task_actions") == (left if hours > 24 else 3)
    assert await count(engine, "task_action_tasks") == 5 * left
    assert rounds == 1 + 5 * (3 - left) // limit
    assert ids[2] is not None
    assert await column(engine, "finished_at", ids[2]) is None


async def test_no_more_than_so_many_keys_of_a_user_are_remembered(engine: AsyncEngine) -> None:
    """Those of the newest actions, for a day; without tasks nothing else is left of them."""
    user_id = await add_user(engine, "one")
    fill = """
    INSERT INTO task_actions (id, user_id, token_id, action, digest, total, created_at, next_at, finished_at)
    SELECT CAST('00000000-0000-0000-0000-' || lpad(n::text, 12, '0') AS uuid), :user_id, 'token', 'pause', '', 0,
           now() - n * interval '1 second', now(), now() FROM generate_series(1, :actions) AS n"""
    async with transaction(engine) as connection:
        await connection.execute(text(fill), {"user_id": user_id, "actions": 1_002})
        assert await task_actions.prune(connection, datetime.now(UTC) - LEASE, 1, 100) == 0
        left = await connection.execute(text("SELECT count(*), max(id::text) FROM task_actions"))
        number, oldest = left.one()
        assert (number, int(oldest[-12:])) == (1_000, 1_000)


async def begin(engine: AsyncEngine, step: ClaimedStep, limit: int) -> list[PendingTask]:
    """Begin a step in a transaction of its own."""
    async with transaction(engine) as connection:
        tasks = await task_actions.begin(connection, step, limit)
    assert tasks is not None
    return tasks


async def add_visible(engine: AsyncEngine, tasks: int) -> ClaimedStep:
    """Add an action for tasks that its user may see, and claim a step of it."""
    user_id = await add_user(engine, "one")
    action_id = await add(engine, user_id, tasks)
    async with transaction(engine) as connection:
        organization = {"id": uuid4(), "user_id": user_id}
        for statement in (
            "INSERT INTO organizations (id, name, display_name) VALUES (:id, 'acme', '')",
            "INSERT INTO memberships (organization_id, user_id, role) VALUES (:id, :user_id, 'member')",
        ):
            await connection.execute(text(statement), organization)
        ids = await connection.execute(
            text("SELECT task_id FROM task_action_tasks WHERE action_id = :id"), {"id": action_id}
        )
        fill = """
        INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name,
                           created_at, version, updated_at, status, document, state, prompt_version)
        SELECT t, :user_id, :id, :id, :id, CAST(t AS text), '', now(), 1, now(), 'pending', '{}', '{}', 1
        FROM unnest(CAST(:ids AS uuid[])) AS t"""
        await connection.execute(text(fill), {**organization, "ids": list(ids.scalars())})
    step = await claim(engine)
    assert step is not None
    return step


async def test_a_process_that_lost_its_claim_begins_no_step(engine: AsyncEngine) -> None:
    """Another one has claimed the step after the lease, or has ended the action since."""
    late = await add_visible(engine, 2)
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE task_actions SET next_at = now()"))
    step = await claim(engine)
    assert step is not None
    async with transaction(engine) as connection:
        assert await task_actions.begin(connection, late, 2) is None
    assert len(await begin(engine, step, 2)) == 2
    async with transaction(engine) as connection:
        await task_actions.finish(connection, step.id, "The end.")
        assert await task_actions.begin(connection, step, 2) is None


async def test_tasks_that_were_tried_come_last(engine: AsyncEngine) -> None:
    """Those whose command was sent least often are next, in their order; one without a result is known as sent."""
    step = await add_visible(engine, 5)
    steps = [await begin(engine, step, limit) for limit in (2, 2, 2, 3)]
    assert [[task.ordinal for task in tasks] for tasks in steps] == [[0, 1], [2, 3], [4, 0], [1, 2, 3]]
    assert [[task.sent for task in tasks] for tasks in steps] == [[False] * 2, [False] * 2, [False, True], [True] * 3]
    ids = {task.ordinal: {each.command_id for tasks in steps for each in tasks if each.ordinal == task.ordinal}
           for task in steps[1] + steps[2]}  # fmt: skip
    assert {ordinal: len(each) for ordinal, each in ids.items()} == {0: 1, 2: 1, 3: 1, 4: 1}
    async with transaction(engine) as connection:
        await task_actions.save(connection, step, [TaskResult(2, 204)], failed=False, delay=NO_DELAY)
        sent = await task_actions.sent(connection, step)
    assert sorted(sent.values()) == [0, 1, 3, 4]
    assert sent[ids[3].pop()] == 3


async def test_tasks_that_are_not_visible_are_not_sent(engine: AsyncEngine) -> None:
    """They have a result without a command, so nothing of them is unconfirmed when the action ends."""
    await add(engine, await add_user(engine, "one"), 2)
    step = await claim(engine)
    assert step is not None
    assert [(task.visible, task.sent) for task in await begin(engine, step, 2)] == [(False, False)] * 2
    async with transaction(engine) as connection:
        assert await task_actions.sent(connection, step) == {}


async def test_unconfirmed_tasks_are_counted_for_themselves(engine: AsyncEngine) -> None:
    """They neither could not be changed nor were left as they were, and the action is not completed by them."""
    action_id = await add(engine, await add_user(engine, "one"), 3)
    step = await claim(engine)
    assert step is not None
    assert action_id is not None
    results = [TaskResult(0, 204), TaskResult(1, 409), TaskResult(2, task_actions.UNCONFIRMED)]
    async with transaction(engine) as connection:
        await task_actions.save(connection, step, results, failed=False, delay=NO_DELAY)
    assert await column(engine, "(succeeded, refused, unconfirmed, finished_at)::text", action_id) == "(1,1,1,)"


@pytest.mark.parametrize("table", ["command_log", "inputs"])
@pytest.mark.parametrize(("age", "is_new"), [("1 day", True), ("0 s", False)])
async def test_commands_of_an_earlier_action_are_not_taken_for_new_ones(
    engine: AsyncEngine, table: str, age: str, *, is_new: bool
) -> None:
    """An id that was used before the action was made is replaced, once for all; one that it used itself is kept."""
    step = await add_visible(engine, 2)
    async with transaction(engine) as connection:
        derived = [task.command_id for task in await task_actions.pending(connection, step, 2)]
        record = {
            "command_log": "INSERT INTO command_log (command_id, digest, reply, created_at) VALUES (:id, '', '{}', ",
            "inputs": "INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at) "
            "VALUES (:id, :id, 0, '', 'queued', ",
        }[table]
        await connection.execute(text(f"{record} now() - interval '{age}')"), {"id": derived[1]})
    first, again = await begin(engine, step, 2), await begin(engine, step, 2)
    assert [task.command_id for task in first] == [task.command_id for task in again]
    assert first[0].command_id == derived[0]
    assert (first[1].command_id != derived[1]) is is_new


async def test_the_next_tasks_are_found_by_an_index(engine: AsyncEngine) -> None:
    """In their order: a step reads and sorts no other tasks of a large action."""
    async with transaction(engine) as connection:
        values = {"id": uuid4(), "user_id": uuid4(), "limit": 25}
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {task_actions.PENDING.text}"), values)).scalars())
    assert "using task_action_tasks_pending_idx" in plan, plan
    assert "Sort" not in plan
