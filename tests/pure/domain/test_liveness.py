"""Silence is judged by our own clock, over drained time only, and a mass of silences is distrusted."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.reports import JobStatus, Transition
from tests.harness.histories import AGENTS, NOON
from tests.pure.domain.mutated_core import whole
from tests.pure.domain.test_fold import build, folded, goodbye, heartbeat, lifecycle, patience, seen

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
UP = JobStatus.SUCCEEDED


def running(core: Core) -> Any:
    """A task whose agent was heard at noon."""
    return folded(core, [build(job=UP), lifecycle(), heartbeat()])


def lost(core: Core, memory: Any, since: datetime, now: datetime) -> bool:
    """Whether the agent is found silent."""
    return core.liveness.detect_loss(memory, since, now, patience(core)).silence is not None


def test_the_watermark_is_the_youngest_of_all_live_workers(core: Core) -> None:
    """Silence counts from when the last of the live workers was drained, and from nowhere while one is not."""

    def mark(*workers: tuple[timedelta, timedelta | None]) -> datetime | None:
        listening = [
            core.liveness.WorkerWatermark(NOON - seen_ago, None if drained_ago is None else NOON - drained_ago)
            for seen_ago, drained_ago in workers
        ]
        at: datetime | None = core.liveness.watermark(listening, NOON, 10 * SECOND)
        return at

    now = timedelta()
    assert mark() is None
    assert mark((now, None)) is None
    assert mark((now, MINUTE)) == NOON - MINUTE
    assert mark((now, HOUR), (now, MINUTE), (now, 2 * MINUTE)) == NOON - MINUTE
    assert mark((now, HOUR), (now, None)) is None
    assert mark((10 * SECOND, None), (now, HOUR)) is None
    assert mark((11 * SECOND, None), (now, HOUR)) == NOON - HOUR
    assert mark((11 * SECOND, MINUTE), (now, HOUR)) == NOON - HOUR
    assert mark((HOUR, HOUR)) is None
    assert mark((-HOUR, None), (now, HOUR)) is None


def test_an_agent_is_lost_after_drained_silence_only(core: Core) -> None:
    """Lost: more than 30 s without a heartbeat, all of it after the watermark."""
    state = running(core)
    assert not lost(core, state, NOON - HOUR, NOON + 30 * SECOND)
    assert lost(core, state, NOON - HOUR, NOON + 31 * SECOND)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 30 * SECOND)
    assert lost(core, state, NOON + HOUR, NOON + HOUR + 31 * SECOND)


def test_an_agent_connects_within_drained_time_only(core: Core) -> None:
    """Too long to connect: more than 120 s since it appeared, all of it after the watermark."""
    state = folded(core, [build(job=UP), lifecycle()])
    assert not lost(core, state, NOON - HOUR, NOON + 120 * SECOND)
    assert lost(core, state, NOON - HOUR, NOON + 121 * SECOND)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 120 * SECOND)
    late = core.liveness.detect_loss(state, NOON + HOUR, NOON + HOUR + 121 * SECOND, patience(core))
    assert not late.silence.lost
    assert seen(core, late)["health"]["reason"] == "agent is taking too long to connect"


@given(
    before=st.integers(0, 10_000),
    heard=st.integers(0, 10_000),
    after=st.integers(0, 10_000),
)
def test_never_lies_about_silence(before: int, heard: int, after: int) -> None:
    """An agent is never found lost unless the last 30 s were both drained and without a heartbeat of it."""
    core = whole()
    state = core.fold.fold(running(core), heartbeat(seq=1), NOON + heard * SECOND).state
    now = NOON + (heard + after) * SECOND
    assert lost(core, state, NOON + before * SECOND, now) == (min(after, heard + after - before) > 30)


def test_silence_needs_an_agent_that_is_here(core: Core) -> None:
    """Without an agent of the latest build there is nobody to be silent; a goodbye has been heard."""
    long = NOON + HOUR
    alone: list[list[Report]] = [
        [build(job=UP)],
        [build(2, transition=Transition.STOP), heartbeat(2)],
        [build(2), heartbeat(1)],
    ]
    for reports in alone:
        assert not lost(core, folded(core, reports), NOON, long)
    left = folded(core, [build(job=UP), heartbeat(), goodbye(seq=1)])
    assert not lost(core, left, NOON, long)


def test_a_verdict_stands_until_a_heartbeat(core: Core) -> None:
    """Judging again changes nothing; a verdict on one build says nothing of the next."""
    state = core.liveness.detect_loss(running(core), NOON, NOON + MINUTE, patience(core))
    assert core.liveness.detect_loss(state, NOON, NOON + HOUR, patience(core)) is state
    again = folded(core, [heartbeat(seq=0)], state)
    assert seen(core, again)["health"] == {"healthy": True, "reason": None}
    renewed = folded(core, [build(2, job=UP), lifecycle(number=2), heartbeat(2)], state)
    assert seen(core, renewed)["health"] == {"healthy": True, "reason": None}
    connecting = folded(core, [build(2, job=UP), lifecycle(number=2)], state)
    assert seen(core, connecting)["health"]["reason"] == "agent has not yet connected"
    assert lost(core, renewed, NOON, NOON + MINUTE)
    assert core.liveness.detect_loss(renewed, NOON, NOON + MINUTE, patience(core)).silence.build_number == 2


def test_a_clock_that_jumps_back(core: Core) -> None:
    """With the watermark started again at the jump, an instant from the future neither accuses nor excuses."""
    state = core.fold.fold(running(core), heartbeat(seq=1), NOON + HOUR).state
    assert not lost(core, state, NOON, NOON + 30 * SECOND)
    assert lost(core, state, NOON, NOON + 31 * SECOND)
    assert not lost(core, running(core), NOON + HOUR, NOON + 10 * MINUTE)


def test_a_clock_that_jumps_ahead(core: Core) -> None:
    """With the watermark started again at the jump, the hours that never passed prove nothing."""
    state = running(core)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 30 * SECOND)


def test_clocks_that_lie_a_little_apart(core: Core) -> None:
    """A heartbeat taken a moment ahead of the sweeper's now, by another worker or just before, is a word."""
    for ahead in (timedelta(microseconds=1), SECOND, 30 * SECOND):
        state = core.fold.fold(running(core), heartbeat(seq=1), NOON + ahead).state
        assert not lost(core, state, NOON - HOUR, NOON)
        assert lost(core, state, NOON - HOUR, NOON + ahead + 31 * SECOND)


def test_the_brake(core: Core) -> None:
    """55 % of the connected agents and at least 5 at once are held, for 5 minutes of drained time at most."""

    def held(connected: int, would_lose: int, held_for: timedelta = timedelta()) -> bool:
        return bool(core.liveness.guard_mass_loss(connected, would_lose, held_for, patience(core)) == "hold")

    assert not held(4, 4)
    assert held(5, 5)
    assert held(9, 5)
    assert not held(10, 5)
    assert held(100, 55)
    assert held(20, 11)
    assert not held(100, 54)
    assert held(100, 100, 5 * MINUTE - SECOND)
    assert not held(100, 100, 5 * MINUTE)


def given_up(core: Core, memory: Any, after: timedelta, since: datetime = NOON) -> str | None:
    """The error of the build, where it is given up so long after noon."""
    judged = core.liveness.time_out_build(memory, since, NOON + after, patience(core))
    assert (judged is memory) == (not judged.build_timed_out)
    return judged.error if judged.build_timed_out else None


def test_a_request_that_nobody_takes_is_given_up(core: Core) -> None:
    """A request unanswered for 10 min of drained time counts as a failed build."""
    state = core.builds.initial_state(build().task_id, NOON)
    assert given_up(core, state, 10 * MINUTE) is None
    assert given_up(core, state, 10 * MINUTE + SECOND) == "No runner took up the workspace start in time."
    assert given_up(core, state, HOUR + 10 * MINUTE, NOON + HOUR) is None
    deleting = core.builds.request_next_build(build().task_id, state, Transition.DELETE, NOON)
    assert given_up(core, deleting, HOUR) == "No runner took up the workspace deletion in time."
    assert core.liveness.time_out_build(state, NOON, NOON + HOUR, patience(core)).pending_build is None


def test_a_build_that_falls_silent_is_given_up(core: Core) -> None:
    """A build pending or running without a word for 30 min counts as failed; one that ended never does."""
    for job in (JobStatus.PENDING, JobStatus.RUNNING):
        assert given_up(core, folded(core, [build(job=job)]), 30 * MINUTE) is None
        error = given_up(core, folded(core, [build(job=job)]), 30 * MINUTE + SECOND)
        assert error == "Nothing was heard of the workspace start for too long."
    for job in (UP, JobStatus.FAILED, JobStatus.CANCELED):
        assert given_up(core, folded(core, [build(job=job)]), HOUR) is None
    own = folded(core, [build(2)])
    assert own.pending_build == 1
    assert given_up(core, own, 11 * MINUTE) is None


def test_deadlines(core: Core) -> None:
    """When a task is to be looked at: an active build's end of patience, a connecting agent's, or never."""

    def due(memory: Any, since: datetime | None = None) -> timedelta | None:
        at = core.liveness.next_deadline(memory, patience(core), NOON, since)
        return None if at is None else at - NOON

    assert due(core.builds.initial_state(build().task_id, NOON)) == 10 * MINUTE
    assert due(core.builds.initial_state(build().task_id, NOON), NOON + HOUR) == HOUR + 10 * MINUTE
    assert due(folded(core, [build()])) == 30 * MINUTE
    assert due(folded(core, [build(), lifecycle()])) == 120 * SECOND
    assert due(folded(core, [build(job=UP), lifecycle()]), NOON + HOUR) == HOUR + 120 * SECOND
    assert due(folded(core, [build(job=UP), build(1, 1, UP, agent_id=AGENTS[0])])) == 120 * SECOND
    assert due(running(core)) is None
    assert due(folded(core, [build(job=UP)])) is None
    silent = core.liveness.detect_loss(running(core), NOON, NOON + MINUTE, patience(core))
    assert due(silent) is None
    assert due(folded(core, [build(2, job=UP), lifecycle(number=2)], silent)) == 120 * SECOND
    late = core.liveness.detect_loss(folded(core, [build(job=UP), lifecycle()]), NOON, NOON + HOUR, patience(core))
    assert due(late) is None
    yesterday = NOON - 24 * HOUR
    assert core.liveness.next_deadline(folded(core, [build()]), patience(core), yesterday) == yesterday + 30 * MINUTE
