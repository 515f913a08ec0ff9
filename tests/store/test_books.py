from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import commands, inputs, logs, parked, requests, stats, tasks, workers
from taskherd.store.engine import transaction
from taskherd.store.logs import LogEntryRow
from tests.store.conftest import NOW, event, task_row


async def test_parking_is_bounded_per_task_and_keeps_the_order(engine: AsyncEngine) -> None:
    """Each task has room for so many reports; those without room are named, those kept come back in order."""
    one, other = uuid4(), uuid4()
    async with transaction(engine) as conn:
        await parked.lock_task_ids(conn, [one, other])
        batch = [parked.ReportToPark(task_id, NOW, f'{{"n":{n}}}') for n, task_id in enumerate([one, other, one, one])]
        assert await parked.park(conn, batch, 2) == [3]
        assert await parked.park(conn, batch[:2], 2) == [0]
        rows = await parked.read(conn, [one])
        assert [row.report for row in rows] == ['{"n":0}', '{"n":2}']
        await parked.remove(conn, [row.id for row in rows])
        assert await parked.read(conn, [one]) == []
        assert await parked.expired(conn, NOW, 10) == []
        assert [row.task_id for row in await parked.expired(conn, NOW + timedelta(seconds=1), 10)] == [other, other]


async def test_advisory_keeps_parking_and_creating_apart(engine: AsyncEngine) -> None:
    """Who parks for a task waits until who creates it has committed, and however many ids are asked for, it works."""
    ids = [uuid4() for _ in range(2000)]
    order: list[str] = []

    async def second() -> None:
        async with transaction(engine) as conn:
            await parked.lock_task_ids(conn, ids[::-1])
            order.append("second")

    async with transaction(engine) as conn:
        await parked.lock_task_ids(conn, ids)
        waiter = asyncio.create_task(second())
        blocked = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        async with engine.connect() as watch:
            while (await watch.execute(blocked)).scalar_one() == 0:
                await watch.rollback()
        order.append("first")
    await waiter
    assert order == ["first", "second"]


def request(task_id: UUID, build: int, input_id: UUID | None = None) -> requests.WorkRequest:
    """A request that is due now."""
    kind = "agent.input" if input_id else "workspace.start"
    return requests.WorkRequest(uuid4(), task_id, build, kind, input_id, None, 0, NOW, NOW, None)


async def test_requests_are_handed_out_with_growing_waits(engine: AsyncEngine) -> None:
    """A request is due at once, then after 5, 10, 20 and at most 60 seconds, give or take a tenth."""
    row = request(uuid4(), 1)
    at, waits = NOW, []
    async with transaction(engine) as conn:
        await requests.add(conn, [row, row])
        for attempt in range(1, 7):
            (found,) = await requests.due(conn, at, 10, first=5, most=60)
            assert (found.attempt, found.first_sent_at) == (attempt, NOW)
            assert await requests.due(conn, at, 10, first=5, most=60) == []
            waits.append((found.next_at - at).total_seconds())
            at = found.next_at
    for wait, expected in zip(waits, (5, 10, 20, 40, 60, 60), strict=True):
        assert 0.89 * expected <= wait <= 1.11 * expected


async def test_an_answer_ends_the_requests_of_that_build_or_input_alone(engine: AsyncEngine) -> None:
    """A build's report ends its workspace request, an input's outcome its own; others stay due."""
    task_id, input_id = uuid4(), uuid4()
    start, stop, send = request(task_id, 1), request(task_id, 2), request(task_id, 1, input_id)
    async with transaction(engine) as conn:
        await requests.add(conn, [start, stop, send])
        assert await requests.delete_answered(conn, [(task_id, 1), (uuid4(), 2)]) == {start.request_id}
        assert await requests.delete_answered_inputs(conn, [(task_id, input_id)]) == {send.request_id}
        assert [row.request_id for row in await requests.of_tasks(conn, [task_id])] == [stop.request_id]
        await requests.remove(conn, [stop.request_id])
        assert await requests.due(conn, NOW, 10, first=5, most=60) == []


async def test_two_relays_hand_out_different_requests(engine: AsyncEngine) -> None:
    """Relays that look at the same time do not send the same request."""
    async with transaction(engine) as conn:
        await requests.add(conn, [request(uuid4(), 1) for _ in range(4)])
    async with transaction(engine) as one, transaction(engine) as other:
        first = await requests.due(one, NOW, 2, first=5, most=60)
        second = await requests.due(other, NOW, 10, first=5, most=60)
    assert len({row.request_id for row in first + second}) == 4
    assert (len(first), len(second)) == (2, 2)


async def test_inputs_go_in_order_and_the_first_outcome_stands(engine: AsyncEngine) -> None:
    """The inbox is a queue: one after the other, each decided once."""
    task_id = uuid4()
    new = [inputs.NewInput(uuid4(), task_id, str(n), NOW, None) for n in range(3)]
    async with transaction(engine) as conn:
        await inputs.append(conn, new[:2])
        await inputs.append(conn, new[2:])
        assert [row.ordinal for row in await inputs.load(conn, [row.input_id for row in new])] == [0, 1, 2]
        ids = [row.input_id for row in new]
        assert await inputs.first_queued(conn, {task_id: 2, uuid4(): 1}) == {task_id: ids[:2]}
        await inputs.mark_sent(conn, ids[:1], NOW)
        assert [row.state for row in await inputs.load(conn, ids[:1])] == ["sent"]
        assert await inputs.first_queued(conn, {task_id: 5}) == {task_id: ids[1:]}
        assert await inputs.record_outcomes(conn, [inputs.InputOutcomeRow(ids[0], "delivered", NOW, None)]) == {ids[0]}
        assert await inputs.record_outcomes(conn, [inputs.InputOutcomeRow(ids[0], "failed", NOW, "late")]) == set()
        assert await inputs.fail_all(conn, [task_id], NOW, "The task was deleted.") == {row.input_id for row in new[1:]}
        assert await inputs.first_queued(conn, {task_id: 1}) == {}


def entry(task_id: UUID, entry_id: int, seq: int, content: str, build: int = 1) -> LogEntryRow:
    """An entry of the agent's output."""
    return LogEntryRow(task_id, build, entry_id, seq, "output", content, NOW)


async def test_log_ids_count_per_task_and_never_change(engine: AsyncEngine) -> None:
    """Entries get 0, 1, 2 … when first committed; a greater seq replaces the text in place, a lesser one nothing."""
    one, other = uuid4(), uuid4()

    async def log() -> list[tuple[int, str]]:
        found = await conn.execute(
            text("SELECT log_id, content FROM task_logs WHERE task_id = :id ORDER BY log_id"), {"id": one}
        )
        return [(row.log_id, row.content) for row in found]

    async with transaction(engine) as conn:
        batch = [entry(one, 7, 1, "a"), entry(other, 0, 1, "x"), entry(one, 3, 1, "b"), entry(one, 7, 2, "a2")]
        assert await logs.append(conn, batch, NOW) == 3
        assert await log() == [(0, "a2"), (1, "b")]
        again = [entry(one, 3, 2, "b2"), entry(one, 7, 1, "old"), entry(one, 7, 1, "c", build=2)]
        assert await logs.append(conn, again, NOW + timedelta(weeks=1)) == 1
        assert await log() == [(0, "a2"), (1, "b2"), (2, "c")]
        await conn.execute(text("DELETE FROM task_logs"))
        assert await logs.append(conn, [entry(one, 9, 1, "d")], NOW) == 1
        assert await log() == [(3, "d")]


async def test_a_command_is_claimed_by_one_and_the_other_gets_its_reply(engine: AsyncEngine) -> None:
    """Two workers that get the same command at once: one does it, the other waits and finds the reply."""
    command_id = uuid4()
    claimed = asyncio.Event()

    async def do() -> dict[UUID, commands.RecordedCommand]:
        async with transaction(engine) as conn:
            earlier = await commands.claim(conn, [(command_id, b"digest")], NOW)
            if not earlier:
                claimed.set()
                await commands.record(conn, [(command_id, '{"ok":true}')])
            return earlier

    results = await asyncio.gather(do(), do())
    assert sorted(map(len, results)) == [0, 1]
    async with transaction(engine) as conn:
        assert await commands.find(conn, [command_id]) == {
            command_id: commands.RecordedCommand(b"digest", '{"ok":true}')
        }
        assert await commands.prune(conn, NOW + timedelta(seconds=1), 10) == 1


async def test_workers_are_live_while_they_are_seen(engine: AsyncEngine) -> None:
    """A worker is live for as long as it says so."""
    old = workers.WorkerRow("old", NOW, NOW, None)
    new = workers.WorkerRow("new", NOW, NOW + timedelta(minutes=1), NOW)
    async with transaction(engine) as conn:
        for row in (old, new, new):
            await workers.record_seen(conn, row)
        assert await workers.live(conn, NOW + timedelta(seconds=1)) == [new]
        assert await workers.prune(conn, NOW + timedelta(seconds=1)) == 1
        await workers.delete(conn, "new")
        assert await workers.live(conn, NOW) == []


@pytest.mark.parametrize("analyzed", [False, True])
async def test_counts_are_exact_while_tasks_are_few(engine: AsyncEngine, analyzed: bool) -> None:  # noqa: FBT001
    """Tasks are counted by status and their agents by health; deleted ones are not."""
    rows = [task_row() for _ in range(3)]
    async with transaction(engine) as conn:
        await tasks.insert_tasks(conn, rows)
        await tasks.save(conn, [], [event(rows[0].task.id, 1)])
        unhealthy = '{"workspace_agent_health":{"healthy":false,"reason":"agent has lost connection"}}'
        await conn.execute(
            text("UPDATE tasks SET document = CAST(CAST(:d AS text) AS json) WHERE id = :id"),
            {"d": unhealthy, "id": rows[0].task.id},
        )
        await conn.execute(text("UPDATE tasks SET deleted_at = now() WHERE id = :id"), {"id": rows[1].task.id})
    if analyzed:
        async with transaction(engine) as conn:
            await conn.execute(text("ANALYZE tasks"))
    async with transaction(engine) as conn:
        found = await stats.counts(conn)
    assert found.tasks == {"pending": 2}
    assert found.agents == {"none": 1, "agent has lost connection": 1}
    assert (found.unpublished, found.oldest_unpublished_at, found.parked) == (1, NOW, 0)
