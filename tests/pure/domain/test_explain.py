"""Explanations: they agree with the view for any history, and the changes that they announce take place."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given, settings

from taskherd.domain import explanations, fold
from taskherd.domain.builds import initial_state, request_next_build
from taskherd.domain.command_results import CommandAccepted
from taskherd.domain.commands import Resume
from taskherd.domain.explain import Explanation, explain
from taskherd.domain.handle_command import CommandContext, handle_command
from taskherd.domain.liveness import Timeouts, detect_loss, time_out_build
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    AppHealth,
    AppStatus,
    ExitReason,
    Health,
    JobStatus,
    Lifecycle,
    Report,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.task import Stall
from taskherd.domain.value import replace
from taskherd.domain.view import STATUS_BY_LIFECYCLE, Status, derive_view, is_lost
from tests.harness.histories import NOON, TASK, corpus, histories
from tests.harness.tasks import make_task

if TYPE_CHECKING:
    from taskherd.domain.task import Task, TaskState

TIMEOUTS = Timeouts(
    agent_lost_after=timedelta(seconds=30),
    agent_connect_timeout=timedelta(seconds=120),
    build_timeout=timedelta(minutes=30),
    request_ttl=timedelta(minutes=10),
    mass_silence_hold=timedelta(minutes=5),
    interrupt_timeout=timedelta(seconds=60),
)
UP = WorkspaceBuild(
    task_id=TASK,
    build_number=1,
    seq=0,
    transition=Transition.START,
    job_status=JobStatus.SUCCEEDED,
    agent_id=UUID(int=1),
)
RESUME = Resume(command_id=UUID(int=2), task_id=TASK, actor_id=UUID(int=3))
NO_CONTEXT = CommandContext({}, {}, {}, {})
HEARTBEAT = AgentHeartbeat(task_id=TASK, build_number=1, seq=9)


def folded(*reports: Report) -> TaskState:
    """Return the state of a task created at noon after these reports, all received at noon."""
    state = initial_state(TASK, NOON)
    for report in reports:
        state = fold.fold(state, fold.with_build_number(report, state), NOON).state
    return state


def task_with(state: TaskState) -> Task:
    """Return a task with this state."""
    return replace(make_task(TASK), state=state)


def agent_exit(why: ExitReason, status: int | None = None, signal: int | None = None, words: str = "") -> AgentExit:
    """Return the report of the end of the agent of build 1."""
    return AgentExit(task_id=TASK, build_number=1, seq=9, why=why, status=status, signal=signal, words=words)


def after_silence(state: TaskState, silence: timedelta) -> TaskState:
    """Return the state after a timer check at the end of ``silence``, in drained time."""
    now = NOON + silence
    return detect_loss(time_out_build(state, NOON, now, TIMEOUTS), NOON, now, TIMEOUTS)


def checked_explanation(state: TaskState) -> Explanation:
    """Return the explanation of a state, after a check of its values against the view, and of its texts."""
    view = derive_view(state, "task")
    explanation = explain(state, TIMEOUTS)
    assert explanation.status.value is view.status
    assert explanation.current_state.value == view.current_state
    assert explanation.health.value == view.health
    assert explanation.agent_exit.value == view.agent_exit
    assert explanation.stalled_since.value == view.stalled_since
    assert explanation.interrupt.value == view.interrupted_since
    assert explanation.waiting.value == bool(view.requests)
    accepted = isinstance(handle_command(task_with(state), RESUME, NOON, NO_CONTEXT), CommandAccepted)
    assert explanation.resume.value is accepted
    for part in (
        explanation.status,
        explanation.current_state,
        explanation.health,
        explanation.agent_exit,
        explanation.stalled_since,
        explanation.interrupt,
        explanation.waiting,
        explanation.resume,
    ):
        text = part.explanation
        assert text.endswith(".")
        assert ".." not in text
        assert text[0].isupper()
        assert part.rule
        if "Resume the task" in text:
            assert accepted
        if view.agent_exit or is_lost(state):
            assert not re.search(r"is running|sends heartbeats|Reported by the agent|check passes", text)
        if "agent is running" in text and "start-up" not in text:
            assert view.lifecycle
            assert STATUS_BY_LIFECYCLE[view.lifecycle] is Status.ACTIVE
        assert ("timed out" in text) <= state.build_timed_out
    return explanation


def lifecycle(at: Lifecycle, seq: int = 0) -> AgentLifecycle:
    """Return a lifecycle report of build 1."""
    return AgentLifecycle(task_id=TASK, build_number=1, seq=seq, lifecycle=at)


def app_health(health: Health, seq: int = 0) -> AppHealth:
    """Return a report of the app's health check in build 1."""
    return AppHealth(task_id=TASK, build_number=1, seq=seq, health=health)


@settings(max_examples=200, deadline=None)
@given(reports=histories())
def test_explanations_agree_with_the_view(reports: list[Report]) -> None:
    """For any history and any silence, each explanation is about the value in the view, and true of the state."""
    for silence in (timedelta(), timedelta(minutes=3), timedelta(hours=1)):
        checked_explanation(after_silence(folded(*reports), silence))


def test_every_status_is_explained() -> None:
    """A corpus of histories reaches every status, and more rules than statuses."""
    states = [
        after_silence(folded(*reports), silence)
        for reports in [*corpus(400), []]
        for silence in (timedelta(), timedelta(hours=1))
    ]
    explained = {(part.value, part.rule) for state in states for part in [checked_explanation(state).status]}
    assert {status for status, _rule in explained} == set(Status)
    assert len(explained) > 12


@pytest.mark.parametrize("start", [Lifecycle.READY, Lifecycle.START_TIMEOUT, Lifecycle.START_ERROR])
def test_the_app_decides_as_explained(start: Lifecycle) -> None:
    """With a running agent, a passed health check makes the task active; the named events end that."""
    for health in (Health.INITIALIZING, Health.UNHEALTHY):
        waiting = folded(UP, lifecycle(start), app_health(health))
        assert "The task becomes active when" in checked_explanation(waiting).status.explanation
        assert explain(fold.fold(waiting, app_health(Health.HEALTHY, 1), NOON).state, TIMEOUTS).status.value == "active"
    for health in (Health.HEALTHY, Health.DISABLED):
        active = folded(UP, lifecycle(start), app_health(health))
        assert "would change this" in checked_explanation(active).status.explanation
        failing = fold.fold(active, app_health(Health.UNHEALTHY, 1), NOON).state
        off = fold.fold(active, lifecycle(Lifecycle.OFF, 1), NOON).state
        paused = request_next_build(TASK, active, Transition.STOP, NOON)
        assert all(explain(state, TIMEOUTS).status.value != "active" for state in (failing, off, paused))


WORDS_OF_LIFECYCLE = {
    Lifecycle.CREATED: "has not reported that it is starting yet",
    Lifecycle.STARTING: "is running its start-up scripts",
    Lifecycle.SHUTTING_DOWN: "is shutting down",
    Lifecycle.SHUTDOWN_TIMEOUT: "is shutting down",
    Lifecycle.SHUTDOWN_ERROR: "is shutting down",
    Lifecycle.OFF: "has stopped",
}


def test_every_lifecycle_is_explained() -> None:
    """A lifecycle that keeps the task from being active is explained, and a report of ``ready`` changes the status."""
    for at in Lifecycle:
        state = folded(UP, lifecycle(at))
        if STATUS_BY_LIFECYCLE.get(at) is Status.ACTIVE:
            assert checked_explanation(state).status.rule == "app.disabled"
        else:
            explanation = checked_explanation(state).status.explanation
            assert explanation == explanations.agent(at)
            assert WORDS_OF_LIFECYCLE[at] in explanation
            ready = fold.fold(state, lifecycle(Lifecycle.READY, 1), NOON).state
            assert explain(ready, TIMEOUTS).status.value == "active"


def test_a_heartbeat_changes_the_agent_health_as_explained() -> None:
    """Each explanation that announces a change by a heartbeat is followed by another reason, or none, after one."""
    hour = timedelta(hours=1)
    disconnected = AgentDisconnected(task_id=TASK, build_number=1, seq=1)
    states = [
        folded(UP, lifecycle(Lifecycle.OFF)),
        folded(UP),
        after_silence(folded(UP), hour),
        folded(UP, disconnected),
        after_silence(folded(UP, HEARTBEAT), hour),
    ]
    reasons = set()
    for state in states:
        health = checked_explanation(state).health
        assert "heartbeat" in health.explanation
        assert health.value
        reasons.add(health.value.reason)
        after = explain(fold.fold(state, HEARTBEAT, NOON + hour).state, TIMEOUTS).health.value
        assert after
        assert after.reason is None
    assert len(reasons) == 4


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (agent_exit(ExitReason.EXITED, status=3, words="disk full"), 'exited with status 3 ("disk full")'),
        (agent_exit(ExitReason.EXITED, status=0), "exited with status 0, and its workspace is up"),
        (agent_exit(ExitReason.EXITED), "The agent exited. Resume"),
        (agent_exit(ExitReason.SIGNALLED, signal=11), "was ended by signal 11 (SIGSEGV)"),
        (agent_exit(ExitReason.SIGNALLED, signal=63), "was ended by signal 63"),
        (agent_exit(ExitReason.OUT_OF_MEMORY), "ran out of memory"),
        (agent_exit(ExitReason.TIMEOUT), "exceeded its time limit"),
        (agent_exit(ExitReason.LOST), "without a record of how"),
        (agent_exit(ExitReason.STOPPED), "was stopped"),
        (agent_exit(ExitReason.INTERRUPTED), "a user interrupted it"),
        (agent_exit(ExitReason.NOT_STARTED), "could not be started"),
    ],
    ids=lambda each: each.why if isinstance(each, AgentExit) else "",
)
def test_the_end_of_an_agent_is_explained(ended: AgentExit, words: str) -> None:
    """The status, the state and a bad health say how the agent ended, and that a resume starts it again."""
    said = AppStatus(task_id=TASK, build_number=1, seq=1, state=AgentState.WORKING)
    state = folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT, said, app_health(Health.UNHEALTHY), ended)
    explanation = checked_explanation(state)
    for part in (explanation.status, explanation.health, explanation.agent_exit):
        assert words.replace(", and its workspace is up", "") in part.explanation
        assert "Resume the task" in part.explanation
    assert words in explanation.status.explanation
    assert "The last state of the agent" in explanation.current_state.explanation
    assert explanation.status.rule == f"agent_exit.{ended.why}"


def test_a_guessed_state_is_explained_as_a_guess() -> None:
    """A state that the runner concluded is not called the agent's own word, and it says what it was concluded from."""
    guess = AppStatus(task_id=TASK, build_number=1, seq=1, state=AgentState.IDLE, guessed_from="10 s without output")
    explained = checked_explanation(folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT, guess)).current_state.explanation
    assert "did not say this itself" in explained
    assert "from 10 s without output" in explained
    assert "Reported by the agent" not in explained


def test_a_lost_agent_is_explained() -> None:
    """Nothing claims that a lost agent runs, and a resume is offered."""
    said = AppStatus(task_id=TASK, build_number=1, seq=1, state=AgentState.WORKING)
    state = after_silence(folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT, said), timedelta(hours=1))
    explanation = checked_explanation(state)
    for part in (explanation.status, explanation.current_state, explanation.health, explanation.agent_exit):
        assert "lost" in part.explanation or "no heartbeat" in part.explanation
        assert "Resume the task" in part.explanation


def test_a_stalled_agent_is_explained() -> None:
    """The text says since when, and what starts the agent again: a resume of a running agent is refused."""
    said = AppStatus(task_id=TASK, build_number=1, seq=1, state=AgentState.WORKING)
    state = replace(folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT, said), stall=Stall(1, NOON))
    explanation = checked_explanation(state)
    assert explanation.stalled_since.value == NOON
    assert "since 2026-03-01 12:00:00 UTC" in explanation.stalled_since.explanation
    assert "pause the task" in explanation.stalled_since.explanation
    assert explanation.resume.value is False
    assert explanation.resume.explanation == "Task workspace is already running."


def test_durations_are_written_in_seconds_or_minutes() -> None:
    """Durations below two minutes are written in seconds, all others in minutes."""
    durations = {119: "119 seconds", 120: "2 minutes", 90 * 60: "90 minutes", 0.5: "0.5 seconds"}
    for seconds, text in durations.items():
        assert explanations.format_duration(timedelta(seconds=seconds)) == text
