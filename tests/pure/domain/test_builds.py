"""Build requests with rising numbers, and the steps of a delete."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from taskherd.backoff import Backoff
from taskherd.domain.reports import JobStatus, Transition
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_fold import build, folded

if TYPE_CHECKING:
    from tests.pure.domain.mutated_core import Core

SECOND = timedelta(seconds=1)


def with_delete(core: Core, state: Any) -> Any:
    """Return the state with a delete that was just accepted."""
    return replace(state, deletion=core.task.Deletion())


def advanced(core: Core, state: Any, after: timedelta = timedelta()) -> Any:
    """Return the state after one more step of the delete, ``after`` noon."""
    backoff = Backoff(5, 60)
    return core.builds.advance_delete(TASK, state, NOON + after, backoff)


def delete_report(number: int, job: JobStatus, seq: int = 0) -> Any:
    """Return a report about a delete build."""
    return build(number, seq, job, transition=Transition.DELETE)


def test_any_report_supersedes_a_build_request(core: Core) -> None:
    """A request is a pending build facet with the next number and seq -1, so a report with seq 0 supersedes it."""
    state = core.builds.initial_state(TASK, NOON)
    assert (state.build_number, state.build.report.seq, state.job_status, state.unanswered_build) == (
        1,
        -1,
        "pending",
        1,
    )
    unrequested = folded(core, [build(4, job=JobStatus.SUCCEEDED)], state)
    stopped = core.builds.request_next_build(TASK, unrequested, Transition.STOP, NOON)
    assert (stopped.build_number, stopped.job_status, stopped.unanswered_build) == (5, "pending", 5)
    assert stopped.requested_builds == {1: Transition.START, 5: Transition.STOP}
    assert folded(core, [build(5, 0, transition=Transition.STOP)], stopped).job_status == "running"


def test_only_the_latest_256_requested_builds_are_kept(core: Core) -> None:
    """The latest 256 requested builds are kept to detect conflicts."""
    state = core.builds.initial_state(TASK, NOON)
    for _ in range(300):
        state = core.builds.request_next_build(TASK, state, Transition.STOP, NOON)
    assert sorted(state.requested_builds) == list(range(46, 302))


def test_no_build_is_requested_past_the_maximum_number(core: Core) -> None:
    """After the maximum build number no build can be requested, not even a delete."""
    last = folded(core, [build(2**31 - 1, job=JobStatus.SUCCEEDED)])
    assert core.builds.is_exhausted(last)
    assert not core.builds.is_exhausted(folded(core, [build(2**31 - 2)]))
    waiting = with_delete(core, last)
    assert advanced(core, waiting) is waiting
    assert advanced(
        core, with_delete(core, folded(core, [delete_report(2**31 - 1, JobStatus.SUCCEEDED)]))
    ).deletion.done


def test_a_delete_waits_for_the_active_build(core: Core) -> None:
    """A delete build is requested when no other build is active, because it ended or timed out."""
    waiting = with_delete(core, core.builds.initial_state(TASK, NOON))
    assert advanced(core, waiting) is waiting
    for job in (JobStatus.RUNNING, JobStatus.CANCELING):
        busy = folded(core, [build(job=job)], waiting)
        assert advanced(core, busy) is busy
    for job in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
        after = advanced(core, folded(core, [build(job=job)], waiting))
        assert (after.build_number, after.build.report.transition, after.unanswered_build) == (2, "delete", 2)
        assert after.deletion.attempts == 1
    timed_out = replace(waiting, timed_out=core.task.TimedOut(1, -1, "no runner"))
    assert advanced(core, timed_out).build_number == 2


def test_only_an_unfinished_delete_requests_a_build(core: Core) -> None:
    """A task without a delete, or whose delete is done, is not changed."""
    alive = folded(core, [build(job=JobStatus.SUCCEEDED)])
    assert advanced(core, alive) is alive
    done = replace(alive, deletion=core.task.Deletion(1, None, done=True))
    assert advanced(core, done) is done


def test_a_delete_is_done_when_a_delete_build_succeeds(core: Core) -> None:
    """A delete is done when a delete build has succeeded, whether the worker requested it or not."""
    requested = advanced(core, with_delete(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    done = advanced(core, folded(core, [delete_report(2, JobStatus.SUCCEEDED)], requested))
    assert done.deletion.done
    unrequested = advanced(core, with_delete(core, folded(core, [delete_report(2, JobStatus.SUCCEEDED)])))
    assert unrequested.deletion.done
    assert unrequested.build_number == 2
    stopped = folded(core, [build(2, 0, JobStatus.SUCCEEDED, transition=Transition.STOP)])
    assert not advanced(core, with_delete(core, stopped)).deletion.done


def test_a_failed_delete_is_retried_after_a_backoff(core: Core) -> None:
    """A delete that failed, was canceled or timed out is requested again after a backoff, under the next number."""
    requested = advanced(core, with_delete(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    failures = [
        folded(core, [delete_report(2, JobStatus.FAILED)], requested),
        folded(core, [delete_report(2, JobStatus.CANCELED)], requested),
        replace(requested, timed_out=core.task.TimedOut(2, -1, "no runner"), unanswered_build=None),
    ]
    for failed in failures:
        scheduled = advanced(core, failed)
        assert (scheduled.build_number, scheduled.deletion.retry_at) == (2, NOON + 5 * SECOND)
        assert advanced(core, scheduled, 4 * SECOND) is scheduled
        again = advanced(core, scheduled, 5 * SECOND)
        assert (again.build_number, again.deletion.attempts, again.deletion.retry_at) == (3, 2, None)
        failed_again = advanced(core, folded(core, [delete_report(3, JobStatus.FAILED)], again))
        assert failed_again.deletion.retry_at == NOON + 10 * SECOND


def test_a_retry_that_a_clock_ahead_has_set_is_due(core: Core) -> None:
    """After the clock was set back, a delete does not wait until it is as late again; small skew counts."""
    requested = advanced(core, with_delete(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    scheduled = advanced(core, folded(core, [delete_report(2, JobStatus.FAILED)], requested))
    for back in (SECOND, 30 * SECOND):
        assert advanced(core, scheduled, -back) is scheduled
    for back in (31 * SECOND, timedelta(days=1)):
        assert advanced(core, scheduled, -back).build_number == 3


def test_a_late_success_ends_the_retries(core: Core) -> None:
    """A delete that failed and is then reported as succeeded before its retry is done."""
    requested = advanced(core, with_delete(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    scheduled = advanced(core, folded(core, [delete_report(2, JobStatus.FAILED)], requested))
    done = advanced(core, folded(core, [delete_report(2, JobStatus.SUCCEEDED, 1)], scheduled), 5 * SECOND)
    assert done.deletion.done
    assert done.deletion.retry_at is None
    assert done.build_number == 2
