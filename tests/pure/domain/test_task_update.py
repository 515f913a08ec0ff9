"""The effect of a batch on one task, without a database: timer checks, outcomes of reports, and the inbox."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.backoff import Backoff
from taskherd.domain.commands import Delete, Pause, Resume, Send
from taskherd.domain.handle_command import CommandContext, EarlierInput
from taskherd.domain.inbox import QueuedInput
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.recovery import RecoveryPolicy
from taskherd.domain.reports import (
    AgentExit,
    AgentInterrupted,
    AgentRequest,
    AgentState,
    AgentUsage,
    ExitReason,
    InputOutcome,
    InputOutcomeReport,
    InterruptOutcome,
    JobStatus,
    Report,
    TaskLog,
    Transition,
)
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import Deletion, Inbox, LastLog, Silence, Stall
from taskherd.domain.task_update import apply_command, apply_report, apply_timer_check, due_at, finalize
from taskherd.domain.updates import AcceptedInput, Cause, TaskUpdate, TimerCheck, UpdateContext
from taskherd.domain.value import replace
from taskherd.messages.run_policy import default_policy
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, status, timeouts
from tests.pure.domain.test_inbox import active
from tests.pure.domain.test_liveness import running

SECOND = timedelta(seconds=1)
WATERMARK = NOON - timedelta(hours=1)
LATER = NOON + 10 * SECOND
ONE, TWO, THREE = UUID(int=1), UUID(int=2), UUID(int=3)


def context(*known: UUID, decided: tuple[UUID, ...] = (), of: UUID = TASK) -> UpdateContext:
    """Return the context of a batch that refers to the inputs ``known`` of one task, some of them ``decided``."""
    command_context = CommandContext({}, {}, {}, {})
    known_inputs = frozenset((of, input_id) for input_id in known)
    open_inputs = known_inputs - {(of, input_id) for input_id in decided}
    return UpdateContext(
        timeouts(unchanged_core()), Backoff(1, 1), command_context, default_policy(1800), {}, open_inputs, known_inputs
    )


def new_update(state: Any, queue: tuple[UUID, ...] = ()) -> TaskUpdate:
    """Return the update of a task with this state and queue, before any input is applied."""
    task = make_task(TASK, state=state)
    return TaskUpdate(task, task, queue=[QueuedInput(input_id, steers=False) for input_id in queue])


def waiting(queued: int, in_flight: UUID | None = None, *reports: Any) -> Any:
    """Return the state of an active task with ``queued`` inputs and one in flight."""
    return replace(active(unchanged_core(), *reports), inbox=Inbox(queued, in_flight))


def outcome(input_id: UUID, result: InputOutcome = InputOutcome.FAILED) -> InputOutcomeReport:
    """Return a report of the outcome of an input."""
    return InputOutcomeReport(task_id=TASK, build_number=1, seq=0, input_id=input_id, outcome=result)


def inbox(update: TaskUpdate) -> tuple[UUID | None, int, UUID | None]:
    """Return the input that the update sends, the number of queued inputs after it, and the one in flight."""
    after = update.existing_task.state.inbox
    return update.sent_input, after.queued, after.in_flight


def found_silent(now: datetime, check: TimerCheck) -> bool:
    """Return whether a timer check finds an agent silent whose last heartbeat was at noon."""
    update = new_update(running(unchanged_core()))
    apply_timer_check(update, check, now, context())
    return update.existing_task.state.silence is not None


def test_an_agent_that_was_not_overdue_at_the_last_count_is_not_lost() -> None:
    """An agent that was not overdue at the sweeper's last count is not marked as lost, even if it is overdue now."""
    overdue = NOON + 31 * SECOND
    assert found_silent(overdue, TimerCheck(WATERMARK))
    assert found_silent(overdue, TimerCheck(WATERMARK, silence_counted_at=overdue))
    assert not found_silent(overdue, TimerCheck(WATERMARK, silence_counted_at=NOON + 30 * SECOND))
    assert not found_silent(overdue, TimerCheck(WATERMARK, mass_held=True))
    assert not found_silent(overdue, TimerCheck(None))


def test_a_check_that_comes_late_judges_nothing() -> None:
    """Heartbeats may have come since its sweep that look to it as if a wrong clock had stamped them."""
    counted = NOON + 31 * SECOND
    check = TimerCheck(WATERMARK, silence_counted_at=counted)
    assert found_silent(counted + 15 * SECOND, check)
    assert not found_silent(counted + 15 * SECOND + timedelta.resolution, check)
    alive = new_update(running(unchanged_core()))
    apply_report(alive, heartbeat(seq=9), counted + 31 * SECOND, context())
    apply_timer_check(alive, check, counted + 32 * SECOND, context())
    assert alive.existing_task.state.silence is None


def test_each_report_has_an_outcome() -> None:
    """A report is applied, stale, a conflict, out of range or a tombstone; only an applied one changes the task."""
    update = new_update(active(unchanged_core()))
    start = update.task
    assert apply_report(update, build(job=JobStatus.SUCCEEDED), LATER, context()) is ReportOutcome.STALE
    wrong = build(seq=9, transition=Transition.STOP)
    assert apply_report(update, wrong, LATER, context()) is ReportOutcome.CONFLICT
    outcome = InputOutcomeReport(task_id=TASK, build_number=1_002, seq=0, input_id=ONE, outcome=InputOutcome.DELIVERED)
    for stray in (build(1_002), heartbeat(1_002), outcome):
        assert apply_report(update, stray, LATER, context(ONE)) is ReportOutcome.BUILD_OUT_OF_RANGE
    assert update.task is start
    assert apply_report(update, status(AgentState.WORKING), LATER, context()) is ReportOutcome.APPLIED
    apply_command(update, Delete(command_id=ONE, task_id=TASK, actor_id=TWO), LATER, context())
    assert apply_report(update, heartbeat(), LATER, context()) is ReportOutcome.TOMBSTONE


def test_a_command_is_the_cause_whatever_follows_in_its_batch() -> None:
    """Reports and timer checks of the same batch do not replace a command as the cause; a later report replaces one."""
    update = new_update(running(unchanged_core()))
    apply_command(update, Pause(command_id=ONE, task_id=TASK, actor_id=TWO), LATER, context())
    assert apply_report(update, status(AgentState.WORKING), LATER, context()) is ReportOutcome.APPLIED
    apply_timer_check(update, TimerCheck(WATERMARK), LATER + timedelta(days=1), context())
    assert update.timed_out
    assert update.cause == Cause("command", "task.pause", ONE, TWO)
    reports = new_update(running(unchanged_core()))
    apply_report(reports, heartbeat(), LATER, context())
    apply_report(reports, status(AgentState.WORKING), LATER, context())
    assert reports.cause == Cause("report", "app.status")


def test_a_heartbeat_is_the_cause_only_if_nothing_else_is() -> None:
    """Of the reports of a batch the last one is, but a heartbeat comes whatever the agent does."""
    causes = []
    for reports in (
        (heartbeat(seq=5),),
        (heartbeat(seq=5), heartbeat(seq=6)),
        (status(AgentState.WORKING), heartbeat(seq=5)),
        (heartbeat(seq=5), status(AgentState.WORKING), lifecycle(seq=5)),
    ):
        update = new_update(running(unchanged_core()))
        for report in reports:
            apply_report(update, report, LATER, context())
        assert update.cause is not None
        causes.append(update.cause.type)
    assert causes == ["agent.heartbeat", "agent.heartbeat", "app.status", "agent.lifecycle"]


def test_a_report_about_a_request_or_an_interrupt_is_its_cause() -> None:
    """The cause names which one, and what became of it; that of usage has nothing to name."""
    request = AgentRequest(
        task_id=TASK, build_number=1, seq=4, request_id=ONE, kind=RequestKind.QUESTION, title="Which port?"
    )
    asked = new_update(running(unchanged_core()))
    assert apply_report(asked, request, LATER, context()) is ReportOutcome.APPLIED
    assert asked.cause == Cause("report", "agent.request", ONE, outcome="open", request="Which port?")
    assert asked.requests is not None
    assert (set(asked.requests.known), asked.requests.changed) == ({ONE}, {ONE})
    assert asked.existing_task.state.last_log == LastLog(1, LATER)
    ended = AgentInterrupted(
        task_id=TASK, build_number=1, seq=5, interrupt_id=TWO, outcome=InterruptOutcome.STOPPED, detail="It is idle."
    )
    stopped = new_update(unchanged_core().interrupts.begin(running(unchanged_core()), TWO, NOON))
    assert apply_report(stopped, ended, LATER, context()) is ReportOutcome.APPLIED
    assert stopped.cause == Cause("report", "agent.interrupted", TWO, outcome="stopped")
    assert apply_report(stopped, ended, LATER, context()) is ReportOutcome.STALE
    used = new_update(running(unchanged_core()))
    usage = AgentUsage(task_id=TASK, build_number=1, seq=6, model="m", input_tokens=5)
    assert apply_report(used, usage, LATER, context()) is ReportOutcome.APPLIED
    assert used.cause == Cause("report", "agent.usage")
    assert used.usage is not None
    assert [key.model for key in used.usage.new] == ["m"]
    assert apply_report(used, usage, LATER, context()) is ReportOutcome.STALE


def test_the_first_outcome_of_an_input_counts() -> None:
    """Only the first outcome of an input counts, also within a batch; an input that the task never had is unknown."""
    update = new_update(waiting(0, ONE))
    known = context(ONE, TWO, decided=(TWO,))
    assert apply_report(update, outcome(ONE), LATER, known) is ReportOutcome.APPLIED
    assert apply_report(update, outcome(ONE), LATER, known) is ReportOutcome.STALE
    assert apply_report(update, outcome(TWO), LATER, known) is ReportOutcome.STALE
    assert apply_report(update, outcome(THREE), LATER, known) is ReportOutcome.UNKNOWN_INPUT
    assert [report.input_id for report in update.input_outcomes] == [ONE]


def test_an_outcome_sends_the_next_input_in_the_same_batch() -> None:
    """The outcome of the input in flight sends the next one, skipping those that have an outcome already."""
    update = new_update(waiting(2, ONE), (TWO, THREE))
    for report in (outcome(ONE), outcome(TWO, InputOutcome.DELIVERED)):
        apply_report(update, report, LATER, context(ONE, TWO, THREE))
    finalize(update, LATER, context())
    assert inbox(update) == (THREE, 1, THREE)


def test_a_queue_whose_inputs_all_have_outcomes_is_emptied() -> None:
    """If all queued inputs got outcomes before they were sent, none is sent and none is counted."""
    update = new_update(waiting(2), (TWO,))
    apply_report(update, outcome(TWO), LATER, context(TWO))
    finalize(update, LATER, context())
    assert inbox(update) == (None, 0, None)


def test_a_new_input_is_queued_behind_waiting_ones() -> None:
    """A new input is sent at once if the queue is empty; otherwise the first input of the queue is."""
    send = Send(command_id=THREE, task_id=TASK, actor_id=TWO, input="x")
    empty = new_update(active(unchanged_core()))
    apply_command(empty, send, LATER, context())
    finalize(empty, LATER, context())
    assert inbox(empty) == (THREE, 0, THREE)
    queued = new_update(waiting(1), (ONE,))
    apply_command(queued, send, LATER, context())
    finalize(queued, LATER, context())
    assert inbox(queued) == (ONE, 1, ONE)


def test_a_send_and_the_outcome_of_its_predecessor_in_one_batch() -> None:
    """The command is applied first and queues its input; the outcome of the predecessor then sends it."""
    update = new_update(waiting(0, ONE))
    apply_command(update, Send(command_id=TWO, task_id=TASK, actor_id=THREE, input="x"), LATER, context())
    apply_report(update, outcome(ONE), LATER, context(ONE))
    finalize(update, LATER, context())
    assert inbox(update) == (TWO, 0, TWO)


def test_a_repeated_send_is_no_further_input() -> None:
    """Its input is in the inbox already, or was; a first one is kept with who sent it."""
    send = Send(command_id=THREE, task_id=TASK, actor_id=TWO, input="once")
    known = context()
    first = new_update(waiting(0))
    apply_command(first, send, LATER, known)
    assert first.new_inputs == [AcceptedInput(THREE, "once", TWO)]
    earlier = {THREE: EarlierInput(task_id=TASK, content="once", actor_id=TWO, queued=False)}
    again = new_update(waiting(0))
    repeated = replace(known, command_context=CommandContext({}, {}, {}, {}, earlier_inputs=earlier))
    apply_command(again, send, LATER, repeated)
    assert again.new_inputs == []
    assert again.task is again.before


def test_a_delete_fails_all_open_inputs() -> None:
    """A delete fails all inputs without an outcome, and none of the queue is sent afterwards."""
    update = new_update(waiting(2), (ONE, TWO))
    apply_command(update, Delete(command_id=THREE, task_id=TASK, actor_id=ONE), LATER, context())
    finalize(update, LATER, context())
    assert update.inputs_failed
    assert inbox(update) == (None, 0, None)


def test_an_input_is_put_back_although_the_end_is_reported_twice() -> None:
    """The second report of the end in a batch does not undo that the input in flight is put back."""
    update = new_update(waiting(1, ONE), (TWO,))
    for seq in (8, 9):
        ended = AgentExit(task_id=TASK, build_number=1, seq=seq, why=ExitReason.INTERRUPTED)
        assert apply_report(update, ended, LATER, context(ONE)) is ReportOutcome.APPLIED
    finalize(update, LATER, context())
    assert inbox(update) == (None, 2, None)
    assert update.requeued_input == ONE


def test_an_input_is_put_back_although_the_end_overtakes_its_build() -> None:
    """Whichever report comes first, the agent of the build was interrupted before it got the input."""
    ended = AgentExit(task_id=TASK, build_number=2, seq=8, why=ExitReason.INTERRUPTED)
    started = build(2, job=JobStatus.SUCCEEDED)
    for reports in ((started, ended), (ended, started)):
        update = new_update(waiting(1, ONE), (TWO,))
        for report in reports:
            assert apply_report(update, report, LATER, context(ONE)) is ReportOutcome.APPLIED
        finalize(update, LATER, context())
        assert (update.requeued_input, *inbox(update)) == (ONE, None, 2, None)


def test_an_input_is_put_back_although_the_next_agent_is_up_in_the_same_batch() -> None:
    """It is not in the queue that was loaded, so a check a second later sends it to that agent."""
    update, known = new_update(waiting(0, ONE)), context(ONE)
    ended = AgentExit(task_id=TASK, build_number=1, seq=8, why=ExitReason.INTERRUPTED)
    for report in (ended, build(2, job=JobStatus.SUCCEEDED), lifecycle(number=2)):
        assert apply_report(update, report, LATER, known) is ReportOutcome.APPLIED
    finalize(update, LATER, known)
    assert (update.requeued_input, *inbox(update)) == (ONE, None, 1, None)
    due = due_at(update.existing_task.state, WATERMARK, LATER, known.timeouts, known.default_policy)
    assert due == LATER + SECOND
    checked = TaskUpdate(update.task, update.task, queue=[QueuedInput(ONE, steers=False)])
    apply_timer_check(checked, TimerCheck(WATERMARK), due, known)
    finalize(checked, due, known)
    assert inbox(checked) == (ONE, 0, ONE)


def test_an_expired_input_fails_and_the_next_is_sent() -> None:
    """An input that no runner accepted in time fails, and the same update sends the next one."""
    update = new_update(waiting(1, ONE), (TWO,))
    apply_timer_check(update, TimerCheck(WATERMARK, expired_inputs=(ONE,)), LATER, context(ONE))
    finalize(update, LATER, context())
    failed = replace(outcome(ONE), detail="No runner picked up the input in time.")
    assert (update.input_outcomes, update.inputs_expired) == ([failed], 1)
    assert inbox(update) == (TWO, 0, TWO)


def test_the_input_of_another_task_in_the_batch_is_unknown() -> None:
    """A report or a timer check of a task cannot decide an input that another task of the same batch has."""
    update = new_update(waiting(0, ONE))
    others = context(ONE, of=THREE)
    assert apply_report(update, outcome(ONE), LATER, others) is ReportOutcome.UNKNOWN_INPUT
    apply_timer_check(update, TimerCheck(WATERMARK, expired_inputs=(ONE,)), LATER, others)
    assert update.input_outcomes == []
    assert update.existing_task.state.inbox.in_flight == ONE


def test_two_expired_inputs_both_take_effect() -> None:
    """The second expired input of a check does not undo the effect of the first: the one in flight is decided."""
    update = new_update(waiting(1, ONE), (TWO, THREE))
    apply_timer_check(update, TimerCheck(WATERMARK, expired_inputs=(ONE, TWO)), LATER, context(ONE, TWO))
    assert update.existing_task.state.inbox.in_flight is None
    assert [report.input_id for report in update.input_outcomes] == [ONE, TWO]
    finalize(update, LATER, context())
    assert inbox(update) == (THREE, 0, THREE)


def test_a_timer_check_of_a_missing_task_changes_nothing() -> None:
    """The task may be gone since the check was due."""
    update = TaskUpdate(None, None)
    apply_timer_check(update, TimerCheck(WATERMARK, expired_inputs=(ONE,), erase=True), LATER, context(ONE))
    assert update == TaskUpdate(None, None)


def test_a_busy_agent_receives_no_input() -> None:
    """While the agent is working or an input is in flight, the queue does not change."""
    for state in (waiting(1, None, status(AgentState.WORKING)), waiting(1, ONE)):
        update = new_update(state, (TWO,))
        finalize(update, LATER, context())
        assert update.task is update.before
        assert inbox(update) == (None, 1, state.inbox.in_flight)


def test_a_build_is_requested_once() -> None:
    """A new build is requested unless the batch answers it, and a delete is retried only after a failure."""
    update = new_update(active(unchanged_core()))
    apply_command(update, Delete(command_id=ONE, task_id=TASK, actor_id=TWO), LATER, context())
    finalize(update, LATER, context())
    assert (update.requested_builds, update.closed_requests, update.delete_retried) == ([2], [], False)
    failed = build(2, job=JobStatus.FAILED, transition=Transition.DELETE)
    later = TaskUpdate(update.task, update.task)
    apply_report(later, failed, LATER, context())
    finalize(later, LATER, context())
    assert (later.requested_builds, later.closed_requests, later.delete_retried) == ([], [2], False)
    retried = TaskUpdate(later.task, later.task)
    finalize(retried, LATER + 60 * SECOND, context())
    assert (retried.requested_builds, retried.delete_retried) == ([3], True)


def test_a_report_closes_only_an_open_request() -> None:
    """A report closes the request that it answers; one about a build without an open request closes none."""
    update = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    for report in (build(seq=4), build(seq=5, job=JobStatus.SUCCEEDED), heartbeat(seq=6)):
        assert apply_report(update, report, LATER, context()) is ReportOutcome.APPLIED
    assert update.closed_requests == [1]


def test_a_later_build_closes_the_request_of_the_one_before() -> None:
    """A request waits, whatever else is reported, until its build is, or a later one that was not requested."""
    update = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    apply_report(update, lifecycle(seq=3), LATER, context())
    state = update.existing_task.state
    assert (update.closed_requests, state.unanswered_build, update.superseded) == ([], 1, [])
    apply_report(update, build(2), LATER, context())
    assert (update.closed_requests, update.existing_task.state.unanswered_build) == ([1], None)
    assert update.superseded == [state]
    for report in (build(2, seq=5), build(1, seq=6), heartbeat(2)):
        apply_report(update, report, LATER, context())
    assert (update.closed_requests, update.superseded) == ([1], [state])


def test_only_a_deleted_task_is_erased_and_only_once() -> None:
    """A check erases a deleted task, without a watermark; a live task or one that is erased already is left alone."""
    task = make_task(TASK, state=waiting(1))
    for given, erased in (
        (task, False),
        (replace(task, deleted_at=NOON), True),
        (replace(task, deleted_at=NOON, erased_at=NOON), False),
    ):
        update = TaskUpdate(given, given)
        apply_timer_check(update, TimerCheck(None, erase=True), LATER, context())
        assert update.erased is erased
        assert update.existing_task.erased_at == (LATER if erased else given.erased_at)
        unchecked = TaskUpdate(given, given)
        apply_timer_check(unchecked, TimerCheck(None), LATER, context())
        assert unchecked.task is given


def test_an_erased_task_keeps_builds_and_no_texts() -> None:
    """The tombstone has the ids and the build of the task; of a late report, all but the error is folded."""
    task = replace(make_task(TASK, state=waiting(1)), deleted_at=NOON)
    update = TaskUpdate(task, task)
    apply_timer_check(update, TimerCheck(None, erase=True), LATER, context())
    erased = update.existing_task
    assert (erased.name, erased.display_name, erased.prompt) == (str(TASK), "", "")
    assert (erased.state.build_number, erased.state.is_start) == (task.state.build_number, task.state.is_start)
    assert erased.state.app_status is None
    late = TaskUpdate(erased, erased)
    report = build(2, 5, JobStatus.FAILED, transition=Transition.DELETE, error="No space left on /secret")
    assert apply_report(late, report, LATER, context()) is ReportOutcome.APPLIED
    assert (late.existing_task.state.build_number, late.existing_task.state.job_status) == (2, JobStatus.FAILED)
    assert late.existing_task.state.build_error is None
    again = TaskUpdate(late.task, late.task)
    assert apply_report(again, report, LATER, context()) is ReportOutcome.STALE
    assert again.task is late.task


@pytest.mark.parametrize(
    "report",
    [
        TaskLog(task_id=TASK, build_number=1, seq=2, entries=()),
        AgentUsage(task_id=TASK, build_number=1, seq=3, input_tokens=5),
    ],
    ids=["a log", "usage"],
)
def test_a_word_of_the_agent_ends_its_stall(report: Report) -> None:
    """The time of its receipt counts from then on, and the report is the cause of what users see."""
    stalled = replace(waiting(0, None, status(AgentState.WORKING)), stall=Stall(1, NOON))
    update = new_update(stalled)
    assert apply_report(update, report, LATER, context()) is ReportOutcome.APPLIED
    state = update.existing_task.state
    assert (state.stall, state.last_log) == (None, LastLog(1, LATER))
    assert update.cause == Cause("report", report.type)
    assert update.logs == ([report] if isinstance(report, TaskLog) else [])


def test_a_log_that_users_see_elsewhere_is_no_cause() -> None:
    """Entries of a log change nothing in the document, unless they end a stall; only their time is kept."""
    update = new_update(waiting(0))
    log = TaskLog(task_id=TASK, build_number=1, seq=4, entries=())
    assert apply_report(update, log, LATER, context()) is ReportOutcome.APPLIED
    assert (update.cause, update.existing_task.state.last_log) == (None, LastLog(1, LATER))


def test_each_finding_of_a_timer_check_is_a_cause() -> None:
    """What the sweeper finds is named; of several findings the last one, and a held check finds no silence."""
    hours = NOON + timedelta(hours=1)
    given_up = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    apply_timer_check(given_up, TimerCheck(NOON), hours, context())
    assert (given_up.timed_out, given_up.closed_requests) == ("start", [1])
    assert given_up.cause == Cause("sweep", "build.given_up")
    silent = new_update(running(unchanged_core()))
    apply_timer_check(silent, TimerCheck(NOON), hours, context())
    assert (silent.timed_out, silent.cause) == (None, Cause("sweep", "agent.silent"))
    working = waiting(0, None, heartbeat(seq=5), status(AgentState.WORKING))
    stalled = new_update(working)
    apply_timer_check(stalled, TimerCheck(NOON, mass_held=True), hours, context())
    assert stalled.existing_task.state.stall == Stall(1, NOON)
    assert stalled.cause == Cause("sweep", "agent.stalled")


def test_a_deleted_task_is_not_watched() -> None:
    """Neither the silence nor the stall of its agent is noted any more."""
    for state in (running(unchanged_core()), waiting(0, None, heartbeat(seq=5), status(AgentState.WORKING))):
        task = replace(make_task(TASK, state=state), deleted_at=NOON)
        update = TaskUpdate(task, task)
        apply_timer_check(update, TimerCheck(NOON), NOON + timedelta(hours=1), context())
        assert (update.existing_task.state.silence, update.existing_task.state.stall) == (None, None)


def test_the_worker_starts_a_drained_agent_again() -> None:
    """The start is requested in the batch that reports the stop, and its cause is named."""
    update = new_update(active(unchanged_core()))
    stop = build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP, restart=True)
    assert apply_report(update, stop, LATER, context()) is ReportOutcome.APPLIED
    finalize(update, LATER, context())
    assert (update.requested_builds, update.existing_task.state.is_start) == ([3], True)
    assert update.cause == Cause("sweep", "runner.drained")
    assert [state.build_number for state in update.superseded] == [1, 2]


def test_the_worker_starts_a_lost_agent_again_after_a_wait() -> None:
    """The first batch after the loss only sets the time; a check at that time requests the start."""
    policy = RecoveryPolicy(timedelta(), 1, Backoff(60, 60))
    silent = new_update(running(unchanged_core()))
    apply_timer_check(silent, TimerCheck(NOON), LATER + timedelta(hours=1), context())
    lost_at = LATER + timedelta(hours=1)
    known = replace(context(), default_policy=policy)
    finalize(silent, lost_at, known)
    assert (silent.requested_builds, silent.superseded) == ([], [])
    state = silent.existing_task.state
    assert state.loss_restarts.retry_at == lost_at + timedelta(seconds=60)
    assert due_at(state, lost_at, lost_at, known.timeouts, policy) == state.loss_restarts.retry_at
    later = TaskUpdate(silent.task, silent.task)
    finalize(later, lost_at + timedelta(seconds=60), known)
    assert (later.requested_builds, later.cause) == ([2], Cause("sweep", "agent.lost"))
    assert later.superseded == [state]


def test_the_next_check_of_a_task_is_never_at_once() -> None:
    """A delete is retried at its time, but not less than a second from now; a paused task needs no check."""
    paused = replace(
        active(unchanged_core(), build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)), unanswered_build=None
    )
    known = context()
    policy = known.default_policy
    assert due_at(paused, NOON, NOON, known.timeouts, policy) is None
    for wait, due in ((0, 1), (1, 1), (60, 60)):
        deleting = replace(paused, deletion=Deletion(1, NOON + wait * SECOND))
        assert due_at(deleting, NOON, NOON, known.timeouts, policy) == NOON + due * SECOND


def test_a_refused_command_changes_nothing() -> None:
    """Its result is kept for the reply, and it is no cause."""
    update = new_update(running(unchanged_core()))
    apply_command(update, Resume(command_id=THREE, task_id=TASK, actor_id=TWO), LATER, context())
    assert update.task is update.before
    assert (update.cause, update.inputs_failed) == (None, False)
    assert update.command_result is not None


def test_an_agent_without_a_lease_is_checked_when_it_may_be_lost() -> None:
    """30 s after its last heartbeat; one that a clock ahead has noted counts as of now. A lease has its own check."""
    known, policy = context(), default_policy(0)
    steady = running(unchanged_core())
    assert due_at(steady, None, NOON, known.timeouts, policy) is None
    facets = lifecycle(seq=50, agent_id=ONE), heartbeat(seq=1, agent_id=TWO)
    unsteady = folded(unchanged_core(), [build(job=JobStatus.SUCCEEDED), *facets])
    for now, due in (
        (NOON, NOON + 30 * SECOND),
        (LATER, NOON + 30 * SECOND),
        (NOON + 60 * SECOND, NOON + 61 * SECOND),
        (NOON - timedelta(hours=1), NOON - timedelta(hours=1) + 30 * SECOND),
    ):
        assert due_at(unsteady, None, now, known.timeouts, policy) == due


def test_a_deleted_task_waits_for_no_restart() -> None:
    """Once its delete is done it is not checked again, also if an earlier release has left the time of a restart."""
    policy = RecoveryPolicy(timedelta(), 1, Backoff(60, 60))
    known = replace(context(), default_policy=policy)
    lost = new_update(replace(running(unchanged_core()), silence=Silence(1, lost=True)))
    finalize(lost, NOON, known)
    assert lost.existing_task.state.loss_restarts.retry_at is not None
    deleted = TaskUpdate(lost.task, lost.task)
    apply_command(deleted, Delete(command_id=ONE, task_id=TASK, actor_id=TWO), NOON, known)
    assert deleted.existing_task.state.loss_restarts.retry_at is None
    for restarts in (deleted.existing_task.state.loss_restarts, lost.existing_task.state.loss_restarts):
        task = deleted.existing_task
        update = TaskUpdate(task, replace(task, state=replace(task.state, loss_restarts=restarts)))
        finalize(update, NOON, known)
        done = build(2, job=JobStatus.SUCCEEDED, transition=Transition.DELETE)
        assert apply_report(update, done, LATER, known) is ReportOutcome.APPLIED
        finalize(update, LATER, known)
        assert due_at(update.existing_task.state, NOON, LATER, known.timeouts, policy) is None


def test_a_heartbeat_after_a_stop_needs_no_check() -> None:
    """One without a build number counts for the latest build: a stop has no agent that could be lost."""
    known, policy = context(), default_policy(0)
    update = new_update(running(unchanged_core()))
    for report in (
        build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP),
        replace(heartbeat(seq=9), build_number=None),
    ):
        assert apply_report(update, report, NOON, known) is ReportOutcome.APPLIED
    state = update.existing_task.state
    assert state.last_heartbeat[2] == NOON
    assert due_at(state, NOON, NOON + 60 * SECOND, known.timeouts, policy) is None
