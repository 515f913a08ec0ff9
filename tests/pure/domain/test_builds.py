"""Which build comes next: numbers that rise, and a delete that is pursued to its end."""

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


def deleted(core: Core, memory: Any) -> Any:
    """The memory just after a delete was accepted."""
    return replace(memory, deletion=core.task.Deletion())


def pursued(core: Core, memory: Any, after: timedelta = timedelta()) -> Any:
    """The memory one step on, so long after noon."""
    backoff = Backoff(5, 60)
    return core.builds.advance_delete(TASK, memory, NOON + after, backoff)


def gone(number: int, job: JobStatus, seq: int = 0) -> Any:
    """A report about a delete."""
    return build(number, seq, job, transition=Transition.DELETE)


def test_asking_is_a_build_that_any_report_outdoes(core: Core) -> None:
    """Asking is the next number's build facet at seq -1, pending and unanswered; a report of it at seq 0 wins."""
    state = core.builds.initial_state(TASK, NOON)
    assert (state.number, state.build.report.seq, state.job, state.pending_build) == (1, -1, "pending", 1)
    own = folded(core, [build(4, job=JobStatus.SUCCEEDED)], state)
    stopped = core.builds.request_next_build(TASK, own, Transition.STOP, NOON)
    assert (stopped.number, stopped.job, stopped.pending_build) == (5, "pending", 5)
    assert stopped.requested_builds == {1: Transition.START, 5: Transition.STOP}
    assert folded(core, [build(5, 0, transition=Transition.STOP)], stopped).job == "running"


def test_what_was_asked_is_remembered_within_bounds(core: Core) -> None:
    """The latest 256 of the worker's own builds are kept to judge conflicts by."""
    state = core.builds.initial_state(TASK, NOON)
    for _ in range(300):
        state = core.builds.request_next_build(TASK, state, Transition.STOP, NOON)
    assert sorted(state.requested_builds) == list(range(46, 302))


def test_no_number_past_the_last(core: Core) -> None:
    """At the greatest build number of the contract nothing can be asked for any more, a delete neither."""
    last = folded(core, [build(2**31 - 1, job=JobStatus.SUCCEEDED)])
    assert core.builds.is_exhausted(last)
    assert not core.builds.is_exhausted(folded(core, [build(2**31 - 2)]))
    waiting = deleted(core, last)
    assert pursued(core, waiting) is waiting
    assert pursued(core, deleted(core, folded(core, [gone(2**31 - 1, JobStatus.SUCCEEDED)]))).deletion.done


def test_a_delete_waits_for_the_active_build(core: Core) -> None:
    """A delete is numbered and asked for when no build is active any more, by its end or by being given up."""
    waiting = deleted(core, core.builds.initial_state(TASK, NOON))
    assert pursued(core, waiting) is waiting
    for job in (JobStatus.RUNNING, JobStatus.CANCELING):
        busy = folded(core, [build(job=job)], waiting)
        assert pursued(core, busy) is busy
    for job in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED):
        after = pursued(core, folded(core, [build(job=job)], waiting))
        assert (after.number, after.build.report.transition, after.pending_build) == (2, "delete", 2)
        assert after.deletion.attempts == 1
    given_up = replace(waiting, timed_out=core.task.TimedOut(1, -1, "nobody came"))
    assert pursued(core, given_up).number == 2


def test_nothing_is_deleted_unasked(core: Core) -> None:
    """A task that was not deleted, or whose delete is done, is left alone."""
    alive = folded(core, [build(job=JobStatus.SUCCEEDED)])
    assert pursued(core, alive) is alive
    done = replace(alive, deletion=core.task.Deletion(1, None, done=True))
    assert pursued(core, done) is done


def test_a_delete_ends_with_its_build(core: Core) -> None:
    """A delete is done when a delete build succeeded, its own or one of the provisioner's own accord."""
    asked = pursued(core, deleted(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    done = pursued(core, folded(core, [gone(2, JobStatus.SUCCEEDED)], asked))
    assert done.deletion.done
    own = pursued(core, deleted(core, folded(core, [gone(2, JobStatus.SUCCEEDED)])))
    assert own.deletion.done
    assert own.number == 2
    stopped = folded(core, [build(2, 0, JobStatus.SUCCEEDED, transition=Transition.STOP)])
    assert not pursued(core, deleted(core, stopped)).deletion.done


def test_a_failed_delete_is_asked_for_again(core: Core) -> None:
    """A delete that failed, was canceled or given up is asked for again after a backoff, under the next number."""
    asked = pursued(core, deleted(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    failures = [
        folded(core, [gone(2, JobStatus.FAILED)], asked),
        folded(core, [gone(2, JobStatus.CANCELED)], asked),
        replace(asked, timed_out=core.task.TimedOut(2, -1, "nobody came"), pending_build=None),
    ]
    for failed in failures:
        noted = pursued(core, failed)
        assert (noted.number, noted.deletion.retry_at) == (2, NOON + 5 * SECOND)
        assert pursued(core, noted, 4 * SECOND) is noted
        again = pursued(core, noted, 5 * SECOND)
        assert (again.number, again.deletion.attempts, again.deletion.retry_at) == (3, 2, None)
        failed_again = pursued(core, folded(core, [gone(3, JobStatus.FAILED)], again))
        assert failed_again.deletion.retry_at == NOON + 10 * SECOND


def test_a_late_success_ends_the_retries(core: Core) -> None:
    """A delete that failed and then succeeded after all, while a retry was waited for, is done."""
    asked = pursued(core, deleted(core, folded(core, [build(job=JobStatus.SUCCEEDED)])))
    noted = pursued(core, folded(core, [gone(2, JobStatus.FAILED)], asked))
    done = pursued(core, folded(core, [gone(2, JobStatus.SUCCEEDED, 1)], noted), 5 * SECOND)
    assert done.deletion.done
    assert done.deletion.retry_at is None
    assert done.number == 2
