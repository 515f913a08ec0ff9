"""The fold: order, repetition and batching do not matter, and what comes out is what the contract says."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from taskherd.domain.outcome import ReportOutcome
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
    JobStatus,
    Lifecycle,
    LogEntry,
    LogSource,
    TaskInput,
    TaskLog,
    Transition,
    Workspace,
    WorkspaceBuild,
    canonical_json,
)
from tests.harness.histories import AGENTS, NOON, TASK, corpus, delivered, dice, histories
from tests.pure.domain.mutated_core import Core, whole
from tests.pure.domain.oracle import expected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.domain.reports import Report

QUIETS = (timedelta(), timedelta(seconds=31), timedelta(seconds=121))
SECOND = timedelta(seconds=1)
HISTORIES = corpus(120)


@cache
def _answers() -> list[list[dict[str, Any]]]:
    return [[expected(told, quiet) for quiet in QUIETS] for told in HISTORIES]


def patience(core: Core) -> Any:
    """The timers of the contract."""
    return core.liveness.Timeouts(
        agent_lost_after=timedelta(seconds=30),
        agent_connect_timeout=timedelta(seconds=120),
        build_timeout=timedelta(minutes=30),
        request_ttl=timedelta(minutes=10),
        mass_silence_hold=timedelta(minutes=5),
    )


def folded(core: Core, reports: Iterable[Report], memory: Any = None) -> Any:
    """The memory of a task that was created at noon, or of ``memory``, after these reports, all taken at noon."""
    memory = memory or core.builds.initial_state(TASK, NOON)
    for report in reports:
        memory = core.fold.fold(memory, report, NOON).state
    return memory


def seen(core: Core, memory: Any, quiet: timedelta = timedelta()) -> dict[str, Any]:
    """What a reader sees after ``quiet``, as JSON would have it, without the one timestamp."""
    judged = core.liveness.detect_loss(memory, NOON, NOON + quiet, patience(core))
    shown = asdict(core.view.derive_view(judged, "task-name"))
    if shown["current_state"]:
        del shown["current_state"]["timestamp"]
    return {name: str(value) if name.endswith("_id") and value else value for name, value in shown.items()}


def build(number: int = 1, seq: int = 0, job: JobStatus = JobStatus.RUNNING, **more: Any) -> WorkspaceBuild:
    """A build report, of a start unless it says otherwise."""
    fields: dict[str, Any] = {"transition": Transition.START, **more}
    return WorkspaceBuild(task_id=TASK, build_number=number, seq=seq, job_status=job, **fields)


def heartbeat(number: int = 1, seq: int = 0, **more: Any) -> AgentHeartbeat:
    """A heartbeat."""
    return AgentHeartbeat(task_id=TASK, build_number=number, seq=seq, **more)


def goodbye(number: int = 1, seq: int = 0, **more: Any) -> AgentDisconnected:
    """A goodbye."""
    return AgentDisconnected(task_id=TASK, build_number=number, seq=seq, **more)


def lifecycle(at: Lifecycle = Lifecycle.READY, number: int = 1, seq: int = 0, **more: Any) -> AgentLifecycle:
    """A lifecycle report."""
    return AgentLifecycle(task_id=TASK, build_number=number, seq=seq, lifecycle=at, **more)


def status(state: AgentState = AgentState.IDLE, number: int = 1, seq: int = 0, **more: Any) -> AppStatus:
    """An app status."""
    return AppStatus(task_id=TASK, build_number=number, seq=seq, state=state, **more)


def test_any_order_ends_as_the_contract_says(core: Core) -> None:
    """Whatever order, repetition and batching a history comes in, a reader sees what the contract says of it."""
    source = Random(5)
    for told, answers in zip(HISTORIES, _answers(), strict=True):
        for _ in range(2):
            state = folded(core, (report for batch in delivered(source, told) for report in batch))
            for quiet, answer in zip(QUIETS, answers, strict=True):
                assert seen(core, state, quiet) == answer


@settings(max_examples=300, deadline=None)
@given(told=histories(), source=dice(), quiet=st.sampled_from(QUIETS))
def test_converges(told: list[Report], source: Random, quiet: timedelta) -> None:
    """Any permutation, duplication and batching of the same reports ends in the same view, judged at one now."""
    core = whole()
    straight = seen(core, folded(core, told), quiet)
    batches = delivered(source, told)
    assert seen(core, folded(core, (report for batch in batches for report in batch)), quiet) == straight
    assert straight == expected(told, quiet)


@settings(max_examples=100, deadline=None)
@given(told=histories(), source=dice())
def test_the_whole_memory_converges(told: list[Report], source: Random) -> None:
    """Not the view alone: the memory itself, its maps included, is the same after any order taken at one instant."""
    core = whole()
    shuffled = [report for batch in delivered(source, told) for report in batch]
    assert folded(core, told) == folded(core, shuffled)


def test_a_repeat_is_stale(core: Core) -> None:
    """A report already folded in, or a lower one, changes nothing and is called stale."""
    health = AppHealth(task_id=TASK, build_number=1, seq=3, health=Health.HEALTHY)
    for report in (build(seq=3, agent_id=AGENTS[0]), lifecycle(seq=3), goodbye(seq=3), health, status(seq=3)):
        state = folded(core, [report])
        again = core.fold.fold(state, report, NOON + SECOND)
        assert again.outcome is ReportOutcome.STALE
        assert again.state is state
        assert core.fold.fold(core.builds.initial_state(TASK, NOON), report, NOON).outcome is ReportOutcome.APPLIED


def test_the_greater_canonical_json_wins_a_tie(core: Core) -> None:
    """Of two reports with one build number and seq the one with the greater canonical JSON is kept."""
    low, high = status(message="a"), status(message="b")
    for order in ([low, high], [high, low]):
        assert folded(core, order).app_status.report is high


def test_conflict(core: Core) -> None:
    """A build report that contradicts what the worker asked for changes nothing; one it never asked for is taken."""
    state = core.builds.initial_state(TASK, NOON)
    refused = core.fold.fold(state, build(1, 5, transition=Transition.STOP, agent_id=AGENTS[0]), NOON)
    assert refused.outcome is ReportOutcome.CONFLICT
    assert refused.state is state
    taken = core.fold.fold(state, build(2, 5, transition=Transition.STOP), NOON)
    assert taken.outcome is ReportOutcome.APPLIED
    assert taken.state.number == 2


def test_a_missing_build_number_is_the_latest(core: Core) -> None:
    """Without a build number a report is about the latest build when it is taken; 1 while there is no task."""
    bare = heartbeat(seq=9)
    unnumbered = AgentHeartbeat(task_id=TASK, build_number=None, seq=9)
    state = folded(core, [build(4)])
    assert core.fold.with_build_number(unnumbered, state).build_number == 4
    assert core.fold.with_build_number(unnumbered, None).build_number == 1
    assert core.fold.with_build_number(bare, state) is bare


def test_a_memory_is_bounded(core: Core) -> None:
    """However many builds are heard of, the 16 highest are remembered, in whatever order they come."""
    numbers = list(range(1, 60))
    Random(2).shuffle(numbers)
    state = folded(core, [heartbeat(number) for number in numbers])
    assert sorted(state.last_heartbeat) == sorted(state.first_seen) == list(range(44, 60))


def test_the_first_appearance_stands_and_the_last_heartbeat_counts(core: Core) -> None:
    """An agent appeared when we first took a word of it; it was last heard when we took its latest heartbeat."""
    state = folded(core, [lifecycle()])
    later = core.fold.fold(state, lifecycle(Lifecycle.READY, seq=5), NOON + SECOND).state
    heard = core.fold.fold(later, heartbeat(seq=9), NOON + 2 * SECOND).state
    stale = core.fold.fold(heard, heartbeat(seq=1), NOON + 3 * SECOND).state
    assert stale.first_seen == {1: NOON}
    assert stale.last_heartbeat == {1: NOON + 3 * SECOND}
    assert stale.connection.report.seq == 9


def test_what_makes_an_agent_appear(core: Core) -> None:
    """A build that names an agent, a lifecycle, a heartbeat and a goodbye set the appearance; nothing else does."""
    makers = (build(2, agent_id=AGENTS[0]), lifecycle(number=2), heartbeat(2), goodbye(2))
    for report in makers:
        assert folded(core, [report]).first_seen == {2: NOON}
    health = AppHealth(task_id=TASK, build_number=2, seq=0, health=Health.HEALTHY)
    others = (build(2), status(number=2), health)
    for other in others:
        assert folded(core, [other]).first_seen == {}


def test_only_a_heartbeat_is_heard(core: Core) -> None:
    """A goodbye and a lifecycle never set last-heard."""
    assert folded(core, [goodbye(), lifecycle(), status(), build(agent_id=AGENTS[0])]).last_heartbeat == {}


def test_a_heartbeat_ends_the_silence_of_its_build(core: Core) -> None:
    """A heartbeat, whatever its seq, ends a silence found in its own build, and in no other."""
    state = folded(core, [build(), heartbeat(seq=9)])
    silent = core.liveness.detect_loss(state, NOON, NOON + 31 * SECOND, patience(core))
    assert silent.silence.lost
    assert folded(core, [heartbeat(seq=1)], silent).silence is None
    assert folded(core, [heartbeat(2, seq=9)], silent).silence == silent.silence
    assert folded(core, [lifecycle(seq=9), status(seq=9), build(seq=9)], silent).silence == silent.silence


def test_a_request_is_answered_by_its_build(core: Core) -> None:
    """Any build report of a requested build answers the request; one of another build or another kind does not."""
    asked = core.builds.initial_state(TASK, NOON)
    assert asked.pending_build == 1
    assert folded(core, [build(1)]).pending_build is None
    assert folded(core, [build(2), heartbeat(1), lifecycle(number=1)]).pending_build == 1


def test_a_later_word_ends_giving_up(core: Core) -> None:
    """A build that was given up counts as failed until a later report of it is folded, a clash included."""
    state = folded(core, [build(error="a")])
    given_up = core.liveness.time_out_build(state, NOON, NOON + timedelta(minutes=31), patience(core))
    assert given_up.job == "failed"
    assert not given_up.active
    assert folded(core, [build(error="a")], given_up).job == "failed"
    assert folded(core, [build(seq=1)], given_up).job == "running"
    assert folded(core, [build(error="b")], given_up).job == "running"
    assert folded(core, [build(2)], given_up).job == "running"


def test_a_build_replaces_only_the_facets_it_names(core: Core) -> None:
    """Workspace, runner, agent and app are each that of the latest build report that names one."""
    naming: dict[str, dict[str, Any]] = {
        "workspace": {"workspace": Workspace(UUID(int=8), "w")},
        "runner": {"runner": "r1"},
        "agent": {"agent_id": AGENTS[0]},
        "app": {"app": App(UUID(int=9), "web")},
    }
    for facet, named in naming.items():
        names, silent = build(seq=1, **named), build(seq=2)
        for order in ([names, silent], [silent, names]):
            state = folded(core, order)
            assert getattr(state, facet).report is names
            assert state.build.report is silent
            assert [getattr(state, other) for other in naming if other != facet] == [None] * 3


def test_logs_and_outcomes_leave_the_memory_alone(core: Core) -> None:
    """Log entries and input outcomes live beside the memory."""
    state = core.builds.initial_state(TASK, NOON)
    entry = LogEntry(0, LogSource.INPUT, "hello", NOON)
    log = TaskLog(task_id=TASK, build_number=1, seq=0, entries=(entry,))
    outcome = TaskInput(task_id=TASK, build_number=1, seq=0, input_id=TASK, outcome=InputOutcome.DELIVERED)
    for report in (log, outcome):
        assert core.fold.fold(state, report, NOON) == core.fold.FoldResult(state, ReportOutcome.APPLIED)


def test_canonical_json() -> None:
    """Keys are sorted at every level, absent fields are left out, text is not escaped, ``failure`` is not renamed."""
    assert canonical_json(status(AgentState.FAILURE, message="é", observed_at=NOON)) == (
        '{"build_number":1,"message":"é","observed_at":"2026-03-01T12:00:00.000000Z","seq":0,"state":"failure",'
        f'"task_id":"{TASK}","type":"app.status"}}'
    )
