"""Recovery: when an agent counts as stalled, and when a drained or lost one is started again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.backoff import Backoff
from taskherd.domain import builds, fold, recovery
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.recovery import LOG_RESOLUTION, RecoveryPolicy
from taskherd.domain.reports import (
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    AppStatus,
    ExitReason,
    JobStatus,
    Lifecycle,
    LogEntry,
    LogSource,
    Report,
    TaskLog,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.task import Deletion, LastLog, Silence, Stall, Stamped, TaskState
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from tests.harness.histories import NOON, TASK

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HALF_HOUR = timedelta(minutes=30)
POLICY = RecoveryPolicy(HALF_HOUR, max_loss_restarts=2, loss_backoff=Backoff(10.0, 3600.0))
UP = WorkspaceBuild(
    task_id=TASK,
    build_number=1,
    seq=0,
    transition=Transition.START,
    job_status=JobStatus.SUCCEEDED,
    agent_id=UUID(int=1),
)
HEARTBEAT = AgentHeartbeat(task_id=TASK, build_number=1, seq=0)
WORKING = AppStatus(task_id=TASK, build_number=1, seq=0, state=AgentState.WORKING)
LOG = TaskLog(task_id=TASK, build_number=1, seq=0, entries=(LogEntry(0, LogSource.OUTPUT, "hello", NOON),))


def after(state: TaskState, report: Report, at: Any = NOON) -> TaskState:
    """Return the state after a report that was received at ``at``."""
    folded = fold.fold(state, report, at)
    return recovery.record_word(folded.state, report, folded.outcome, at)


def working() -> TaskState:
    """Return the state of a task whose agent has been working since noon."""
    state = builds.initial_state(TASK, NOON)
    for report in (UP, HEARTBEAT, WORKING):
        state = after(state, report)
    return state


def stalled(state: TaskState, at: Any, policy: RecoveryPolicy = POLICY) -> Any:
    """Return since when the view shows the agent as stalled after a check at ``at``, all of it drained time."""
    checked = recovery.detect_stall(state, NOON - MINUTE, at, policy)
    return derive_view(checked, "task").stalled_since


def test_heartbeats_alone_are_a_stall_after_the_limit() -> None:
    """The limit itself is not enough; the stall began with the last word, and its deadline is announced."""
    state = after(working(), HEARTBEAT, NOON + HALF_HOUR)
    assert stalled(state, NOON + HALF_HOUR) is None
    assert stalled(state, NOON + HALF_HOUR + SECOND) == NOON
    assert recovery.stall_deadline(state, None, NOON, POLICY) == NOON + HALF_HOUR


def test_only_drained_time_counts() -> None:
    """Time before the watermark is no stall."""
    watermark = NOON + timedelta(hours=2)
    state = recovery.detect_stall(working(), watermark, watermark + HALF_HOUR, POLICY)
    assert state.stall is None
    assert recovery.detect_stall(state, watermark, watermark + HALF_HOUR + SECOND, POLICY).stall is not None


def test_zero_means_never() -> None:
    """With a limit of zero no agent stalls, and there is no deadline."""
    never = replace(POLICY, stalled_after=timedelta())
    assert stalled(working(), NOON + timedelta(days=9), never) is None
    assert recovery.stall_deadline(working(), None, NOON, never) is None


@pytest.mark.parametrize(
    "report",
    [
        replace(WORKING, state=AgentState.IDLE, seq=1),
        AgentExit(task_id=TASK, build_number=1, seq=1, why=ExitReason.EXITED, status=0),
        replace(UP, seq=1, transition=Transition.STOP, build_number=2),
    ],
    ids=["idle", "ended", "stopped"],
)
def test_only_a_working_agent_stalls(report: Report) -> None:
    """An agent that is idle, has ended or is stopped is not stalled, and has no deadline."""
    state = after(working(), report)
    assert stalled(state, NOON + timedelta(days=1)) is None
    assert recovery.stall_deadline(state, None, NOON, POLICY) is None


def test_a_lost_agent_is_not_stalled() -> None:
    """Without heartbeats the agent is lost instead."""
    assert stalled(replace(working(), silence=Silence(1, lost=True)), NOON + timedelta(days=1)) is None


@pytest.mark.parametrize("word", [replace(WORKING, seq=1), replace(LOG, seq=1)], ids=["status", "log"])
def test_the_next_word_ends_a_stall(word: Report) -> None:
    """A status and a log entry end it, a heartbeat and a repeated report do not."""
    at = NOON + HALF_HOUR + SECOND
    state = recovery.detect_stall(working(), NOON, at, POLICY)
    assert state.stall
    for no_word in (HEARTBEAT, WORKING, replace(word, build_number=7)):
        assert after(state, no_word, at).stall == state.stall
    assert after(state, word, at).stall is None


def test_log_entries_are_words_and_are_noted_seldom() -> None:
    """An agent that only writes log entries never stalls; their time is noted once in LOG_RESOLUTION."""
    state, writes = working(), 0
    at = NOON
    while at < NOON + timedelta(hours=2):
        at += SECOND
        before, state = state, after(state, LOG, at)
        writes += state is not before
        assert stalled(state, at) is None
    assert writes == timedelta(hours=2) / LOG_RESOLUTION
    assert stalled(state, at + HALF_HOUR) is None
    assert stalled(state, at + HALF_HOUR + LOG_RESOLUTION + SECOND)


def test_the_order_of_log_reports_does_not_matter() -> None:
    """Of several builds the highest is noted, in any order."""
    for order in ((1, 2), (2, 1)):
        state = working()
        for number in order:
            state = after(state, replace(LOG, build_number=number))
        assert state.last_log
        assert state.last_log.build_number == 2


def lost(state: TaskState) -> TaskState:
    """Return the state with its agent lost."""
    return replace(state, silence=Silence(state.build_number, lost=True))


def test_a_lost_agent_is_started_again_with_backoff() -> None:
    """After 10 and 20 seconds, and not a third time."""
    state, at = working(), NOON
    for number, wait in ((2, 10), (3, 20)):
        state = recovery.restart_lost(TASK, lost(state), at, POLICY)
        assert state.loss_restarts.retry_at == at + timedelta(seconds=wait)
        at += timedelta(seconds=wait)
        assert recovery.restart_lost(TASK, state, at - SECOND, POLICY) is state
        state = recovery.restart_lost(TASK, state, at, POLICY)
        assert (state.build_number, state.is_start, state.job_status) == (number, True, JobStatus.PENDING)
        assert state.loss_restarts.retry_at is None
        state = after(state, replace(UP, build_number=number))
    assert recovery.restart_lost(TASK, lost(state), at, POLICY).build_number == 3
    assert recovery.restart_lost(TASK, lost(state), at, POLICY).loss_restarts.retry_at is None


def test_a_restart_that_a_clock_ahead_has_set_is_due() -> None:
    """After the clock was set back, it does not wait until it is as late again; small skew counts."""
    state = recovery.restart_lost(TASK, lost(working()), NOON, POLICY)
    for back in (SECOND, 30 * SECOND):
        assert recovery.restart_lost(TASK, state, NOON - back, POLICY) is state
    for back in (31 * SECOND, timedelta(days=1)):
        assert recovery.restart_lost(TASK, state, NOON - back, POLICY).build_number == 2


def test_an_agent_that_ended_as_lost_is_started_again() -> None:
    """The runner's word that nothing recorded the end counts like silence; any other end does not."""
    for why in ExitReason:
        state = after(working(), AgentExit(task_id=TASK, build_number=1, seq=0, why=why))
        scheduled = recovery.restart_lost(TASK, state, NOON, POLICY).loss_restarts.retry_at is not None
        assert scheduled is (why is ExitReason.LOST)


def test_a_heartbeat_calls_the_restart_off() -> None:
    """An agent that is heard again before the restart goes on."""
    state = recovery.restart_lost(TASK, lost(working()), NOON, POLICY)
    state = after(state, replace(HEARTBEAT, seq=1), NOON + SECOND)
    state = recovery.restart_lost(TASK, state, NOON + MINUTE, POLICY)
    assert (state.build_number, state.loss_restarts.retry_at) == (1, None)


def test_nothing_is_restarted_without_a_policy_or_after_a_delete() -> None:
    """The default is to leave a lost agent to people; a deleted task is never started."""
    silent = replace(POLICY, max_loss_restarts=0)
    assert recovery.restart_lost(TASK, lost(working()), NOON, silent) == lost(working())
    deleted = replace(lost(working()), deletion=Deletion())
    assert recovery.restart_lost(TASK, deleted, NOON, POLICY) == deleted


def drained(state: TaskState, job: JobStatus = JobStatus.SUCCEEDED, **fields: Any) -> TaskState:
    """Return the state after a runner's own stop with ``restart``."""
    number = state.build_number + 1
    stop = replace(
        UP, build_number=number, transition=Transition.STOP, job_status=job, agent_id=None, restart=True, **fields
    )
    return after(state, stop)


@pytest.mark.parametrize("job", [*JobStatus])
def test_a_drained_task_starts_again_when_the_stop_has_ended(job: JobStatus) -> None:
    """Not before; and not if the stop was canceled."""
    state = drained(working(), job)
    restarted = recovery.restart_drained(TASK, state, NOON)
    expected = job in {JobStatus.SUCCEEDED, JobStatus.FAILED}
    assert (restarted.build_number == 3) is expected
    assert (restarted is state) is not expected


def test_a_pause_or_delete_wins_over_a_drain() -> None:
    """The stop answers the pause, which was requested under the same number; a delete follows by itself."""
    paused = builds.request_next_build(TASK, working(), Transition.STOP, NOON)
    stop = replace(UP, build_number=2, transition=Transition.STOP, agent_id=None, restart=True)
    drained_after_pause = after(paused, stop)
    assert recovery.restart_drained(TASK, drained_after_pause, NOON) is drained_after_pause
    deleted = replace(drained(working()), deletion=Deletion())
    assert recovery.restart_drained(TASK, deleted, NOON) is deleted


def test_a_stop_without_restart_stays_a_pause() -> None:
    """A runner's own stop pauses the task unless it asks for a restart."""
    state = working()
    state = after(state, replace(UP, build_number=2, transition=Transition.STOP, agent_id=None, reason="idle"))
    assert recovery.restart_drained(TASK, state, NOON) is state
    assert fold.fold(state, LOG, NOON).outcome is ReportOutcome.APPLIED


def test_a_stall_that_a_clock_ahead_has_noted_is_noticed() -> None:
    """After the clock was set back, the agent does not stall later; the time before the watermark still counts not."""
    now = NOON - timedelta(days=1)
    assert recovery.detect_stall(working(), now - HALF_HOUR - SECOND, now, POLICY).stall == Stall(1, NOON)
    assert recovery.detect_stall(working(), now - HALF_HOUR, now, POLICY).stall is None


def test_a_stalled_agent_stalls_no_further() -> None:
    """It is found once, and has no deadline; a stall of an earlier build says nothing of the next one."""
    late = NOON + HALF_HOUR + SECOND
    state = recovery.detect_stall(working(), NOON, late, POLICY)
    assert state.stall == Stall(1, NOON)
    assert recovery.detect_stall(state, NOON, late + MINUTE, POLICY) is state
    assert recovery.stall_deadline(state, None, late, POLICY) is None
    for report in (UP, HEARTBEAT, WORKING):
        state = after(state, replace(report, build_number=2, seq=1), late)
    assert state.stall == Stall(1, NOON)
    assert recovery.stall_deadline(state, None, late, POLICY) == late + HALF_HOUR
    assert recovery.detect_stall(state, NOON, late + HALF_HOUR + SECOND, POLICY).stall == Stall(2, late)


def test_only_words_of_the_latest_build_count() -> None:
    """What came late of the agent of an earlier one, or of one to come, does not keep this one from stalling."""
    state = builds.initial_state(TASK, NOON)
    for report in (UP, HEARTBEAT, WORKING):
        state = after(state, replace(report, build_number=2, seq=1))
    for number in (1, 3):
        ready = AgentLifecycle(task_id=TASK, build_number=number, seq=9, lifecycle=Lifecycle.READY)
        others = after(after(state, ready, NOON + MINUTE), replace(LOG, build_number=number), NOON + MINUTE)
        assert (others.lifecycle, others.last_log) == (Stamped(ready, NOON + MINUTE), LastLog(number, NOON + MINUTE))
        assert recovery.stall_deadline(others, None, NOON + 2 * MINUTE, POLICY) == NOON + HALF_HOUR


def test_when_the_time_of_a_log_is_noted_anew() -> None:
    """From LOG_RESOLUTION after the last time on, or when the clock was set back before it."""
    state = after(working(), LOG, NOON)
    assert state.last_log == LastLog(1, NOON)
    for at, noted in (
        (timedelta(), NOON),
        (LOG_RESOLUTION - SECOND, NOON),
        (LOG_RESOLUTION, NOON + LOG_RESOLUTION),
        (-SECOND, NOON - SECOND),
    ):
        assert after(state, LOG, NOON + at).last_log == LastLog(1, noted)


@pytest.mark.parametrize("job", [*JobStatus])
def test_only_an_agent_whose_start_is_done_is_started_again(job: JobStatus) -> None:
    """A build that has failed, is active or was canceled is not repeated because its agent is lost."""
    state = after(lost(working()), replace(UP, seq=1, job_status=job))
    scheduled = recovery.restart_lost(TASK, state, NOON, POLICY)
    assert (scheduled.loss_restarts.retry_at is not None) is (job is JobStatus.SUCCEEDED)


def test_nothing_is_started_again_past_the_last_build_number() -> None:
    """Neither a lost agent nor a drained one; with one number left both are."""
    for number, restarts in ((2**31 - 2, True), (2**31 - 1, False)):
        started = after(working(), replace(UP, build_number=number))
        scheduled = recovery.restart_lost(TASK, lost(started), NOON, POLICY)
        assert (scheduled.loss_restarts.retry_at is not None) is restarts
        stop = replace(UP, build_number=number, transition=Transition.STOP, agent_id=None, restart=True)
        restarted = recovery.restart_drained(TASK, after(working(), stop), NOON)
        assert (restarted.build_number == number + 1) is restarts


def test_only_a_stop_asks_for_a_restart() -> None:
    """A start that a runner made of its own accord is what it would ask for."""
    started = after(working(), replace(UP, build_number=2, restart=True))
    assert recovery.restart_drained(TASK, started, NOON) is started
