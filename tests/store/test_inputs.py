"""Inboxes: inputs keep their order, and the first outcome of each wins."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.inbox import QueuedInput
from taskherd.store import inputs
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, ignore_indexes


async def test_inputs_keep_their_order_and_their_first_outcome(engine: AsyncEngine) -> None:
    """An inbox is a queue, and an input that has an outcome never gets another one."""
    task_id = uuid4()
    new = [inputs.NewInput(uuid4(), task_id, str(n), NOW, None) for n in range(3)]
    async with transaction(engine) as connection:
        await inputs.append(connection, new[:2])
        await inputs.append(connection, new[2:])
        assert [row.ordinal for row in await inputs.load(connection, [row.input_id for row in new])] == [0, 1, 2]
        ids = [row.input_id for row in new]
        queued = [QueuedInput(input_id, steers=False) for input_id in ids]
        assert await inputs.first_queued(connection, {task_id: 2, uuid4(): 1}) == {task_id: queued[:2]}
        await inputs.mark_sent(connection, ids[:1], NOW)
        assert [row.state for row in await inputs.load(connection, ids[:1])] == ["sent"]
        assert await inputs.first_queued(connection, {task_id: 5}) == {task_id: queued[1:]}
        other_tasks = inputs.InputOutcomeRow(ids[0], uuid4(), "failed", NOW, "of another task")
        assert await inputs.record_outcomes(connection, [other_tasks]) == set()
        delivered = inputs.InputOutcomeRow(ids[0], task_id, "delivered", NOW, None)
        assert await inputs.record_outcomes(connection, [delivered]) == {ids[0]}
        late = inputs.InputOutcomeRow(ids[0], task_id, "failed", NOW, "late")
        assert await inputs.record_outcomes(connection, [late]) == set()
        assert await inputs.fail_all(connection, [task_id], NOW, "The task was deleted.") == {
            row.input_id for row in new[1:]
        }
        assert await inputs.first_queued(connection, {task_id: 1}) == {}


async def test_inputs_that_steer_come_first_and_sent_ones_can_wait_again(engine: AsyncEngine) -> None:
    """Steers are before other inputs, each kind in its order; only an input that is in flight is queued again."""
    task_id = uuid4()
    steers = [False, True, False, True]
    new = [inputs.NewInput(uuid4(), task_id, str(n), NOW, None, steer) for n, steer in enumerate(steers)]
    ids = [row.input_id for row in new]
    async with transaction(engine) as connection:
        await inputs.append(connection, new)
        queue = [QueuedInput(ids[n], steers[n]) for n in (1, 3, 0, 2)]
        assert await inputs.first_queued(connection, {task_id: 9}) == {task_id: queue}
        assert await inputs.first_queued(connection, {task_id: 1}) == {task_id: queue[:1]}
        await inputs.mark_sent(connection, ids[:2], NOW)
        await inputs.record_outcomes(connection, [inputs.InputOutcomeRow(ids[1], task_id, "delivered", NOW, None)])
        await inputs.requeue(connection, ids)
        rows = {row.input_id: row for row in await inputs.load(connection, ids)}
        assert [rows[each].state for each in ids] == ["queued", "delivered", "queued", "queued"]
        assert (rows[ids[0]].sent_at, rows[ids[1]].sent_at) == (None, NOW)


async def test_each_task_has_an_inbox_of_its_own(engine: AsyncEngine) -> None:
    """Inputs are counted, taken in turn and given up by task; what is stored of each is what was given."""
    first, second = UUID(int=1), UUID(int=2)
    new = [
        inputs.NewInput(
            UUID(int=10 + n), task_id, f"input {n}", NOW + timedelta(seconds=n), UUID(int=20 + n), steers=n == 4
        )
        for n, task_id in enumerate([second, first, second, second, first])
    ]
    ids = [each.input_id for each in new]
    async with transaction(engine) as connection:
        await inputs.append(connection, new[:2])
        await inputs.append(connection, new[2:])
        stored = {row.input_id: row for row in await inputs.load(connection, [*ids, UUID(int=99)])}
        ordinals = [0, 0, 1, 2, 1]
        assert [stored[each] for each in ids] == [
            inputs.InputRow(
                each.input_id, each.task_id, ordinal, each.content, "queued", each.created_at, None, None, None,
                each.actor_id, each.steers,
            )
            for each, ordinal in zip(new, ordinals, strict=True)
        ]  # fmt: skip
        assert [row.input_id for row in await inputs.load(connection, ids[2:3])] == ids[2:3]
        await ignore_indexes(connection)
        queues = await inputs.first_queued(connection, {second: 2, first: 9})
        assert queues == {
            first: [QueuedInput(ids[4], steers=True), QueuedInput(ids[1], steers=False)],
            second: [QueuedInput(ids[0], steers=False), QueuedInput(ids[2], steers=False)],
        }
        assert await inputs.first_queued(connection, {first: 1}) == {first: queues[first][:1]}


async def test_the_open_inputs_of_a_task_fail_together(engine: AsyncEngine) -> None:
    """With the time and the reason; those that have an outcome keep it, and so do the inputs of other tasks."""
    task_id, other = uuid4(), uuid4()
    later, last = NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)
    new = [inputs.NewInput(uuid4(), of, f"input {n}", NOW, None) for n, of in enumerate([task_id] * 3 + [other])]
    ids = [each.input_id for each in new]
    async with transaction(engine) as connection:
        await inputs.append(connection, new)
        await inputs.mark_sent(connection, ids[:2], NOW)
        outcomes = [
            inputs.InputOutcomeRow(ids[0], task_id, "failed", later, "refused"),
            inputs.InputOutcomeRow(ids[3], task_id, "failed", later, "of another task"),
        ]
        assert await inputs.record_outcomes(connection, outcomes) == {ids[0]}
        assert await inputs.fail_all(connection, [task_id], last, "deleted") == {ids[1], ids[2]}
        assert await inputs.fail_all(connection, [task_id], last, "deleted") == set()
        await inputs.mark_sent(connection, ids, last)
        rows = {row.input_id: row for row in await inputs.load(connection, ids)}
        assert [(row.state, row.sent_at, row.decided_at, row.detail) for row in map(rows.__getitem__, ids)] == [
            ("failed", NOW, later, "refused"),
            ("failed", NOW, last, "deleted"),
            ("failed", None, last, "deleted"),
            ("sent", last, None, None),
        ]
        await inputs.requeue(connection, [ids[0]])
        assert (await inputs.load(connection, [ids[3]]))[0].state == "sent"
