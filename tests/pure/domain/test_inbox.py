"""Inputs go out one at a time, in order, and never while the agent is busy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain.reports import AgentState, JobStatus, Transition
from tests.harness.histories import NOON
from tests.pure.domain.test_fold import build, folded, lifecycle, status

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

SECOND = timedelta(seconds=1)
ONE, TWO = UUID(int=1), UUID(int=2)


def active(core: Core, *reports: Report) -> Any:
    """A task that is active, and then told this, all at noon."""
    return folded(core, [build(job=JobStatus.SUCCEEDED), lifecycle(), *reports])


def delivered(core: Core, memory: Any) -> Any:
    """The memory after an input was accepted, went out and was delivered, at noon, with another in the queue."""
    waiting = core.inbox.enqueue(core.inbox.enqueue(memory))
    return core.inbox.record_outcome(core.inbox.mark_sent(waiting, ONE), ONE, NOON, delivered=True)


def test_an_input_goes_to_an_active_task_that_is_not_busy(core: Core) -> None:
    """Ready: active and in no state of working; nothing said is not busy."""
    assert core.inbox.is_ready(active(core), NOON)
    for state in AgentState:
        assert core.inbox.is_ready(active(core, status(state)), NOON) == (state is not AgentState.WORKING)
        assert core.inbox.is_busy(active(core, status(state))) == (state is AgentState.WORKING)
    for reports in ([], [build()], [build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)]):
        assert not core.inbox.is_ready(folded(core, reports), NOON)


def test_one_at_a_time(core: Core) -> None:
    """While an input is in flight no other goes; its outcome frees the way, and no other's does."""
    out = core.inbox.mark_sent(core.inbox.enqueue(active(core)), ONE)
    assert core.inbox.is_busy(out)
    assert not core.inbox.is_ready(out, NOON + 60 * SECOND)
    assert core.inbox.record_outcome(out, TWO, NOON, delivered=True) is out
    failed = core.inbox.record_outcome(out, ONE, NOON, delivered=False)
    assert core.inbox.is_ready(failed, NOON)


def test_the_next_goes_after_a_new_state_or_five_seconds(core: Core) -> None:
    """After a delivery: when a state other than working was taken since, or 5 s passed without a new one."""
    state = delivered(core, active(core, status(AgentState.IDLE)))
    assert not core.inbox.is_ready(state, NOON + 4 * SECOND)
    assert core.inbox.is_ready(state, NOON + 5 * SECOND)
    idle = core.fold.fold(state, status(AgentState.IDLE, seq=1), NOON + SECOND).state
    assert core.inbox.is_ready(idle, NOON + SECOND)
    working = core.fold.fold(state, status(AgentState.WORKING, seq=1), NOON + SECOND).state
    assert not core.inbox.is_ready(working, NOON + 60 * SECOND)


def test_when_the_inbox_wants_to_be_looked_at(core: Core) -> None:
    """5 s after a delivery while something is queued; not while only a report can free the way."""
    state = delivered(core, active(core))
    assert core.inbox.next_check_at(state) == NOON + 5 * SECOND
    assert core.inbox.next_check_at(active(core)) is None
    last = core.inbox.record_outcome(
        core.inbox.mark_sent(core.inbox.enqueue(active(core)), ONE), ONE, NOON, delivered=True
    )
    assert core.inbox.next_check_at(last) is None
    assert core.inbox.next_check_at(core.inbox.enqueue(active(core))) is None
    assert core.inbox.next_check_at(core.inbox.mark_sent(state, TWO)) is None
    assert core.inbox.next_check_at(delivered(core, active(core, status(AgentState.WORKING)))) is None
    assert core.inbox.next_check_at(core.fold.fold(state, status(AgentState.IDLE, seq=1), NOON + SECOND).state) is None


def test_the_count(core: Core) -> None:
    """What is queued is counted; a delete empties it; a pause keeps it and lets nothing out."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    assert state.inbox.queued == 2
    out = core.inbox.mark_sent(state, ONE)
    assert (out.inbox.queued, out.inbox.in_flight) == (1, ONE)
    empty = core.inbox.fail_all(out)
    assert (empty.inbox.queued, empty.inbox.in_flight) == (0, None)
    paused = folded(core, [build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)], state)
    assert paused.inbox == state.inbox
    assert not core.inbox.is_ready(paused, NOON + 60 * SECOND)


def test_the_first_undecided_input_goes_next(core: Core) -> None:
    """One goes out, the first in order; those that were decided while they waited are passed over."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    later = NOON + SECOND
    assert core.inbox.send_next(state, [ONE, TWO], (), later) == (core.inbox.mark_sent(state, ONE), ONE)
    assert core.inbox.send_next(state, [ONE, TWO], {ONE}, later) == (core.inbox.mark_sent(state, TWO), TWO)
    out, _ = core.inbox.send_next(state, [ONE, TWO], (), later)
    assert core.inbox.send_next(out, [TWO], (), later) == (out, None)
    freed = core.inbox.record_outcome(out, ONE, later, delivered=False)
    assert core.inbox.send_next(freed, [TWO], {ONE}, later) == (core.inbox.mark_sent(freed, TWO), TWO)


def test_a_queue_of_decided_inputs_is_empty(core: Core) -> None:
    """Where everything that was counted was decided before it went out, nothing is queued any more."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    empty = core.inbox.fail_all(state)
    assert core.inbox.send_next(state, [ONE], {ONE}, NOON) == (empty, None)
    assert core.inbox.send_next(state, [], (), NOON) == (empty, None)


def test_nothing_goes_from_an_empty_queue_or_to_a_busy_agent(core: Core) -> None:
    """Without a queued input, or while none may go, the memory stays as it is."""
    state = active(core)
    after, sent = core.inbox.send_next(state, [ONE], (), NOON)
    assert after is state
    assert sent is None
    busy = core.inbox.enqueue(active(core, status(AgentState.WORKING)))
    after, sent = core.inbox.send_next(busy, [ONE], (), NOON)
    assert after is busy
    assert sent is None
