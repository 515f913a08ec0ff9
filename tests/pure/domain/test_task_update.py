"""What a batch does to one task, decided without a database: timer checks, outcomes of reports, and the inbox."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from taskherd.backoff import Backoff
from taskherd.domain.commands import Delete, Send
from taskherd.domain.handle_command import CreateContext
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentState, InputOutcome, JobStatus, TaskInput, Transition
from taskherd.domain.task import Inbox, Task
from taskherd.domain.task_update import (
    Policies,
    TaskUpdate,
    TimerCheck,
    apply_command,
    apply_report,
    apply_timer_check,
    finalize,
)
from taskherd.domain.value import replace
from tests.harness.histories import NOON, TASK
from tests.pure.domain.mutated_core import whole
from tests.pure.domain.test_fold import build, heartbeat, patience, status
from tests.pure.domain.test_inbox import active
from tests.pure.domain.test_liveness import running

SECOND = timedelta(seconds=1)
SINCE = NOON - timedelta(hours=1)
LATER = NOON + 10 * SECOND
ONE, TWO, THREE = UUID(int=1), UUID(int=2), UUID(int=3)


def policies(*known: UUID, decided: tuple[UUID, ...] = ()) -> Policies:
    """The policies of the contract, where the task has these inputs."""
    around = CreateContext({}, {}, {}, lambda prompt, _taken: prompt)
    open_inputs = frozenset(known) - set(decided)
    return Policies(patience(whole()), Backoff(1, 1), around, open_inputs, frozenset(known))


def updated(memory: Any, queue: tuple[UUID, ...] = ()) -> TaskUpdate:
    """An update of a task with this memory and queue, to which nothing is applied yet."""
    b, c, d, e = (uuid4() for _ in range(4))
    task = Task(TASK, b, c, d, e, None, "name", "", "prompt", 1, NOON, NOON, 1, None, memory)
    return TaskUpdate(task, task, queue=queue)


def waiting(queued: int, in_flight: UUID | None = None, *reports: Any) -> Any:
    """The memory of an active task with so many queued inputs, and one that was sent."""
    return replace(active(whole(), *reports), inbox=Inbox(queued, in_flight))


def outcome(input_id: UUID, what: InputOutcome = InputOutcome.FAILED) -> TaskInput:
    """A report of what became of an input."""
    return TaskInput(task_id=TASK, build_number=1, seq=0, input_id=input_id, outcome=what)


def inbox(update: TaskUpdate) -> tuple[UUID | None, int, UUID | None]:
    """The input that goes out with the update, and then how many are queued and which one is in flight."""
    held = update.existing_task.state.inbox
    return update.sent_input, held.queued, held.in_flight


def found_silent(now: datetime, check: TimerCheck) -> bool:
    """Whether a timer check finds the agent silent that was heard at noon."""
    update = updated(running(whole()))
    apply_timer_check(update, check, now, policies())
    return update.existing_task.state.silence is not None


def test_nobody_is_found_silent_whom_the_count_of_the_silent_left_out() -> None:
    """An agent that had a moment left when the silent were counted is not lost a moment later, by another way."""
    over = NOON + 31 * SECOND
    assert found_silent(over, TimerCheck(SINCE))
    assert found_silent(over, TimerCheck(SINCE, counted_at=over))
    assert not found_silent(over, TimerCheck(SINCE, counted_at=NOON + 30 * SECOND))
    assert not found_silent(over, TimerCheck(SINCE, mass_held=True))
    assert not found_silent(over, TimerCheck(None))


def test_each_report_has_an_outcome() -> None:
    """Applied, stale, a conflict, or a tombstone; what conflicts or is stale leaves the task as it was."""
    update = updated(active(whole()))
    start = update.task
    assert apply_report(update, build(job=JobStatus.SUCCEEDED), LATER, policies()) is ReportOutcome.STALE
    wrong = build(seq=9, transition=Transition.STOP)
    assert apply_report(update, wrong, LATER, policies()) is ReportOutcome.CONFLICT
    assert update.task is start
    assert apply_report(update, status(AgentState.WORKING), LATER, policies()) is ReportOutcome.APPLIED
    apply_command(update, Delete(command_id=ONE, task_id=TASK, actor_id=TWO), LATER, policies())
    assert apply_report(update, heartbeat(), LATER, policies()) is ReportOutcome.TOMBSTONE


def test_each_input_is_decided_once() -> None:
    """The first outcome of an input counts, also within a batch; one that the task never had is refused."""
    update = updated(waiting(0, ONE))
    known = policies(ONE, TWO, decided=(TWO,))
    assert apply_report(update, outcome(ONE), LATER, known) is ReportOutcome.APPLIED
    assert apply_report(update, outcome(ONE), LATER, known) is ReportOutcome.STALE
    assert apply_report(update, outcome(TWO), LATER, known) is ReportOutcome.STALE
    assert apply_report(update, outcome(THREE), LATER, known) is ReportOutcome.UNKNOWN_INPUT
    assert [report.input_id for report in update.input_outcomes] == [ONE]


def test_a_failed_input_lets_the_next_go_in_the_same_batch() -> None:
    """With the predecessor's outcome the next one goes, past those whose outcomes came before they were sent."""
    update = updated(waiting(2, ONE), (TWO, THREE))
    for report in (outcome(ONE), outcome(TWO, InputOutcome.DELIVERED)):
        apply_report(update, report, LATER, policies(ONE, TWO, THREE))
    finalize(update, LATER, policies())
    assert inbox(update) == (THREE, 1, THREE)


def test_a_queue_that_was_decided_unsent_is_emptied() -> None:
    """Where the outcomes of all queued inputs came before they were sent, none goes and none is counted."""
    update = updated(waiting(2), (TWO,))
    apply_report(update, outcome(TWO), LATER, policies(TWO))
    finalize(update, LATER, policies())
    assert inbox(update) == (None, 0, None)


def test_a_sent_input_goes_behind_those_that_wait() -> None:
    """An input that is sent to a task goes at once where none waits; else the first of the queue goes."""
    send = Send(command_id=THREE, task_id=TASK, actor_id=TWO, input="x")
    empty = updated(active(whole()))
    apply_command(empty, send, LATER, policies())
    finalize(empty, LATER, policies())
    assert inbox(empty) == (THREE, 0, THREE)
    queued = updated(waiting(1), (ONE,))
    apply_command(queued, send, LATER, policies())
    finalize(queued, LATER, policies())
    assert inbox(queued) == (ONE, 1, ONE)


def test_a_send_and_its_predecessors_outcome_in_one_batch() -> None:
    """The command is applied first and waits; the outcome then lets it go."""
    update = updated(waiting(0, ONE))
    apply_command(update, Send(command_id=TWO, task_id=TASK, actor_id=THREE, input="x"), LATER, policies())
    apply_report(update, outcome(ONE), LATER, policies(ONE))
    finalize(update, LATER, policies())
    assert inbox(update) == (TWO, 0, TWO)


def test_a_delete_lets_no_input_go() -> None:
    """It fails all that are not decided, and from then on nothing of the queue is sent."""
    update = updated(waiting(2), (ONE, TWO))
    apply_command(update, Delete(command_id=THREE, task_id=TASK, actor_id=ONE), LATER, policies())
    finalize(update, LATER, policies())
    assert update.inputs_failed
    assert inbox(update) == (None, 0, None)


def test_an_expired_input_lets_the_next_go() -> None:
    """An input that no runner took in time fails, and the next one goes with it."""
    update = updated(waiting(1, ONE), (TWO,))
    apply_timer_check(update, TimerCheck(SINCE, expired_inputs=(ONE,)), LATER, policies(ONE))
    finalize(update, LATER, policies())
    assert [(report.input_id, report.outcome) for report in update.input_outcomes] == [(ONE, InputOutcome.FAILED)]
    assert inbox(update) == (TWO, 0, TWO)


def test_a_busy_agent_gets_nothing() -> None:
    """While the agent works or an input is in flight, the queue stays as it is."""
    for state in (waiting(1, None, status(AgentState.WORKING)), waiting(1, ONE)):
        update = updated(state, (TWO,))
        finalize(update, LATER, policies())
        assert update.task is update.before
        assert inbox(update) == (None, 1, state.inbox.in_flight)


def test_a_build_is_requested_once() -> None:
    """A new build number is requested unless the batch answers it, and a delete is retried only after a failure."""
    update = updated(active(whole()))
    apply_command(update, Delete(command_id=ONE, task_id=TASK, actor_id=TWO), LATER, policies())
    finalize(update, LATER, policies())
    assert (update.requested_builds, update.answered_builds, update.delete_retried) == ([2], [], False)
    failed = build(2, job=JobStatus.FAILED, transition=Transition.DELETE)
    later = TaskUpdate(update.task, update.task)
    apply_report(later, failed, LATER, policies())
    finalize(later, LATER, policies())
    assert (later.requested_builds, later.answered_builds, later.delete_retried) == ([], [2], False)
    retried = TaskUpdate(later.task, later.task)
    finalize(retried, LATER + 60 * SECOND, policies())
    assert (retried.requested_builds, retried.delete_retried) == ([3], True)
