"""The fold: order, repetition and batching do not matter, and the view is that of the contract."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    Health,
    InputOutcome,
    InputOutcomeReport,
    JobStatus,
    Lifecycle,
    LogEntry,
    LogSource,
    TaskLog,
    Transition,
    Workspace,
    WorkspaceBuild,
)
from taskherd.domain.task import Facet
from taskherd.domain.value import replace
from tests.harness.histories import AGENTS, NOON, TASK, corpus, histories, randoms, shuffled_batches
from tests.pure.domain.mutated_core import Core, unchanged_core
from tests.pure.domain.oracle import expected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.domain.reports import Report

SILENCES = (timedelta(), timedelta(seconds=31), timedelta(seconds=121))
SECOND = timedelta(seconds=1)
HISTORIES = corpus(120)


@cache
def _expected_views() -> list[list[dict[str, Any]]]:
    return [[expected(reports, silence) for silence in SILENCES] for reports in HISTORIES]


def test_histories_contain_every_facet() -> None:
    """The random histories contain reports of every type that is folded into a facet."""
    assert {type(report) for reports in HISTORIES for report in reports} == set(get_args(Facet))


def timeouts(core: Core) -> Any:
    """Return the timeouts of the contract."""
    return core.liveness.Timeouts(
        agent_lost_after=timedelta(seconds=30),
        agent_connect_timeout=timedelta(seconds=120),
        build_timeout=timedelta(minutes=30),
        request_ttl=timedelta(minutes=10),
        mass_silence_hold=timedelta(minutes=5),
        interrupt_timeout=timedelta(seconds=60),
    )


def folded(core: Core, reports: Iterable[Report], state: Any = None) -> Any:
    """Return the state of a task created at noon, or ``state``, after these reports, all received at noon."""
    state = state or core.builds.initial_state(TASK, NOON)
    for report in reports:
        state = core.fold.fold(state, report, NOON).state
    return state


def view_of(core: Core, state: Any, silence: timedelta = timedelta()) -> dict[str, Any]:
    """Return the view after ``silence``, with ids as in JSON, and without the timestamp of the current state."""
    checked = core.liveness.detect_loss(state, NOON, NOON + silence, timeouts(core))
    view = asdict(core.view.derive_view(checked, "task-name"))
    if view["current_state"]:
        del view["current_state"]["timestamp"]
    if view["agent_exit"]:
        del view["agent_exit"]["at"]
    return {name: str(value) if name.endswith("_id") and value else value for name, value in view.items()}


def build(number: int = 1, seq: int = 0, job: JobStatus = JobStatus.RUNNING, **more: Any) -> WorkspaceBuild:
    """Return a build report, of a start by default."""
    fields: dict[str, Any] = {"transition": Transition.START, **more}
    return WorkspaceBuild(task_id=TASK, build_number=number, seq=seq, job_status=job, **fields)


def heartbeat(number: int = 1, seq: int = 0, **more: Any) -> AgentHeartbeat:
    """Return a heartbeat."""
    return AgentHeartbeat(task_id=TASK, build_number=number, seq=seq, **more)


def disconnected(number: int = 1, seq: int = 0, **more: Any) -> AgentDisconnected:
    """Return the report of a deliberate disconnect."""
    return AgentDisconnected(task_id=TASK, build_number=number, seq=seq, **more)


def lifecycle(at: Lifecycle = Lifecycle.READY, number: int = 1, seq: int = 0, **more: Any) -> AgentLifecycle:
    """Return a lifecycle report."""
    return AgentLifecycle(task_id=TASK, build_number=number, seq=seq, lifecycle=at, **more)


def status(state: AgentState = AgentState.IDLE, number: int = 1, seq: int = 0, **more: Any) -> AppStatus:
    """Return an app status."""
    return AppStatus(task_id=TASK, build_number=number, seq=seq, state=state, **more)


def test_any_order_gives_the_view_of_the_contract(core: Core) -> None:
    """Whatever the order, repetition and batching of a history, the view is that of the contract."""
    rng = Random(5)
    for reports, views in zip(HISTORIES, _expected_views(), strict=True):
        for _ in range(2):
            state = folded(core, (report for batch in shuffled_batches(rng, reports) for report in batch))
            for silence, view in zip(SILENCES, views, strict=True):
                assert view_of(core, state, silence) == view


@settings(max_examples=300, deadline=None)
@given(reports=histories(), rng=randoms(), silence=st.sampled_from(SILENCES))
def test_order_repetition_and_batching_do_not_change_the_view(
    reports: list[Report], rng: Random, silence: timedelta
) -> None:
    """Any permutation, duplication and batching of the same reports gives the same view at the same time."""
    core = unchanged_core()
    in_order = view_of(core, folded(core, reports), silence)
    batches = shuffled_batches(rng, reports)
    assert view_of(core, folded(core, (report for batch in batches for report in batch)), silence) == in_order
    assert in_order == expected(reports, silence)


@settings(max_examples=100, deadline=None)
@given(reports=histories(), rng=randoms())
def test_order_does_not_change_the_task_state(reports: list[Report], rng: Random) -> None:
    """The whole task state is the same, not only the view, if all reports are received at one time."""
    core = unchanged_core()
    shuffled = [report for batch in shuffled_batches(rng, reports) for report in batch]
    assert folded(core, reports) == folded(core, shuffled)


def test_a_repeated_report_is_stale(core: Core) -> None:
    """A report that was folded before changes nothing, and its outcome is stale."""
    health = AppHealth(task_id=TASK, build_number=1, seq=3, health=Health.HEALTHY)
    for report in (build(seq=3, agent_id=AGENTS[0]), lifecycle(seq=3), disconnected(seq=3), health, status(seq=3)):
        state = folded(core, [report])
        again = core.fold.fold(state, report, NOON + SECOND)
        assert again.outcome is ReportOutcome.STALE
        assert again.state is state
        assert core.fold.fold(core.builds.initial_state(TASK, NOON), report, NOON).outcome is ReportOutcome.APPLIED


def test_the_greater_canonical_json_wins_a_tie(core: Core) -> None:
    """Of two reports with the same build number and seq, the one with the greater canonical JSON is kept."""
    low, high = status(message="a"), status(message="b")
    for order in ([low, high], [high, low]):
        assert folded(core, order).app_status.report is high


def test_a_build_report_that_contradicts_the_request_is_a_conflict(core: Core) -> None:
    """A build report with another transition than requested changes nothing; one of an unrequested build is folded."""
    state = core.builds.initial_state(TASK, NOON)
    refused = core.fold.fold(state, build(1, 5, transition=Transition.STOP, agent_id=AGENTS[0]), NOON)
    assert refused.outcome is ReportOutcome.CONFLICT
    assert refused.state is state
    unrequested = core.fold.fold(state, build(2, 5, transition=Transition.STOP), NOON)
    assert unrequested.outcome is ReportOutcome.APPLIED
    assert unrequested.state.build_number == 2


def test_a_missing_build_number_means_the_latest_build(core: Core) -> None:
    """Without a build number a report is about the latest build, or build 1 if there is no task."""
    numbered = heartbeat(seq=9)
    unnumbered = AgentHeartbeat(task_id=TASK, build_number=None, seq=9)
    state = folded(core, [build(4)])
    assert core.fold.with_build_number(unnumbered, state).build_number == 4
    assert core.fold.with_build_number(unnumbered, None).build_number == 1
    assert core.fold.with_build_number(numbered, state) is numbered


def test_which_build_numbers_are_out_of_range(core: Core) -> None:
    """A build number may be up to 1,000 above the highest requested one, and none is too low."""
    state = core.builds.initial_state(TASK, NOON)
    assert [
        number for number in (1, 1_001, 1_002, 2**31 - 1) if core.fold.is_out_of_range(heartbeat(number), state)
    ] == [
        1_002,
        2**31 - 1,
    ]
    reported = core.fold.fold(state, build(900, job=JobStatus.SUCCEEDED), NOON).state
    assert core.fold.is_out_of_range(heartbeat(1_002), reported)
    requested = core.builds.request_next_build(TASK, reported, Transition.STOP, NOON)
    assert [number for number in (1, 1_901, 1_902) if core.fold.is_out_of_range(heartbeat(number), requested)] == [
        1_902
    ]
    unnumbered = AgentHeartbeat(task_id=TASK, build_number=None, seq=9)
    assert not core.fold.is_out_of_range(unnumbered, state)
    foreign = replace(state, requested_builds={})
    assert [number for number in (1_001, 1_002) if core.fold.is_out_of_range(heartbeat(number), foreign)] == [1_002]


def test_only_the_16_highest_builds_are_kept(core: Core) -> None:
    """The 16 highest builds are kept, whatever their number and order."""
    numbers = list(range(1, 60))
    Random(2).shuffle(numbers)
    state = folded(core, [heartbeat(number) for number in numbers])
    assert sorted(state.last_heartbeat) == sorted(state.first_seen) == list(range(44, 60))


def test_first_seen_is_kept_and_last_heartbeat_is_updated(core: Core) -> None:
    """``first_seen`` is the time of the first report, ``last_heartbeat`` that of the last one, even if stale."""
    state = folded(core, [lifecycle()])
    later = core.fold.fold(state, lifecycle(Lifecycle.READY, seq=5), NOON + SECOND).state
    connected = core.fold.fold(later, heartbeat(seq=9), NOON + 2 * SECOND).state
    stale = core.fold.fold(connected, heartbeat(seq=1), NOON + 3 * SECOND).state
    assert stale.first_seen == {1: NOON}
    assert stale.last_heartbeat == {1: NOON + 3 * SECOND}
    assert stale.connection.report.seq == 9


def test_which_reports_set_first_seen(core: Core) -> None:
    """A build that names an agent, a lifecycle, a heartbeat and a disconnect set ``first_seen``; nothing else does."""
    of_agent = (build(2, agent_id=AGENTS[0]), lifecycle(number=2), heartbeat(2), disconnected(2))
    for report in of_agent:
        assert folded(core, [report]).first_seen == {2: NOON}
    health = AppHealth(task_id=TASK, build_number=2, seq=0, health=Health.HEALTHY)
    others = (build(2), status(number=2), health)
    for other in others:
        assert folded(core, [other]).first_seen == {}


def test_only_heartbeats_set_last_heartbeat(core: Core) -> None:
    """Disconnects, lifecycles and other reports never set ``last_heartbeat``."""
    assert folded(core, [disconnected(), lifecycle(), status(), build(agent_id=AGENTS[0])]).last_heartbeat == {}


def test_a_heartbeat_ends_the_silence_of_its_build(core: Core) -> None:
    """A heartbeat with any seq ends the silence of its own build, and of no other."""
    state = folded(core, [build(), heartbeat(seq=9)])
    silent = core.liveness.detect_loss(state, NOON, NOON + 31 * SECOND, timeouts(core))
    assert silent.silence.lost
    assert folded(core, [heartbeat(seq=1)], silent).silence is None
    assert folded(core, [heartbeat(2, seq=9)], silent).silence == silent.silence
    assert folded(core, [lifecycle(seq=9), status(seq=9), build(seq=9)], silent).silence == silent.silence


def test_a_request_is_answered_by_its_build(core: Core) -> None:
    """Any build report of the requested build answers the request; other builds and other types of reports do not."""
    requested = core.builds.initial_state(TASK, NOON)
    assert requested.unanswered_build == 1
    assert folded(core, [build(1)]).unanswered_build is None
    assert folded(core, [build(2), heartbeat(1), lifecycle(number=1)]).unanswered_build == 1


def test_a_later_report_ends_the_timeout_of_a_build(core: Core) -> None:
    """A timed-out build counts as failed until a report replaces its facet, even one with the same seq."""
    state = folded(core, [build(error="a")])
    timed_out = core.liveness.time_out_build(state, NOON, NOON + timedelta(minutes=31), timeouts(core))
    assert timed_out.job_status == "failed"
    assert not timed_out.has_active_build
    assert folded(core, [build(error="a")], timed_out).job_status == "failed"
    assert folded(core, [build(seq=1)], timed_out).job_status == "running"
    assert folded(core, [build(error="b")], timed_out).job_status == "running"
    assert folded(core, [build(2)], timed_out).job_status == "running"


def test_a_build_replaces_only_the_facets_it_names(core: Core) -> None:
    """Workspace, runner, agent and app are each taken from the latest build report that names one."""
    naming: dict[str, dict[str, Any]] = {
        "workspace": {"workspace": Workspace(UUID(int=8), "w")},
        "runner": {"runner": "r1"},
        "agent": {"agent_id": AGENTS[0]},
        "app": {"app": App(UUID(int=9), "web")},
    }
    for facet, named in naming.items():
        earlier, later = build(seq=1, **named), build(seq=2)
        for order in ([earlier, later], [later, earlier]):
            state = folded(core, order)
            assert getattr(state, facet).report is earlier
            assert state.build.report is later
            assert [getattr(state, other) for other in naming if other != facet] == [None] * 3


def test_logs_and_input_outcomes_do_not_change_the_task_state(core: Core) -> None:
    """Log entries and input outcomes are not part of the task state."""
    state = core.builds.initial_state(TASK, NOON)
    entry = LogEntry(0, LogSource.INPUT, "hello", NOON)
    log = TaskLog(task_id=TASK, build_number=1, seq=0, entries=(entry,))
    outcome = InputOutcomeReport(task_id=TASK, build_number=1, seq=0, input_id=TASK, outcome=InputOutcome.DELIVERED)
    for report in (log, outcome):
        assert core.fold.fold(state, report, NOON) == core.fold.FoldResult(state, ReportOutcome.APPLIED)


def test_canonical_json() -> None:
    """Keys are sorted at every level, absent fields omitted, texts not escaped, and ``failure`` is not renamed."""
    assert canonical_json(status(AgentState.FAILURE, message="é", observed_at=NOON)) == (
        '{"build_number":1,"message":"é","observed_at":"2026-03-01T12:00:00.000000Z","seq":0,"state":"failure",'
        f'"task_id":"{TASK}","type":"app.status"}}'
    )
