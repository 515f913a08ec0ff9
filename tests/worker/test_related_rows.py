"""What a batch writes beside its tasks, read by another transaction: inputs, logs, claims and parked reports."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain import builds, fold
from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import (
    AgentState,
    AppStatus,
    InputOutcome,
    InputOutcomeReport,
    JobStatus,
    LogEntry,
    LogKind,
    LogSource,
    LogStatus,
    TaskLog,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.updates import AcceptedInput, TaskUpdate
from taskherd.domain.value import replace
from taskherd.store import build_claims, inputs, logs, parked_reports, work_requests
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.inputs import InputRow, NewInput
from taskherd.store.logs import LogLimits
from taskherd.store.parked_reports import ReportToPark
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker import related_rows
from taskherd.worker.batch import ParkingChanges
from tests.harness.histories import NOON
from tests.harness.tasks import make_task

ONE, TWO, THREE = (UUID(int=0xF0 + number) for number in (1, 2, 3))
A, B, C, D, E, F, G, H, J = (UUID(int=0xA0 + number) for number in range(9))
ACTOR, OTHER_ACTOR = UUID(int=0xB1), UUID(int=0xB2)
LATER, LAST = NOON + timedelta(minutes=1), NOON + timedelta(minutes=2)
LIMITS = LogLimits(max_entries=100, max_bytes=1_000)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of one connection."""
    opened = open_engine(database_url, size=1, application_name="taskherd-tests")
    yield opened
    await dispose(opened)


def update(task_id: UUID, number: int = 1, **fields: Any) -> dict[UUID, TaskUpdate]:
    """Return the update of a task, by its id, whose latest build has this number and runs at the runner ``r1``."""
    start = WorkspaceBuild(
        task_id=task_id, build_number=number, seq=0, transition=Transition.START, job_status=JobStatus.RUNNING,
        runner="r1",
    )  # fmt: skip
    task = make_task(task_id, state=fold.fold(builds.initial_state(task_id, NOON), start, NOON).state)
    return {task_id: TaskUpdate(task, task, **fields)}


def outcome(task_id: UUID, input_id: UUID, of: InputOutcome, detail: str | None = None) -> InputOutcomeReport:
    """Return the report of the outcome of an input."""
    return InputOutcomeReport(task_id=task_id, build_number=1, seq=0, input_id=input_id, outcome=of, detail=detail)


def lines(task_id: UUID, seq: int, *entry_ids: int, number: int = 1) -> TaskLog:
    """Return a report with a line of 10 bytes for each id."""
    entries = (LogEntry(each, LogSource.OUTPUT, f"{seq} {task_id.hex[-2:]} {each:05}", NOON) for each in entry_ids)
    return TaskLog(task_id=task_id, build_number=number, seq=seq, entries=tuple(entries))


def request(
    task_id: UUID, kind: str, number: int = 1, *, input_id: UUID | None = None, interrupt_id: UUID | None = None,
    answer_to: UUID | None = None,
) -> WorkRequestRow:  # fmt: skip
    """Return an open request of a type."""
    row = WorkRequestRow(uuid4(), task_id, number, kind, input_id, "r1", 0, NOON, NOON, None)
    return dataclasses.replace(row, interrupt_id=interrupt_id, agent_request_id=answer_to)


async def add_requests(engine: AsyncEngine, *requests: WorkRequestRow) -> None:
    """Store open requests."""
    async with transaction(engine) as connection:
        await work_requests.add(connection, requests)


async def add_inputs(engine: AsyncEngine, task_id: UUID, *ids: UUID, sent: Sequence[UUID] = ()) -> None:
    """Store inputs of a task at noon, some of which are sent."""
    async with transaction(engine) as connection:
        rows = [NewInput(each, task_id, f"input {each.hex[-2:]}", NOON, ACTOR) for each in ids]
        await inputs.append(connection, rows)
        await inputs.mark_sent(connection, sent, NOON)


async def read_inputs(engine: AsyncEngine, *ids: UUID) -> list[InputRow]:
    """Return these inputs, in this order."""
    async with transaction(engine) as connection:
        rows = {row.input_id: row for row in await inputs.load(connection, ids)}
    return [rows[each] for each in ids]


@asynccontextmanager
async def noting(engine: AsyncEngine) -> AsyncIterator[tuple[AsyncConnection, list[str]]]:
    """Begin a transaction, and note of each statement in it what it does first, and to which table."""
    noted: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        found = re.search(r"(INSERT INTO|UPDATE|DELETE FROM) \w+", statement)
        noted.append(found[0] if found else " ".join(("SELECT", *re.findall(r"FROM (\w+)", statement))))

    async with transaction(engine) as connection:
        event.listen(connection.sync_connection, "before_cursor_execute", note)
        yield connection, noted


async def read_logs(engine: AsyncEngine, task_id: UUID) -> list[tuple[Any, ...]]:
    """Return the log of a task in the order in which it is read, as rows with all that is in it."""
    columns = "log_id, build_number, entry_id, seq, type, content, time, logged_at, kind, title, status"
    query = f"SELECT {columns}, CAST(data AS text) FROM task_logs WHERE task_id = :id ORDER BY {logs.ORDER}"
    async with transaction(engine) as connection:
        return [tuple(row) for row in await connection.execute(text(query), {"id": task_id})]


def status(task_id: UUID, number: int | None, message: str) -> AppStatus:
    """Return the report of an idle agent."""
    return AppStatus(task_id=task_id, build_number=number, seq=0, state=AgentState.IDLE, message=message)


async def parked(engine: AsyncEngine) -> list[tuple[UUID, datetime, str]]:
    """Return the parked reports in the order in which they were parked."""
    async with transaction(engine) as connection:
        rows = await parked_reports.lock(connection, [ONE, TWO, THREE])
    return [(row.task_id, row.parked_at, row.report) for row in rows]


async def save(connection: AsyncConnection, updates: dict[UUID, TaskUpdate]) -> None:
    """Save all that is beside these tasks; no claim was made, and no report came before its task."""
    await related_rows.save_inbox(connection, updates, LATER)
    await related_rows.save_logs(connection, updates, LIMITS, LATER)
    await related_rows.close_requests(connection, updates)
    await related_rows.save_claims(connection, [], [], LATER)
    assert await related_rows.save_parking(connection, ParkingChanges(), LATER, 7) == []


CHANGES: dict[str, tuple[Callable[[UUID, UUID], dict[str, Any]], list[str]]] = {
    "nothing": (lambda _task, _id: {}, []),
    "new inputs": (
        lambda _task, each: {"new_inputs": [AcceptedInput(UUID(int=each.int + 100), f"say {each}", ACTOR)]},
        ["INSERT INTO inputs"],
    ),
    "outcomes": (
        lambda task_id, each: {"input_outcomes": [outcome(task_id, each, InputOutcome.DELIVERED)]},
        ["UPDATE inputs", "DELETE FROM work_requests"],
    ),
    "a delete": (
        lambda _task, _id: {"inputs_failed": True},
        ["UPDATE inputs", "SELECT work_requests", "DELETE FROM work_requests"],
    ),
    "queued again": (
        lambda _task, each: {"requeued_input": each}, ["UPDATE inputs", "DELETE FROM work_requests"]
    ),
    "sent": (lambda _task, each: {"sent_input": each}, ["UPDATE inputs"]),
    "logs": (lambda task_id, _id: {"logs": [lines(task_id, 1, 0)]}, ["UPDATE task_logs"]),
    "builds": (lambda _task, _id: {"closed_requests": [1]}, ["DELETE FROM work_requests"]),
    "an interrupt": (lambda _task, each: {"closed_interrupt": each}, ["DELETE FROM work_requests"]),
    "answers": (lambda _task, each: {"closed_answers": [each]}, ["DELETE FROM work_requests"]),
}  # fmt: skip
"""What changes in two tasks, given the id of each and of its input, and the statements which that takes.

That of a log adds its entries, too: its first word is about those that are replaced.
"""


@pytest.mark.parametrize("change", CHANGES)
async def test_only_what_changed_costs_a_statement(engine: AsyncEngine, change: str) -> None:
    """Most reports change nothing beside their task; what changes takes one statement of its kind for all tasks."""
    fields, expected = CHANGES[change]
    await add_inputs(engine, ONE, A, sent=[A])
    await add_inputs(engine, TWO, B, sent=[B])
    await add_requests(engine, request(ONE, "agent.input", input_id=A), request(TWO, "agent.input", input_id=B))
    updates = update(ONE, **fields(ONE, A)) | update(TWO, **fields(TWO, B)) | update(THREE)
    async with noting(engine) as (connection, noted):
        await save(connection, updates)
    assert noted == expected


async def test_inputs_are_appended_decided_sent_and_queued_again(engine: AsyncEngine) -> None:
    """Each in the inbox of its task, with what is known of it; all others stay as they were."""
    await add_inputs(engine, ONE, A, B, sent=[A])
    await add_inputs(engine, TWO, C, D, sent=[C])
    await add_inputs(engine, THREE, E, F, sent=[E])
    new = [AcceptedInput(G, "Stop, do this", OTHER_ACTOR, steers=True), AcceptedInput(H, "Then that", ACTOR)]
    updates = (
        update(ONE, new_inputs=new, input_outcomes=[outcome(ONE, A, InputOutcome.FAILED, "it was busy")], sent_input=G)
        | update(TWO, requeued_input=C, new_inputs=[AcceptedInput(J, "Go on", ACTOR)])
        | update(THREE, input_outcomes=[outcome(THREE, E, InputOutcome.DELIVERED)], sent_input=F)
    )
    async with transaction(engine) as connection:
        await related_rows.save_inbox(connection, updates, LATER)
    assert await read_inputs(engine, A, B, C, D, E, F, G, H, J) == [
        InputRow(A, ONE, 0, "input a0", "failed", NOON, NOON, LATER, "it was busy", ACTOR),
        InputRow(B, ONE, 1, "input a1", "queued", NOON, None, None, None, ACTOR),
        InputRow(C, TWO, 0, "input a2", "queued", NOON, None, None, None, ACTOR),
        InputRow(D, TWO, 1, "input a3", "queued", NOON, None, None, None, ACTOR),
        InputRow(E, THREE, 0, "input a4", "delivered", NOON, NOON, LATER, None, ACTOR),
        InputRow(F, THREE, 1, "input a5", "sent", NOON, LATER, None, None, ACTOR),
        InputRow(G, ONE, 2, "Stop, do this", "sent", LATER, LATER, None, None, OTHER_ACTOR, steers=True),
        InputRow(H, ONE, 3, "Then that", "queued", LATER, None, None, None, ACTOR),
        InputRow(J, TWO, 2, "Go on", "queued", LATER, None, None, None, ACTOR),
    ]


async def test_an_outcome_of_an_input_of_another_task_changes_nothing(engine: AsyncEngine) -> None:
    """Neither the input nor its request: both are looked up with the task whose update it is."""
    await add_inputs(engine, ONE, A, sent=[A])
    await add_inputs(engine, TWO, B, sent=[B])
    await add_requests(engine, request(ONE, "agent.input", input_id=A), request(TWO, "agent.input", input_id=B))
    strays = [outcome(ONE, B, InputOutcome.FAILED, "not ours"), outcome(ONE, A, InputOutcome.DELIVERED, "ours")]
    async with transaction(engine) as connection:
        await save(connection, update(ONE, input_outcomes=strays) | update(TWO))
    assert [(row.state, row.detail) for row in await read_inputs(engine, A, B)] == [
        ("delivered", "ours"), ("sent", None)
    ]  # fmt: skip
    async with transaction(engine) as connection:
        assert [row.input_id for row in await work_requests.of_tasks(connection, [ONE, TWO])] == [B]


async def test_a_delete_fails_the_inputs_without_an_outcome(engine: AsyncEngine) -> None:
    """One that is decided in the same batch keeps that outcome, and a task that is not deleted its inputs."""
    await add_inputs(engine, ONE, A, B, C, sent=[A, C])
    await add_inputs(engine, TWO, D, E, sent=[D])
    await add_inputs(engine, THREE, F)
    updates = (
        update(ONE, inputs_failed=True, input_outcomes=[outcome(ONE, C, InputOutcome.DELIVERED, "just in time")])
        | update(TWO)
        | update(THREE, inputs_failed=True)
    )
    async with transaction(engine) as connection:
        await related_rows.save_inbox(connection, updates, LATER)
    rows = await read_inputs(engine, A, B, C, D, E, F)
    deleted = ("failed", LATER, "The task was deleted.")
    assert [(row.state, row.decided_at, row.detail) for row in rows] == [
        deleted, deleted, ("delivered", LATER, "just in time"), ("sent", None, None), ("queued", None, None), deleted
    ]  # fmt: skip


async def test_log_entries_are_appended_in_order(engine: AsyncEngine) -> None:
    """With the build and seq of their report and all that they say; readers get those of each task in order."""
    tool = LogEntry(
        5, LogSource.INPUT, "run it", NOON, LogKind.TOOL_CALL, "A shell", LogStatus.FAILED, '{"exit": 1}'
    )  # fmt: skip
    first = TaskLog(task_id=ONE, build_number=3, seq=4, entries=(tool, LogEntry(4, LogSource.OUTPUT, "it ran", LATER)))
    again = TaskLog(task_id=ONE, build_number=7, seq=2, entries=(LogEntry(5, LogSource.OUTPUT, "another build", LAST),))
    updates = update(ONE, logs=[first, again]) | update(TWO, logs=[lines(TWO, 1, 0)]) | update(THREE)
    async with transaction(engine) as connection:
        await related_rows.save_logs(connection, updates, LIMITS, LAST)
    assert await read_logs(engine, ONE) == [
        (0, 3, 5, 4, "input", "run it", NOON, LAST, "tool_call", "A shell", "failed", '{"exit": 1}'),
        (1, 3, 4, 4, "output", "it ran", LATER, LAST, None, None, None, None),
        (2, 7, 5, 2, "output", "another build", LAST, LAST, None, None, None, None),
    ]
    assert [row[:6] for row in await read_logs(engine, TWO)] == [(0, 1, 0, 1, "output", "1 f2 00000")]
    assert await read_logs(engine, THREE) == []


async def test_a_full_log_says_what_was_left_out(engine: AsyncEngine) -> None:
    """Each in an entry at its end, at the latest build of its task, which counts on; the other logs have none."""
    limits = LogLimits(max_entries=2, max_bytes=30)
    async with transaction(engine) as connection:
        updates = (
            update(ONE, 6, logs=[lines(ONE, 1, *range(5))])
            | update(TWO, 9, logs=[lines(TWO, 1, *range(3), number=8)])
            | update(THREE, logs=[lines(THREE, 1, 0, 1)])
        )
        await related_rows.save_logs(connection, updates, limits, LATER)
    start, limit = "taskherd: this log is full.", "The limit is 2 entries and 30 bytes."
    since = "were left out since 2026-03-01T12:01:00Z."
    assert (await read_logs(engine, ONE))[2:] == [
        (
            2, 6, -1, 0, "output", f"{start} 3 entries with 30 bytes {since} {limit}", LATER, LATER, None, None, None,
            None,
        )
    ]  # fmt: skip
    assert [row[:6] for row in await read_logs(engine, TWO)] == [
        (0, 8, 0, 1, "output", "1 f2 00000"),
        (1, 8, 1, 1, "output", "1 f2 00001"),
        (2, 9, -1, 0, "output", f"{start} 1 entries with 10 bytes {since} {limit}"),
    ]
    assert [row[2] for row in await read_logs(engine, THREE)] == [0, 1]
    async with transaction(engine) as connection:
        updates = update(ONE, 7, logs=[lines(ONE, 2, 8)]) | update(TWO, 9)
        await related_rows.save_logs(connection, updates, limits, LAST)
    assert [row[:6] for row in await read_logs(engine, ONE)][2:] == [
        (2, 6, -1, 0, "output", f"{start} 4 entries with 40 bytes {since} {limit}")
    ]
    assert "1 entries with 10 bytes" in (await read_logs(engine, TWO))[2][5]


async def test_claims_that_were_granted_first_are_saved(engine: AsyncEngine) -> None:
    """Not those that were granted before, were refused, or are of a sender that may not claim."""
    ids = [UUID(int=0xC0 + number) for number in range(6)]
    before = [BuildClaim(each, 1, "r1") for each in ids[:3]]
    async with transaction(engine) as connection:
        await build_claims.save(connection, before, NOON)
    claims = [BuildClaim(each, 2, f"r{number + 2}") for number, each in enumerate(ids)]
    decisions: list[ClaimDecision | DeadLetterReason] = [
        ClaimDecision(ClaimOutcome.REPEATED), ClaimDecision(ClaimOutcome.GRANTED),
        ClaimDecision(ClaimOutcome.TAKEN, "r1"), ClaimDecision(ClaimOutcome.GRANTED),
        DeadLetterReason.UNTRUSTED_SENDER, ClaimDecision(ClaimOutcome.GONE),
    ]  # fmt: skip
    async with noting(engine) as (connection, noted):
        await related_rows.save_claims(connection, claims, decisions, LATER)
        await related_rows.save_claims(connection, claims[4:], decisions[4:], LATER)
    assert noted == ["INSERT INTO build_claims"]
    async with transaction(engine) as connection:
        saved = await connection.execute(text("SELECT task_id, build_number, runner, claimed_at FROM build_claims"))
        assert {tuple(row) for row in saved} == {
            (ids[0], 1, "r1", NOON), (ids[1], 2, "r3", LATER), (ids[2], 1, "r1", NOON), (ids[3], 2, "r5", LATER)
        }  # fmt: skip
        assert await build_claims.latest(connection, ids[1:2]) == {ids[1]: claims[1]}


async def test_reports_are_parked_until_their_task_is_there(engine: AsyncEngine) -> None:
    """With the number of the first build if they have none; those beyond the limit of their task are named."""
    reports = {
        3: status(ONE, 2, "two"), 4: status(TWO, 4, "four"), 5: status(ONE, None, "none"), 8: status(ONE, 3, "three"),
        9: status(TWO, None, "of another task"),
    }  # fmt: skip
    async with transaction(engine) as connection:
        await parked_reports.park(connection, [ReportToPark(TWO, NOON, '{"n":1}')], 9)
    async with noting(engine) as (connection, noted):
        assert await related_rows.save_parking(connection, ParkingChanges(dict(reports)), LATER, 2) == [8, 9]
    assert noted == ["INSERT INTO parked"]
    first_build = canonical_json(replace(reports[5], build_number=1))
    assert await parked(engine) == [
        (TWO, NOON, '{"n":1}'), (ONE, LATER, canonical_json(reports[3])), (TWO, LATER, canonical_json(reports[4])),
        (ONE, LATER, first_build),
    ]  # fmt: skip


async def test_parked_reports_that_were_folded_are_deleted(engine: AsyncEngine) -> None:
    """And only those, also if others are parked by the same batch."""
    async with transaction(engine) as connection:
        new = [ReportToPark(task_id, NOON, f'{{"n":{n}}}') for n, task_id in enumerate((ONE, TWO, ONE, TWO, THREE))]
        await parked_reports.park(connection, new, 9)
        rows = await parked_reports.lock(connection, [ONE, TWO, THREE])
    async with noting(engine) as (connection, noted):
        folded = ParkingChanges(folded=[rows[0].id, rows[2].id])
        assert await related_rows.save_parking(connection, folded, LATER, 1) == []
    assert noted == ["DELETE FROM parked"]
    assert [each for _, _, each in await parked(engine)] == ['{"n":1}', '{"n":3}', '{"n":4}']
    both = ParkingChanges({6: status(ONE, 5, "late")}, [rows[1].id, rows[4].id])
    async with noting(engine) as (connection, noted):
        assert await related_rows.save_parking(connection, both, LATER, 1) == []
    assert noted == ["DELETE FROM parked", "INSERT INTO parked"]
    assert [(task_id, at) for task_id, at, _ in await parked(engine)] == [(TWO, NOON), (ONE, LATER)]
