"""The requests of a batch, read by another transaction: added once, and closed each by what answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.reports import InputOutcome, Transition
from taskherd.domain.value import replace
from taskherd.store import work_requests
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.worker import related_rows
from tests.harness.histories import NOON
from tests.worker.test_related_rows import add_requests, outcome, request, update

ONE, TWO, THREE = (UUID(int=0xF0 + number) for number in (1, 2, 3))
A, B, C, D = (UUID(int=0xA0 + number) for number in range(4))
LATER, LAST = NOON + timedelta(minutes=1), NOON + timedelta(minutes=2)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of one connection."""
    opened = open_engine(database_url, size=1, application_name="taskherd-tests")
    yield opened
    await dispose(opened)


async def open_requests(engine: AsyncEngine) -> set[tuple[UUID, str, int, UUID | None]]:
    """Return task, type, build and subject of the open requests."""
    async with transaction(engine) as connection:
        rows = await work_requests.of_tasks(connection, [ONE, TWO, THREE])
    found = {
        (row.task_id, row.type, row.build_number, row.input_id or row.interrupt_id or row.agent_request_id)
        for row in rows
    }
    assert len(found) == len(rows)
    return found


async def test_a_delete_closes_the_requests_of_inputs(engine: AsyncEngine) -> None:
    """But not those of its builds, interrupts and answers, nor those of a task that is not deleted."""
    kept = [
        request(ONE, "workspace.delete", 2), request(ONE, "agent.interrupt", interrupt_id=A),
        request(ONE, "agent.answer", answer_to=B), request(TWO, "agent.input", input_id=C),
    ]  # fmt: skip
    closed = [request(ONE, "agent.input", input_id=A), request(THREE, "agent.input", input_id=D)]
    await add_requests(engine, *kept, *closed)
    async with transaction(engine) as connection:
        updates = update(ONE, inputs_failed=True) | update(TWO) | update(THREE, inputs_failed=True)
        await related_rows.close_requests(connection, updates)
    assert await open_requests(engine) == {
        (ONE, "workspace.delete", 2, None), (ONE, "agent.interrupt", 1, A), (ONE, "agent.answer", 1, B),
        (TWO, "agent.input", 1, C),
    }  # fmt: skip


async def test_requests_of_inputs_are_closed_that_are_decided_or_queued_again(engine: AsyncEngine) -> None:
    """Each of its task; not those of others in flight, nor that of the interrupt that came with an input."""
    await add_requests(
        engine,
        *(request(task_id, "agent.input", input_id=each) for task_id in (ONE, TWO) for each in (A, B, C, D)),
        request(ONE, "agent.interrupt", interrupt_id=A),
    )
    updates = update(
        ONE,
        input_outcomes=[outcome(ONE, A, InputOutcome.DELIVERED), outcome(ONE, C, InputOutcome.FAILED)],
        requeued_input=B,
    ) | update(TWO, requeued_input=D)
    async with transaction(engine) as connection:
        await related_rows.close_requests(connection, updates)
    assert await open_requests(engine) == {
        (ONE, "agent.input", 1, D), (ONE, "agent.interrupt", 1, A), (TWO, "agent.input", 1, A),
        (TWO, "agent.input", 1, B), (TWO, "agent.input", 1, C),
    }  # fmt: skip


async def test_requests_that_were_answered_are_closed(engine: AsyncEngine) -> None:
    """Those of builds, interrupts and answers, each of its task, whatever else has the same number or id."""
    for task_id in (ONE, TWO):
        await add_requests(
            engine,
            *(request(task_id, "workspace.start", number) for number in (1, 2, 3)),
            request(task_id, "agent.input", 2, input_id=A),
            *(request(task_id, "agent.interrupt", 2, interrupt_id=each) for each in (A, B)),
            *(request(task_id, "agent.answer", 2, answer_to=each) for each in (A, B, C)),
        )
    updates = update(ONE, closed_requests=[2, 3], closed_interrupt=A, closed_answers=[B, C]) | update(
        TWO, closed_requests=[1], closed_interrupt=B, closed_answers=[A]
    )
    async with transaction(engine) as connection:
        await related_rows.close_requests(connection, updates)
    assert await open_requests(engine) == {
        (ONE, "workspace.start", 1, None), (ONE, "agent.input", 2, A), (ONE, "agent.interrupt", 2, B),
        (ONE, "agent.answer", 2, A), (TWO, "workspace.start", 2, None), (TWO, "workspace.start", 3, None),
        (TWO, "agent.input", 2, A), (TWO, "agent.interrupt", 2, A), (TWO, "agent.answer", 2, B),
        (TWO, "agent.answer", 2, C),
    }  # fmt: skip


async def test_what_is_decided_again_is_requested_once(engine: AsyncEngine) -> None:
    """Things with the same id, as an input and its interrupt, have a request each; closing one leaves the others."""
    asked: dict[str, Any] = {"requested_builds": [1], "opened_interrupt": A, "opened_answers": {A: "r2", B: None}}
    updates = update(ONE, sent_input=A, **asked) | update(TWO, sent_input=B, **asked) | update(THREE)
    for decided in updates.values():
        state = decided.existing_task.state
        decided.task = replace(decided.existing_task, state=replace(state, requested_builds={1: Transition.START}))
    for at in (LATER, LAST):
        await add_requests(engine, *related_rows.new_requests(updates, at))
    async with transaction(engine) as connection:
        due = await work_requests.pick_due(connection, LAST, 99, first_delay=9, max_delay=9)
    expected = {
        (task_id, kind, about, runner)
        for task_id, input_id in ((ONE, A), (TWO, B))
        for kind, about, runner in (
            ("workspace.start", None, "r1"), ("agent.input", input_id, "r1"), ("agent.interrupt", A, "r1"),
            ("agent.answer", A, "r2"), ("agent.answer", B, None),
        )
    }  # fmt: skip
    assert len(due) == len(expected)
    assert {
        (row.task_id, row.type, row.input_id or row.interrupt_id or row.agent_request_id, row.target_runner)
        for row in due
    } == expected
    assert {(row.created_at, row.build_number, row.attempt) for row in due} == {(LATER, 1, 1)}
    async with transaction(engine) as connection:
        await related_rows.close_requests(connection, update(ONE, closed_interrupt=A, closed_answers=[B]))
    assert await open_requests(engine) == {
        (task_id, kind, 1, about)
        for task_id, kind, about, _ in expected
        if (task_id, kind, about) not in {(ONE, "agent.interrupt", A), (ONE, "agent.answer", B)}
    }
