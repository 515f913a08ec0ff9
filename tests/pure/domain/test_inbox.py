"""Inputs are sent one at a time, in order, and never while the agent is busy."""

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
    """Return the state of an active task after these reports, all received at noon."""
    return folded(core, [build(job=JobStatus.SUCCEEDED), lifecycle(), *reports])


def delivered(core: Core, state: Any) -> Any:
    """Return the state after one input was sent and delivered at noon, with another one queued."""
    waiting = core.inbox.enqueue(core.inbox.enqueue(state))
    return core.inbox.record_outcome(core.inbox.mark_sent(waiting, ONE), ONE, NOON, delivered=True)


def test_inputs_are_sent_to_active_tasks_that_are_not_busy(core: Core) -> None:
    """A task is ready if it is active and its agent does not report ``working``; without any report it is not busy."""
    assert core.inbox.is_ready(active(core), NOON)
    for state in AgentState:
        assert core.inbox.is_ready(active(core, status(state)), NOON) == (state is not AgentState.WORKING)
        assert core.inbox.is_busy(active(core, status(state))) == (state is AgentState.WORKING)
    for reports in ([], [build()], [build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)]):
        assert not core.inbox.is_ready(folded(core, reports), NOON)


def test_one_input_is_in_flight_at_a_time(core: Core) -> None:
    """While an input is in flight no other is sent; only its own outcome changes that."""
    in_flight = core.inbox.mark_sent(core.inbox.enqueue(active(core)), ONE)
    assert core.inbox.is_busy(in_flight)
    assert not core.inbox.is_ready(in_flight, NOON + 60 * SECOND)
    assert core.inbox.record_outcome(in_flight, TWO, NOON, delivered=True) is in_flight
    failed = core.inbox.record_outcome(in_flight, ONE, NOON, delivered=False)
    assert core.inbox.is_ready(failed, NOON)


def test_the_next_input_is_sent_after_a_new_state_or_five_seconds(core: Core) -> None:
    """After a delivery the next input is sent after a new state other than ``working``, or after 5 s without one."""
    state = delivered(core, active(core, status(AgentState.IDLE)))
    assert not core.inbox.is_ready(state, NOON + 4 * SECOND)
    assert core.inbox.is_ready(state, NOON + 5 * SECOND)
    idle = core.fold.fold(state, status(AgentState.IDLE, seq=1), NOON + SECOND).state
    assert core.inbox.is_ready(idle, NOON + SECOND)
    working = core.fold.fold(state, status(AgentState.WORKING, seq=1), NOON + SECOND).state
    assert not core.inbox.is_ready(working, NOON + 60 * SECOND)


def test_when_the_inbox_is_checked_without_a_report(core: Core) -> None:
    """The inbox is checked 5 s after a delivery, or at once, if an input is queued that does not wait for a report."""
    state = delivered(core, active(core))
    assert core.inbox.next_check_at(state, NOON) == NOON + 5 * SECOND
    assert core.inbox.next_check_at(active(core), NOON) is None
    last = core.inbox.record_outcome(
        core.inbox.mark_sent(core.inbox.enqueue(active(core)), ONE), ONE, NOON, delivered=True
    )
    assert core.inbox.next_check_at(last, NOON) is None
    assert core.inbox.next_check_at(core.inbox.enqueue(active(core)), NOON) == NOON
    assert core.inbox.next_check_at(core.inbox.mark_sent(state, TWO), NOON) is None
    assert core.inbox.next_check_at(delivered(core, active(core, status(AgentState.WORKING))), NOON) is None
    idle = core.fold.fold(state, status(AgentState.IDLE, seq=1), NOON + SECOND).state
    assert core.inbox.next_check_at(idle, NOON + SECOND) == NOON + SECOND


def test_a_delivery_that_a_clock_ahead_has_noted_holds_up_nothing(core: Core) -> None:
    """After the clock was set back, the next input does not wait until it is as late again; small skew counts."""
    state = delivered(core, active(core))
    for back, ready in ((SECOND, False), (30 * SECOND, False), (31 * SECOND, True), (timedelta(days=1), True)):
        assert core.inbox.is_ready(state, NOON - back) is ready
        assert core.inbox.next_check_at(state, NOON - back) == (NOON - back if ready else NOON + 5 * SECOND)


def test_queued_inputs_are_counted(core: Core) -> None:
    """Queued inputs are counted; a delete empties the inbox; a paused task keeps its inputs and sends none."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    assert state.inbox.queued == 2
    sent = core.inbox.mark_sent(state, ONE)
    assert (sent.inbox.queued, sent.inbox.in_flight) == (1, ONE)
    empty = core.inbox.fail_all(sent)
    assert (empty.inbox.queued, empty.inbox.in_flight) == (0, None)
    paused = folded(core, [build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)], state)
    assert paused.inbox == state.inbox
    assert not core.inbox.is_ready(paused, NOON + 60 * SECOND)


def test_the_first_input_without_an_outcome_is_sent_next(core: Core) -> None:
    """The first input of the queue is sent; those that got an outcome while queued are skipped."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    later = NOON + SECOND
    assert core.inbox.send_next(state, [ONE, TWO], (), later) == (core.inbox.mark_sent(state, ONE), ONE)
    assert core.inbox.send_next(state, [ONE, TWO], {ONE}, later) == (core.inbox.mark_sent(state, TWO), TWO)
    in_flight, _ = core.inbox.send_next(state, [ONE, TWO], (), later)
    assert core.inbox.send_next(in_flight, [TWO], (), later) == (in_flight, None)
    freed = core.inbox.record_outcome(in_flight, ONE, later, delivered=False)
    assert core.inbox.send_next(freed, [TWO], {ONE}, later) == (core.inbox.mark_sent(freed, TWO), TWO)


def test_a_queue_of_inputs_with_outcomes_is_emptied(core: Core) -> None:
    """If all queued inputs got an outcome before they were sent, nothing is queued any more."""
    state = core.inbox.enqueue(core.inbox.enqueue(active(core)))
    empty = core.inbox.fail_all(state)
    assert core.inbox.send_next(state, [ONE], {ONE}, NOON) == (empty, None)
    assert core.inbox.send_next(state, [], (), NOON) == (empty, None)


def test_nothing_is_sent_from_an_empty_queue_or_to_a_busy_agent(core: Core) -> None:
    """Without a queued input, or while none may be sent, the state does not change."""
    state = active(core)
    after, sent = core.inbox.send_next(state, [ONE], (), NOON)
    assert after is state
    assert sent is None
    busy = core.inbox.enqueue(active(core, status(AgentState.WORKING)))
    after, sent = core.inbox.send_next(busy, [ONE], (), NOON)
    assert after is busy
    assert sent is None
