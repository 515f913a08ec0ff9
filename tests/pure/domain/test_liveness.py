"""Silence is measured by the worker's clock, over drained time only; a mass loss is held back."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.reports import JobStatus, Transition
from tests.harness.histories import AGENTS, NOON
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, timeouts, view_of

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
UP = JobStatus.SUCCEEDED


def running(core: Core) -> Any:
    """Return the state of a task whose agent sent a heartbeat at noon."""
    return folded(core, [build(job=UP), lifecycle(), heartbeat()])


def lost(core: Core, state: Any, since: datetime, now: datetime) -> bool:
    """Return whether the agent is found silent."""
    return core.liveness.detect_loss(state, since, now, timeouts(core)).silence is not None


def test_the_watermark_is_the_latest_of_all_live_workers(core: Core) -> None:
    """Silence is measured from when the last live worker was drained, and not at all while one is not drained."""

    def watermark(*workers: tuple[timedelta, timedelta | None]) -> datetime | None:
        rows = [
            core.liveness.WorkerWatermark(NOON - seen_ago, None if drained_ago is None else NOON - drained_ago)
            for seen_ago, drained_ago in workers
        ]
        at: datetime | None = core.liveness.shared_watermark(rows, NOON, 10 * SECOND)
        return at

    now = timedelta()
    assert watermark() is None
    assert watermark((now, None)) is None
    assert watermark((now, MINUTE)) == NOON - MINUTE
    assert watermark((now, HOUR), (now, MINUTE), (now, 2 * MINUTE)) == NOON - MINUTE
    assert watermark((now, HOUR), (now, None)) is None
    assert watermark((10 * SECOND, None), (now, HOUR)) is None
    assert watermark((11 * SECOND, None), (now, HOUR)) == NOON - HOUR
    assert watermark((11 * SECOND, MINUTE), (now, HOUR)) == NOON - HOUR
    assert watermark((HOUR, HOUR)) is None
    assert watermark((-HOUR, None), (now, HOUR)) is None


def test_an_agent_is_lost_after_drained_silence_only(core: Core) -> None:
    """An agent is lost after more than 30 s without a heartbeat since the watermark."""
    state = running(core)
    assert not lost(core, state, NOON - HOUR, NOON + 30 * SECOND)
    assert lost(core, state, NOON - HOUR, NOON + 31 * SECOND)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 30 * SECOND)
    assert lost(core, state, NOON + HOUR, NOON + HOUR + 31 * SECOND)


def test_only_drained_time_counts_towards_the_connect_timeout(core: Core) -> None:
    """An agent takes too long to connect after more than 120 s without a heartbeat since the watermark."""
    state = folded(core, [build(job=UP), lifecycle()])
    assert not lost(core, state, NOON - HOUR, NOON + 120 * SECOND)
    assert lost(core, state, NOON - HOUR, NOON + 121 * SECOND)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 120 * SECOND)
    late = core.liveness.detect_loss(state, NOON + HOUR, NOON + HOUR + 121 * SECOND, timeouts(core))
    assert not late.silence.lost
    assert view_of(core, late)["health"]["reason"] == "agent is taking too long to connect"
    assert core.liveness.detect_loss(late, NOON, NOON + 2 * HOUR, timeouts(core)) is late


@given(
    before=st.integers(0, 10_000),
    heartbeat_at=st.integers(0, 10_000),
    after=st.integers(0, 10_000),
)
def test_no_agent_is_lost_without_30_drained_seconds_of_silence(before: int, heartbeat_at: int, after: int) -> None:
    """An agent is lost only if the last 30 s were drained and without a heartbeat of it."""
    core = unchanged_core()
    state = core.fold.fold(running(core), heartbeat(seq=1), NOON + heartbeat_at * SECOND).state
    now = NOON + (heartbeat_at + after) * SECOND
    assert lost(core, state, NOON + before * SECOND, now) == (min(after, heartbeat_at + after - before) > 30)


def test_a_missing_or_disconnected_agent_cannot_fall_silent(core: Core) -> None:
    """Without an agent of the latest build nothing can be lost; a deliberate disconnect is not a silence."""
    later = NOON + HOUR
    without_agent: list[list[Report]] = [
        [build(job=UP)],
        [build(2, transition=Transition.STOP), heartbeat(2)],
        [build(2), heartbeat(1)],
    ]
    for reports in without_agent:
        assert not lost(core, folded(core, reports), NOON, later)
    left = folded(core, [build(job=UP), heartbeat(), disconnected(seq=1)])
    assert not lost(core, left, NOON, later)


def test_silence_lasts_until_a_heartbeat_or_the_next_build(core: Core) -> None:
    """Checking again changes nothing; silence in one build has no effect on the next."""
    state = core.liveness.detect_loss(running(core), NOON, NOON + MINUTE, timeouts(core))
    assert core.liveness.detect_loss(state, NOON, NOON + HOUR, timeouts(core)) is state
    again = folded(core, [heartbeat(seq=0)], state)
    assert view_of(core, again)["health"] == {"healthy": True, "reason": None}
    renewed = folded(core, [build(2, job=UP), lifecycle(number=2), heartbeat(2)], state)
    assert view_of(core, renewed)["health"] == {"healthy": True, "reason": None}
    connecting = folded(core, [build(2, job=UP), lifecycle(number=2)], state)
    assert view_of(core, connecting)["health"]["reason"] == "agent has not yet connected"
    assert lost(core, renewed, NOON, NOON + MINUTE)
    assert core.liveness.detect_loss(renewed, NOON, NOON + MINUTE, timeouts(core)).silence.build_number == 2


def test_a_clock_that_jumps_back(core: Core) -> None:
    """With a new watermark at the jump, a recorded time in the future neither causes nor prevents a loss."""
    state = core.fold.fold(running(core), heartbeat(seq=1), NOON + HOUR).state
    assert not lost(core, state, NOON, NOON + 30 * SECOND)
    assert lost(core, state, NOON, NOON + 31 * SECOND)
    assert not lost(core, running(core), NOON + HOUR, NOON + 10 * MINUTE)


def test_a_clock_that_jumps_ahead(core: Core) -> None:
    """With a new watermark at the jump, the skipped hours do not count as silence."""
    state = running(core)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR)
    assert not lost(core, state, NOON + HOUR, NOON + HOUR + 30 * SECOND)


def test_small_clock_differences_are_tolerated(core: Core) -> None:
    """A heartbeat up to 30 s ahead of the sweeper's clock, recorded by another worker, counts."""
    for ahead in (timedelta(microseconds=1), SECOND, 30 * SECOND):
        state = core.fold.fold(running(core), heartbeat(seq=1), NOON + ahead).state
        assert not lost(core, state, NOON - HOUR, NOON)
        assert lost(core, state, NOON - HOUR, NOON + ahead + 31 * SECOND)


def test_a_mass_loss_is_held_back(core: Core) -> None:
    """A loss of 55 % of the connected agents, at least 5, is held back for up to 5 minutes of drained time."""

    def held(connected: int, would_lose: int, held_for: timedelta = timedelta()) -> bool:
        return bool(core.liveness.decide_mass_loss(connected, would_lose, held_for, timeouts(core)) == "hold")

    assert not held(4, 4)
    assert held(5, 5)
    assert held(9, 5)
    assert not held(10, 5)
    assert held(100, 55)
    assert held(20, 11)
    assert not held(100, 54)
    assert held(100, 100, 5 * MINUTE - SECOND)
    assert not held(100, 100, 5 * MINUTE)


def timeout_error(core: Core, state: Any, after: timedelta, since: datetime = NOON) -> str | None:
    """Return the error of the build if it times out ``after`` noon, else None."""
    checked = core.liveness.time_out_build(state, since, NOON + after, timeouts(core))
    assert (checked is state) == (not checked.build_timed_out)
    return checked.build_error if checked.build_timed_out else None


def test_a_request_that_no_runner_picks_up_times_out(core: Core) -> None:
    """A build whose request is not answered for 10 min of drained time counts as failed."""
    state = core.builds.initial_state(build().task_id, NOON)
    assert timeout_error(core, state, 10 * MINUTE) is None
    assert timeout_error(core, state, 10 * MINUTE + SECOND) == "No runner picked up the workspace start in time."
    assert timeout_error(core, state, HOUR + 10 * MINUTE, NOON + HOUR) is None
    assert timeout_error(core, state, -HOUR, NOON - HOUR - 10 * MINUTE) is None, "the clock was set back"
    assert timeout_error(core, state, -HOUR, NOON - HOUR - 11 * MINUTE) is not None
    deleting = core.builds.request_next_build(build().task_id, state, Transition.DELETE, NOON)
    assert timeout_error(core, deleting, HOUR) == "No runner picked up the workspace deletion in time."
    assert core.liveness.time_out_build(state, NOON, NOON + HOUR, timeouts(core)).unanswered_build is None


def test_a_build_without_further_reports_times_out(core: Core) -> None:
    """A pending or running build without a report for 30 min counts as failed; a finished one does not."""
    for job in (JobStatus.PENDING, JobStatus.RUNNING):
        assert timeout_error(core, folded(core, [build(job=job)]), 30 * MINUTE) is None
        error = timeout_error(core, folded(core, [build(job=job)]), 30 * MINUTE + SECOND)
        assert error == "No report about the workspace start arrived in time."
    for job in (UP, JobStatus.FAILED, JobStatus.CANCELED):
        assert timeout_error(core, folded(core, [build(job=job)]), HOUR) is None
    unrequested = folded(core, [build(2)])
    assert unrequested.unanswered_build == 1
    assert timeout_error(core, unrequested, 11 * MINUTE) is None


def test_next_deadline(core: Core) -> None:
    """The next deadline is that of an active build or of a connecting agent; otherwise there is none."""

    def deadline(state: Any, since: datetime | None = None) -> timedelta | None:
        at = core.liveness.next_deadline(state, timeouts(core), NOON, since)
        return None if at is None else at - NOON

    assert deadline(core.builds.initial_state(build().task_id, NOON)) == 10 * MINUTE
    assert deadline(core.builds.initial_state(build().task_id, NOON), NOON + HOUR) == HOUR + 10 * MINUTE
    assert deadline(folded(core, [build()])) == 30 * MINUTE
    assert deadline(folded(core, [build(), lifecycle()])) == 120 * SECOND
    assert deadline(folded(core, [build(job=UP), lifecycle()]), NOON + HOUR) == HOUR + 120 * SECOND
    assert deadline(folded(core, [build(job=UP), build(1, 1, UP, agent_id=AGENTS[0])])) == 120 * SECOND
    assert deadline(running(core)) is None
    assert deadline(folded(core, [build(job=UP)])) is None
    silent = core.liveness.detect_loss(running(core), NOON, NOON + MINUTE, timeouts(core))
    assert deadline(silent) is None
    assert deadline(folded(core, [build(2, job=UP), lifecycle(number=2)], silent)) == 120 * SECOND
    late = core.liveness.detect_loss(folded(core, [build(job=UP), lifecycle()]), NOON, NOON + HOUR, timeouts(core))
    assert deadline(late) is None
    yesterday = NOON - 24 * HOUR
    assert core.liveness.next_deadline(folded(core, [build()]), timeouts(core), yesterday) == yesterday + 30 * MINUTE
