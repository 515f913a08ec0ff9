"""What a batch writes beside its tasks: inputs, logs, claims, parked reports and work requests; without a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid5

import pytest

from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import InputOutcome, InputOutcomeReport, LogEntry, LogSource, TaskLog, Transition
from taskherd.domain.updates import AcceptedInput, TaskUpdate
from taskherd.domain.value import replace
from taskherd.store import build_claims, inputs, logs, parked_reports, work_requests
from taskherd.store.directory import Owner, Preset, TemplateVersion
from taskherd.store.inputs import InputOutcomeRow, NewInput
from taskherd.store.logs import AppendResult, FullLog, LogEntryRow, LogLimits
from taskherd.store.parked_reports import ReportToPark
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker import related_rows
from taskherd.worker.batch import ParkingChanges
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, status

ONE, TWO, THREE, ACTOR, OTHER = (UUID(int=number) for number in (11, 12, 13, 14, 15))
CONNECTION: Any = "connection"
LATER = NOON + timedelta(minutes=1)
LIMITS = LogLimits(100, 1_000)


class Store:
    """The statements that were run, each with what it was given."""

    def __init__(self) -> None:
        self.run: list[tuple[Any, ...]] = []
        self.open: list[Any] = []
        self.full: list[FullLog] = []
        self.overflow: list[int] = []

    def statement(self, name: str, result: Callable[[], Any]) -> Callable[..., Any]:
        """Return a function that notes what it is given."""

        async def run(connection: object, *arguments: Any) -> Any:
            assert connection is CONNECTION
            self.run.append((name, *arguments))
            return result()

        return run


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the statements of a store."""
    store = Store()
    results: dict[str, Callable[[], Any]] = {
        "logs.append": lambda: AppendResult(0, store.full),
        "work_requests.of_tasks": lambda: store.open,
        "parked_reports.park": lambda: store.overflow,
    }
    for module, names in (
        (inputs, ("append", "record_outcomes", "fail_all", "requeue", "mark_sent")),
        (logs, ("append", "write_notice")),
        (
            work_requests,
            ("delete_of_builds", "delete_of_inputs", "delete_of_interrupts", "delete_of_answers", "of_tasks", "delete"),
        ),
        (build_claims, ("save",)),
        (parked_reports, ("delete", "park")),
    ):
        for name in names:
            label = f"{module.__name__.rpartition('.')[2]}.{name}"
            monkeypatch.setattr(module, name, store.statement(label, results.get(label, lambda: None)))
    return store


def update(state: Any = None, **fields: Any) -> TaskUpdate:
    """Return the update of a task with this state."""
    task = make_task(TASK, state=state or folded(unchanged_core(), [build(runner="r1")]))
    return TaskUpdate(task, task, **fields)


async def save(saved: TaskUpdate, *others: TaskUpdate) -> None:
    """Save all that is beside these tasks."""
    updates = {TASK: saved, **{UUID(int=100 + number): each for number, each in enumerate(others)}}
    await related_rows.save_inbox(CONNECTION, updates, LATER)
    await related_rows.save_logs(CONNECTION, updates, LIMITS, LATER)
    await related_rows.close_requests(CONNECTION, updates)
    await related_rows.save_claims(CONNECTION, [], [], LATER)
    assert await related_rows.save_parking(CONNECTION, ParkingChanges(), LATER, 7) == []


async def test_what_did_not_change_costs_no_statement(store: Store) -> None:
    """Most reports change nothing beside their task."""
    await save(update(), update())
    assert store.run == []


async def test_inputs_are_appended_decided_sent_and_queued_again(store: Store) -> None:
    """Each with its task, and the requests of those that are decided or queued again are closed."""
    outcome = InputOutcomeReport(
        task_id=TASK, build_number=1, seq=0, input_id=TWO, outcome=InputOutcome.FAILED, detail="it was busy"
    )
    changed = update(
        new_inputs=[AcceptedInput(ONE, "Do it", ACTOR, steers=True)], input_outcomes=[outcome], requeued_input=THREE,
        sent_input=ONE,
    )  # fmt: skip
    await save(changed, update())
    assert store.run == [
        ("inputs.append", [NewInput(ONE, TASK, "Do it", LATER, ACTOR, steers=True)]),
        ("inputs.record_outcomes", [InputOutcomeRow(TWO, TASK, "failed", LATER, "it was busy")]),
        ("inputs.requeue", [THREE]),
        ("inputs.mark_sent", [ONE], LATER),
        ("work_requests.delete_of_inputs", [(TASK, TWO), (TASK, THREE)]),
    ]


async def test_a_delete_fails_all_inputs(store: Store) -> None:
    """And closes their requests, but not those of builds."""
    store.open = [SimpleNamespace(request_id=ONE, input_id=TWO), SimpleNamespace(request_id=TWO, input_id=None)]
    await save(update(inputs_failed=True), update())
    assert store.run == [
        ("inputs.fail_all", [TASK], LATER, "The task was deleted."),
        ("work_requests.of_tasks", [TASK]),
        ("work_requests.delete", [ONE]),
    ]


async def test_requests_that_were_answered_are_closed(store: Store) -> None:
    """Those of builds, interrupts and answers, each of its task."""
    await save(update(closed_requests=[2, 3], closed_interrupt=ONE, closed_answers=[TWO, THREE]), update())
    assert store.run == [
        ("work_requests.delete_of_builds", [(TASK, 2), (TASK, 3)]),
        ("work_requests.delete_of_interrupts", [(TASK, ONE)]),
        ("work_requests.delete_of_answers", [(TASK, TWO), (TASK, THREE)]),
    ]


async def test_log_entries_are_appended_in_order(store: Store) -> None:
    """With the build and seq of their report; a log that is full says what was left out."""
    entries = tuple(
        LogEntry(number, LogSource.OUTPUT, f"line {number}", NOON + number * timedelta(seconds=1), data=f'"{number}"')
        for number in (5, 6)
    )
    report = TaskLog(task_id=TASK, build_number=3, seq=4, entries=entries)
    store.full = [FullLog(TASK, 9, 20, 300, NOON, is_new=True)]
    await save(update(logs=[report, replace(report, build_number=7, seq=8, entries=entries[:1])]), update())
    appended, notice = store.run
    name, rows, at, limits = appended
    assert (name, at, limits) == ("logs.append", LATER, LIMITS)
    assert [(row.build_number, row.seq, row.entry_id) for row in rows] == [(3, 4, 5), (3, 4, 6), (7, 8, 5)]
    assert rows[0] == LogEntryRow(
        TASK, 3, 5, 4, "output", "line 5", NOON + timedelta(seconds=5), None, None, None, '"5"'
    )
    text = (
        "taskherd: this log is full. 20 entries with 300 bytes were left out since 2026-03-01T12:00:00Z. "
        "The limit is 100 entries and 1000 bytes."
    )
    assert notice == ("logs.write_notice", store.full[0], 1, text, LATER)


async def test_claims_that_were_granted_first_are_saved(store: Store) -> None:
    """Not those that were granted before, nor one of a sender that may not claim."""
    claims = [BuildClaim(UUID(int=number), 1, "r1") for number in range(4)]
    decisions: list[ClaimDecision | DeadLetterReason] = [
        ClaimDecision(ClaimOutcome.REPEATED), ClaimDecision(ClaimOutcome.GRANTED), DeadLetterReason.UNTRUSTED_SENDER,
        ClaimDecision(ClaimOutcome.TAKEN, "r2"),
    ]  # fmt: skip
    await related_rows.save_claims(CONNECTION, claims, decisions, LATER)
    assert store.run == [("build_claims.save", [claims[1]], LATER)]


async def test_reports_are_parked_until_their_task_is_there(store: Store) -> None:
    """With the number of the first build if they have none; those that were folded are deleted."""
    reports = {3: status(number=2, message="two"), 5: replace(status(message="none"), build_number=None)}
    store.overflow = [1]
    assert await related_rows.save_parking(CONNECTION, ParkingChanges(dict(reports), [8, 9]), LATER, 7) == [5]
    rows = [
        ReportToPark(TASK, LATER, canonical_json(reports[3])),
        ReportToPark(TASK, LATER, canonical_json(replace(reports[5], build_number=1))),
    ]
    assert store.run == [("parked_reports.delete", [8, 9]), ("parked_reports.park", rows, 7)]
    store.run.clear()
    assert await related_rows.save_parking(CONNECTION, ParkingChanges(folded=[4]), LATER, 7) == []
    assert store.run == [("parked_reports.delete", [4])]


def test_requests_for_what_a_batch_decided() -> None:
    """A build, an input, an interrupt and an answer, each with an id that is the same if it is decided again."""
    state = replace(folded(unchanged_core(), [build(2, runner="r1")]), requested_builds={3: Transition.STOP})
    changed = update(
        state, requested_builds=[3], sent_input=ONE, opened_interrupt=TWO, opened_answers={THREE: "r2", OTHER: None}
    )
    assert related_rows.new_requests({TASK: update(), ONE: changed}, LATER) == [
        WorkRequestRow(uuid5(TASK, "request/3"), TASK, 3, "workspace.stop", None, "r1", 0, LATER, LATER, None),
        WorkRequestRow(ONE, TASK, 2, "agent.input", ONE, "r1", 0, LATER, LATER, None),
        WorkRequestRow(
            uuid5(TASK, f"interrupt/{TWO}"), TASK, 2, "agent.interrupt", None, "r1", 0, LATER, LATER, None, TWO
        ),
        WorkRequestRow(
            uuid5(TASK, f"answer/{THREE}"), TASK, 2, "agent.answer", None, "r2", 0, LATER, LATER, None, None, THREE
        ),
        WorkRequestRow(
            uuid5(TASK, f"answer/{OTHER}"), TASK, 2, "agent.answer", None, None, 0, LATER, LATER, None, None, OTHER
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"requested_builds": [1]}, "workspace.start"),
        ({"sent_input": ONE}, "agent.input"),
        ({"opened_interrupt": ONE}, "agent.interrupt"),
        ({"opened_answers": {ONE: None}}, "agent.answer"),
    ],
)
def test_one_decision_is_one_request(fields: dict[str, Any], kind: str) -> None:
    """To no runner if none is known."""
    state = replace(folded(unchanged_core(), [build()]), requested_builds={1: Transition.START})
    (row,) = related_rows.new_requests({TASK: update(state, **fields)}, LATER)
    assert (row.type, row.target_runner, row.attempt) == (kind, None, 0)


def test_the_details_of_a_new_task_are_known_without_reading_them() -> None:
    """Those of one that existed are read when its requests are sent."""
    version = TemplateVersion(
        UUID(int=4), UUID(int=3), UUID(int=2), "v1", {"pool": "gpu"}, usable=True,
        presets={ONE: Preset("Small", {"size": "small"})},
    )  # fmt: skip
    owner = Owner(UUID(int=1), "alice", active=True, organizations=frozenset())
    entries = DirectoryEntries({owner.id: owner}, {version.id: version})
    task = make_task(TASK, preset_id=ONE, prompt="Do it")
    expected = WorkRequestDetails(
        task_id=TASK, task_name=task.name, owner_id=owner.id, owner_username="alice", template_version_id=version.id,
        prompt="Do it", run={"pool": "gpu"}, preset_id=ONE, preset_name="Small", preset_parameters={"size": "small"},
    )  # fmt: skip
    assert related_rows.request_details(TaskUpdate(None, task), entries) == expected
    bare = dataclasses.replace(expected, preset_id=None, preset_name=None, preset_parameters=None)
    assert related_rows.request_details(TaskUpdate(None, replace(task, preset_id=None)), entries) == bare
    assert related_rows.request_details(TaskUpdate(task, task), NO_ENTRIES) is None
    assert related_rows.request_details(TaskUpdate(None, None), NO_ENTRIES) is None
