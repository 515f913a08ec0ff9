"""Inboxes: inputs keep their order, and the first outcome of each wins."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.inbox import QueuedInput
from taskherd.store import inputs
from taskherd.store.engine import transaction
from tests.store.conftest import NOW


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
