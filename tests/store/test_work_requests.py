"""Work requests: due with growing delays until a report answers them, each picked by one worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.backoff import Backoff
from taskherd.store import inputs, work_requests
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, execute_script, ignore_indexes
from tests.store.world import ALICE, OF_ALICE, OF_BOB, OF_DORA, OF_EVE, WORLD


def work_request(task_id: UUID, build: int, input_id: UUID | None = None) -> work_requests.WorkRequestRow:
    """Return a request that is due now."""
    kind = "agent.input" if input_id else "workspace.start"
    return work_requests.WorkRequestRow(uuid4(), task_id, build, kind, input_id, None, 0, NOW, NOW, None)


async def test_the_delay_of_each_attempt_is_that_of_backoff(engine: AsyncEngine) -> None:
    """A request is due at once, then after the delays of ``Backoff``, with 10 % of jitter: the two do the same sum."""
    for first, maximum, attempts in ((5, 60, 20), (0.001, 3600, 20)):
        backoff = Backoff(first, maximum)
        row = work_request(uuid4(), 1)
        at = NOW
        async with transaction(engine) as connection:
            await work_requests.add(connection, [row, row])
            for attempt in range(1, attempts + 1):
                (due,) = await work_requests.pick_due(connection, at, 10, first_delay=first, max_delay=maximum)
                assert (due.attempt, due.first_sent_at) == (attempt, NOW)
                assert await work_requests.pick_due(connection, at, 10, first_delay=first, max_delay=maximum) == []
                delay = (due.next_at - at).total_seconds()
                assert 0.9 * backoff.longest(attempt) - 1e-6 <= delay <= 1.1 * backoff.longest(attempt) + 1e-6
                at = due.next_at
            await work_requests.delete(connection, [row.request_id])


async def test_an_answer_deletes_only_the_request_of_its_build_input_or_interrupt(engine: AsyncEngine) -> None:
    """A report about a build deletes its workspace request, the outcome of an input its request; others stay due."""
    task_id, input_id = uuid4(), uuid4()
    start, stop, send = work_request(task_id, 1), work_request(task_id, 2), work_request(task_id, 1, input_id)
    async with transaction(engine) as connection:
        await work_requests.add(connection, [start, stop, send])
        assert await work_requests.delete_of_builds(connection, [(task_id, 1), (uuid4(), 2)]) == {start.request_id}
        assert await work_requests.delete_of_inputs(connection, [(task_id, input_id)]) == {send.request_id}
        assert [row.request_id for row in await work_requests.of_tasks(connection, [task_id])] == [stop.request_id]
        interrupt_id = uuid4()
        interrupt = replace(work_request(task_id, 1), type="agent.interrupt", interrupt_id=interrupt_id)
        await work_requests.add(connection, [interrupt])
        assert await work_requests.delete_of_builds(connection, [(task_id, 1)]) == set()
        await work_requests.delete_of_interrupts(connection, [(uuid4(), interrupt_id), (task_id, uuid4())])
        assert len(await work_requests.of_tasks(connection, [task_id])) == 2
        await work_requests.delete_of_interrupts(connection, [(task_id, interrupt_id)])
        await work_requests.delete(connection, [stop.request_id])
        assert await work_requests.pick_due(connection, NOW, 10, first_delay=5, max_delay=60) == []


async def test_two_workers_pick_different_requests(engine: AsyncEngine) -> None:
    """Two workers that pick due requests at the same time never get the same one."""
    async with transaction(engine) as connection:
        await work_requests.add(connection, [work_request(uuid4(), 1) for _ in range(4)])
    async with transaction(engine) as one, transaction(engine) as other:
        first = await work_requests.pick_due(one, NOW, 2, first_delay=5, max_delay=60)
        second = await work_requests.pick_due(other, NOW, 10, first_delay=5, max_delay=60)
    assert len({row.request_id for row in first + second}) == 4
    assert (len(first), len(second)) == (2, 2)


async def test_the_requests_that_are_overdue_most_come_first(engine: AsyncEngine) -> None:
    """Of more than the limit, those are picked that have been due for longest; one is due at its time, not before."""
    overdue = [replace(work_request(uuid4(), 1), next_at=NOW - timedelta(seconds=seconds)) for seconds in (1, 3, 2, 0)]
    later = replace(work_request(uuid4(), 1), next_at=NOW + timedelta(microseconds=1))
    async with transaction(engine) as connection:
        await work_requests.add(connection, [later, *overdue])
        await ignore_indexes(connection)
        for expected in ({1, 2}, {0, 3}, set()):
            picked = await work_requests.pick_due(connection, NOW, 2, first_delay=5, max_delay=60)
            assert {row.request_id for row in picked} == {overdue[number].request_id for number in expected}


PROMPTS = "".join(
    f"INSERT INTO task_prompts VALUES ('{task}', 1, repeat('x', 5000)), ('{task}', 2, repeat('é', 500));\n"
    for task in (OF_ALICE, OF_BOB, OF_DORA, OF_EVE)
)


async def test_requests_are_picked_until_what_they_deliver_has_so_many_bytes(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are overdue most first, and one at least: current prompts of starts, and inputs; others have none."""
    await execute_script(engine, WORLD + PROMPTS)
    input_id = uuid4()
    stop = replace(work_request(OF_BOB, 1), type="workspace.stop")
    rows = [
        replace(row, next_at=NOW - timedelta(seconds=9 - seconds))
        for seconds, row in enumerate(
            (
                work_request(OF_ALICE, 1), stop, work_request(OF_EVE, 1, input_id), work_request(uuid4(), 1),
                work_request(OF_BOB, 2), work_request(OF_ALICE, 3, uuid4()), work_request(OF_DORA, 1),
            )
        )
    ]  # fmt: skip
    for most, expected in (
        (1, [[0], [1, 2], [3, 4], [5, 6]]),
        (1000, [[0], [1, 2, 3, 4], [5, 6]]),
        (1001, [[0, 1, 2], [3, 4, 5, 6]]),
        (1501, [[0, 1, 2, 3, 4], [5, 6]]),
        (2501, [[0, 1, 2, 3, 4, 5, 6]]),
    ):
        monkeypatch.setattr(work_requests, "MAX_DUE_BYTES", most)
        async with transaction(engine) as connection:
            if most == 1:
                await inputs.append(connection, [inputs.NewInput(input_id, OF_EVE, 250 * "é", NOW, ALICE)])
            await work_requests.add(connection, rows)
            for indexes in expected:
                picked = await work_requests.pick_due(connection, NOW, 10, first_delay=5, max_delay=60)
                assert {row.request_id for row in picked} == {rows[index].request_id for index in indexes}
            assert await work_requests.pick_due(connection, NOW, 10, first_delay=5, max_delay=60) == []
            await work_requests.delete(connection, [row.request_id for row in rows])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def test_only_so_many_prompts_and_inputs_are_looked_at(engine: AsyncEngine) -> None:
    """Each by its key, and no more than are picked at most, however many requests are due."""
    async with transaction(engine) as connection:
        await connection.execute(
            text(
                "INSERT INTO work_requests (request_id, task_id, build_number, type, input_id, attempt, created_at,"
                " next_at) SELECT gen_random_uuid(), gen_random_uuid(), 1, kind, gen_random_uuid(), 0, :now, :now"
                " FROM generate_series(1, 500), unnest(ARRAY['workspace.start', 'agent.input']) AS kind"
            ),
            {"now": NOW},
        )
        for mode in ("force_generic_plan", "force_custom_plan"):
            await connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
            rows = await connection.execute(
                text(f"EXPLAIN (ANALYZE, FORMAT JSON) {work_requests.PICK_DUE.text}"),
                {"now": NOW, "limit": 20, "bytes": 1000, "first": 5, "maximum": 60},
            )
            scans = [
                (node["Relation Name"], node["Node Type"], node["Actual Loops"])
                for node in nodes(rows.scalar_one()[0]["Plan"])
                if node.get("Relation Name") in {"tasks", "task_prompts", "inputs"}
            ]
            assert {name for name, _, _ in scans} == {"tasks", "task_prompts", "inputs"}
            assert all(kind == "Index Scan" and loops <= 20 for _, kind, loops in scans), scans


async def test_inputs_without_an_outcome_expire_in_the_order_of_their_sending(engine: AsyncEngine) -> None:
    """Those that were first sent at or before a time, the earliest ones first; other requests never are among them."""
    sent = [timedelta(seconds=seconds) for seconds in (1, 3, 0, -1)]
    inputs = [replace(work_request(uuid4(), 1, uuid4()), first_sent_at=NOW - age) for age in sent]
    others = [
        work_request(uuid4(), 1, uuid4()),
        replace(work_request(uuid4(), 1), first_sent_at=NOW - timedelta(hours=1)),
    ]
    async with transaction(engine) as connection:
        await work_requests.add(connection, [*inputs, *others])
        await ignore_indexes(connection)
        expired = [(row.task_id, row.input_id) for row in (inputs[1], inputs[0], inputs[2])]
        assert list(await work_requests.expired_inputs(connection, NOW, 10)) == expired
        assert list(await work_requests.expired_inputs(connection, NOW, 2)) == expired[:2]


async def test_a_request_is_stored_as_it_is_and_never_replaced(engine: AsyncEngine) -> None:
    """Adding it again changes nothing; those of other tasks are not read with it."""
    task_id = uuid4()
    old = work_requests.WorkRequestRow(
        uuid4(), task_id, 3, "agent.answer", uuid4(), "r1", 2, NOW - timedelta(seconds=9), NOW, NOW, uuid4(), uuid4()
    )
    new = [replace(work_request(task_id, build), created_at=NOW - timedelta(seconds=build)) for build in (1, 20, 5)]
    async with transaction(engine) as connection:
        await work_requests.add(connection, [*new, work_request(uuid4(), 1), old])
        await work_requests.add(connection, [replace(old, attempt=7, target_runner=None)])
        await ignore_indexes(connection)
        assert await work_requests.of_tasks(connection, [task_id]) == [new[1], old, new[2], new[0]]


async def test_requests_that_are_due_together_come_in_the_order_of_their_creation(engine: AsyncEngine) -> None:
    """Of those created at once, by their kind; each counts its own attempt and keeps when it was first sent."""
    task_id, first = uuid4(), NOW - timedelta(hours=1)
    rows = [
        replace(
            work_request(task_id, 1), request_id=UUID(int=number), type=kind, attempt=attempt,
            created_at=NOW - timedelta(seconds=age), first_sent_at=first if attempt else None,
        )
        for number, kind, age, attempt in (
            (4, "b", 1, 0), (3, "a", 1, 1), (2, "a", 2, 0), (1, "b", 1, 2), (5, "a", 3, 0)
        )
    ]  # fmt: skip
    async with transaction(engine) as connection:
        await work_requests.add(
            connection, [*rows, replace(work_request(task_id, 2), next_at=NOW + timedelta(hours=1))]
        )
        due = await work_requests.pick_due(connection, NOW, 10, first_delay=5, max_delay=60)
        assert [each.request_id.int for each in due] == [5, 2, 3, 1, 4]
        assert [each.attempt for each in due] == [1, 1, 2, 3, 1]
        assert [each.first_sent_at for each in due] == [NOW, NOW, first, first, NOW]
        stored = await work_requests.of_tasks(connection, [task_id])
        assert sorted(each.attempt for each in stored) == [0, 1, 1, 1, 2, 3]
        await work_requests.delete(connection, [each.request_id for each in due[1:]])
        assert [each.build_number for each in await work_requests.of_tasks(connection, [task_id])] == [1, 2]


async def test_requests_are_deleted_by_task_and_what_they_are_about(engine: AsyncEngine) -> None:
    """Never by one of the two alone, nor by that of another pair."""
    one, two, a, b = (uuid4() for _ in range(4))
    pairs = [(one, a), (two, b)]
    all_pairs = [(task_id, about) for task_id in (one, two) for about in (a, b)]

    async with transaction(engine) as connection:

        async def left() -> set[tuple[UUID, UUID | None]]:
            rows = await work_requests.of_tasks(connection, [one, two])
            await work_requests.delete(connection, [row.request_id for row in rows])
            return {(row.task_id, row.input_id or row.interrupt_id or row.agent_request_id) for row in rows}

        inputs = [work_request(task_id, 1, about) for task_id, about in all_pairs]
        await work_requests.add(connection, inputs)
        deleted = await work_requests.delete_of_inputs(connection, pairs)
        assert deleted == {inputs[0].request_id, inputs[3].request_id}
        assert await left() == {(one, b), (two, a)}
        await work_requests.add(
            connection, [replace(work_request(task_id, 1), interrupt_id=about) for task_id, about in all_pairs]
        )
        await work_requests.delete_of_interrupts(connection, pairs)
        assert await left() == {(one, b), (two, a)}
        await work_requests.add(
            connection, [replace(work_request(task_id, 1), agent_request_id=about) for task_id, about in all_pairs]
        )
        await work_requests.delete_of_answers(connection, pairs)
        assert await left() == {(one, b), (two, a)}
        builds = [work_request(task_id, build) for task_id in (one, two) for build in (1, 2)]
        await work_requests.add(connection, builds)
        deleted = await work_requests.delete_of_builds(connection, [(one, 1), (two, 2)])
        assert deleted == {builds[0].request_id, builds[3].request_id}
