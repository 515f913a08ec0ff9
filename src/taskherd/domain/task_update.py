"""The effect of one batch on one task: its messages applied in order, and everything to save or send because of them.

Nothing is read or written here: the worker loads what an update needs, and saves what the update contains.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain import agent_requests, builds, erasure, fold, inbox, interrupts, liveness, recovery
from taskherd.domain.command_results import CommandAccepted
from taskherd.domain.handle_command import NO_REQUESTS, handle_command
from taskherd.domain.lease import is_steady
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import (
    AgentHeartbeat,
    AgentInterrupted,
    AgentRequest,
    AgentUsage,
    InputOutcome,
    InputOutcomeReport,
    TaskLog,
    WorkspaceBuild,
)
from taskherd.domain.request_values import RequestState
from taskherd.domain.updates import AcceptedInput, Cause
from taskherd.domain.usage import UsageLedger
from taskherd.domain.value import replace
from taskherd.domain.view import agent_of, is_connected

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.recovery import RecoveryPolicy
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task, TaskState
    from taskherd.domain.updates import TaskUpdate, TimerCheck, UpdateContext


def apply_report(update: TaskUpdate, report: Report, now: datetime, context: UpdateContext) -> ReportOutcome:
    """Fold one report into the task, which must exist, and return its outcome."""
    task = update.existing_task
    if task.deleted_at is not None and not isinstance(report, WorkspaceBuild | AgentUsage):
        return ReportOutcome.TOMBSTONE
    state = task.state
    if fold.is_out_of_range(report, state):
        return ReportOutcome.BUILD_OUT_OF_RANGE
    report = fold.with_build_number(report, state)
    if isinstance(report, InputOutcomeReport | AgentInterrupted | AgentUsage | AgentRequest):
        return _apply_unfolded(update, report, now, context)
    folded = fold.fold(state, report, now)
    after = recovery.record_word(folded.state, report, folded.outcome, now)
    if after.inbox.in_flight is not None:  # outcomes, requests and usage have returned above
        after, requeued = inbox.requeue_undelivered(after)
        update.requeued_input = update.requeued_input or requeued
    if isinstance(report, TaskLog):
        update.logs.append(report)
    if after is not state and task.erased_at is not None:
        after = erasure.scrub(after)
    if after is not state:
        is_visible = folded.state is not state or after.stall is not state.stall
        if is_visible and not (update.cause and isinstance(report, AgentHeartbeat)):
            update.note_cause(Cause("report", report.type))
        if isinstance(report, WorkspaceBuild) and after.build_number != state.build_number:
            update.superseded.append(state)
        update.task = replace(task, state=_close_answered_request(update, state.unanswered_build, after))
    return folded.outcome


def _close_answered_request(update: TaskUpdate, unanswered: int | None, after: TaskState) -> TaskState:
    """Close the request of a build that was answered, or superseded by a later build that was not requested."""
    if unanswered is None or (after.unanswered_build == unanswered and after.build_number == unanswered):
        return after
    update.closed_requests.append(unanswered)
    return after if after.unanswered_build is None else replace(after, unanswered_build=None)


def _apply_unfolded(
    update: TaskUpdate,
    report: InputOutcomeReport | AgentInterrupted | AgentUsage | AgentRequest,
    now: datetime,
    context: UpdateContext,
) -> ReportOutcome:
    if isinstance(report, AgentUsage):
        return _apply_usage(update, report, now)
    if isinstance(report, AgentRequest):
        return _apply_request(update, report, now)
    if isinstance(report, AgentInterrupted):
        return _apply_interrupted(update, report, now)
    return _apply_input_outcome(update, report, now, context)


def _apply_input_outcome(
    update: TaskUpdate, report: InputOutcomeReport, now: datetime, context: UpdateContext
) -> ReportOutcome:
    key = (update.existing_task.id, report.input_id)
    if key not in context.known_inputs:
        return ReportOutcome.UNKNOWN_INPUT
    decided = any(report.input_id == earlier.input_id for earlier in update.input_outcomes)
    if decided or key not in context.open_inputs:
        return ReportOutcome.STALE
    task = update.existing_task
    update.input_outcomes.append(report)
    delivered = report.outcome is InputOutcome.DELIVERED
    state = inbox.record_outcome(task.state, report.input_id, now, delivered=delivered)
    update.task = replace(task, state=state)
    return ReportOutcome.APPLIED


def _apply_usage(update: TaskUpdate, report: AgentUsage, now: datetime) -> ReportOutcome:
    """Fold a report of usage, also of a deleted task: what it used was used."""
    task = update.existing_task
    ledger = update.usage = update.usage or UsageLedger()
    usage, outcome = ledger.fold(task.state.usage, report)
    if outcome is ReportOutcome.APPLIED:
        state = replace(task.state, usage=usage)
        if task.deleted_at is None:
            state = recovery.record_word(state, report, outcome, now)
            update.note_cause(Cause("report", report.type))
        update.task = replace(task, state=state)
    return outcome


def _apply_request(update: TaskUpdate, report: AgentRequest, now: datetime) -> ReportOutcome:
    task = update.existing_task
    ledger = update.requests = update.requests or agent_requests.RequestLedger()
    state, outcome = ledger.fold(task.state, report, now)
    if outcome is ReportOutcome.APPLIED:
        update.note_cause(Cause("report", report.type, report.request_id, outcome=report.state, request=report.title))
        update.task = replace(task, state=recovery.record_word(state, report, outcome, now))
    return outcome


def _apply_interrupted(update: TaskUpdate, report: AgentInterrupted, now: datetime) -> ReportOutcome:
    task = update.existing_task
    state = interrupts.record_outcome(task.state, report, now)
    if state is task.state:
        return ReportOutcome.STALE
    update.note_cause(Cause("report", report.type, report.interrupt_id, outcome=report.outcome))
    update.task = replace(task, state=state)
    return ReportOutcome.APPLIED


def apply_command(update: TaskUpdate, command: Command, now: datetime, context: UpdateContext) -> None:
    """Execute one command on the task, which may not exist."""
    known = update.requests.known if update.requests else NO_REQUESTS
    result = handle_command(update.task, command, now, context.command_context, known)
    if isinstance(result, CommandAccepted):
        if result.input is not None and result.input_id is not None:
            accepted = AcceptedInput(result.input_id, result.input, command.actor_id, result.steers)
            update.new_inputs.append(accepted)
        if result.task.deleted_at is not None:
            update.inputs_failed = True
        context.command_context.note_change(update.task, result.task)
        update.task = result.task
        update.note_cause(_cause_of(command, result))
        if result.answered is not None and update.requests is not None:
            update.requests.record(result.answered)
    update.command_result = result


def _cause_of(command: Command, result: CommandAccepted) -> Cause:
    cause = Cause("command", command.type, command.command_id, command.actor_id)
    record = result.answered
    if record is None or record.answer is None:
        return cause
    answer = agent_requests.describe_answer(record.report, record.answer)
    return replace(cause, request=record.report.title, answer=agent_requests.shorten(answer))


def apply_timer_check(update: TaskUpdate, check: TimerCheck, now: datetime, context: UpdateContext) -> None:
    """Apply a timer check: fail expired user inputs, time out the latest build, and mark a lost agent."""
    task = update.task
    if task is not None and check.erase and task.deleted_at is not None and task.erased_at is None:
        task = update.task = erasure.erase(task, now)
        update.erased = True
    if task is None or check.watermark is None or _is_late(check, now):
        return
    for input_id in check.expired_inputs:
        _expire(update, input_id, now, context)
    task = update.existing_task
    state = task.state
    after = liveness.time_out_build(state, check.watermark, now, context.timeouts)
    if after is not state:
        update.timed_out = after.build.report.transition.value
        update.closed_requests.append(after.build_number)
        update.note_cause(Cause("sweep", "build.given_up"))
    if task.deleted_at is None:
        after = _check_agent(update, after, check, now, context)
    if after is not state:
        update.task = replace(task, state=after)


def _check_agent(
    update: TaskUpdate, state: TaskState, check: TimerCheck, now: datetime, context: UpdateContext
) -> TaskState:
    """Mark an agent that is lost or stalled, and end an interrupt that it has not answered in time."""
    watermark = check.watermark
    assert watermark is not None
    if not check.mass_held:
        after = liveness.detect_loss(state, watermark, check.silence_counted_at or now, context.timeouts)
        if after is not state:
            update.note_cause(Cause("sweep", "agent.silent"))
        state = after
    after = recovery.detect_stall(state, watermark, now, context.policy_of(update.existing_task))
    if after is not state:
        update.note_cause(Cause("sweep", "agent.stalled"))
    state = after
    after = interrupts.expire(state, watermark, now, context.timeouts)
    if after is not state:
        update.interrupt_expired = True
        update.note_cause(Cause("sweep", "agent.interrupt_expired"))
    return after


def _is_late(check: TimerCheck, now: datetime) -> bool:
    """Return whether the sweep of a check was so long ago that its watermark says nothing about what has come since.

    That is half of what clocks may differ by: ``now`` was read before the task was locked, which may take seconds.
    """
    return check.silence_counted_at is not None and now - check.silence_counted_at > liveness.MAX_SKEW / 2


def _expire(update: TaskUpdate, input_id: UUID, now: datetime, context: UpdateContext) -> None:
    task = update.existing_task
    report = InputOutcomeReport(
        task_id=task.id,
        build_number=task.state.build_number,
        seq=0,
        input_id=input_id,
        outcome=InputOutcome.FAILED,
        detail="No runner picked up the input in time.",
    )
    if (task.id, input_id) in context.open_inputs:
        update.inputs_expired += 1
        update.input_outcomes.append(report)
        update.task = replace(task, state=inbox.record_outcome(task.state, input_id, now, delivered=False))


def finalize(update: TaskUpdate, now: datetime, context: UpdateContext) -> None:
    """Finish the update after its last message: advance a delete, send the next input, collect new requests."""
    task = update.task
    if task is None:
        return
    if task.state.deletion is not None:
        task = update.task = _advance_delete(update, task, now, context)
    elif task.deleted_at is None:
        task = update.task = _restart_agent(update, task, now, context.policy_of(task))
    task = update.task = _follow_interrupt(update, task, now)
    task = update.task = _follow_requests(update, task)
    # an input that was put back is not in the queue that was loaded: the next check sends it
    if task.state.inbox.queued and task.deleted_at is None and update.requeued_input is None:
        task = update.task = _send_next_input(update, task, now)
    before = update.before.state.requested_builds if update.before else {}
    closed = update.closed_requests
    update.requested_builds.extend(
        sorted(n for n in task.state.requested_builds if n not in before and n not in closed)
    )


def _advance_delete(update: TaskUpdate, task: Task, now: datetime, context: UpdateContext) -> Task:
    state = builds.advance_delete(task.id, task.state, now, context.delete_backoff)
    if state.build_number != task.state.build_number:
        update.superseded.append(task.state)
        update.delete_retried = state.deletion is not None and state.deletion.attempts > 1
    return replace(task, state=state)


def _restart_agent(update: TaskUpdate, task: Task, now: datetime, policy: RecoveryPolicy) -> Task:
    """Request the next start of a drained or lost agent, if it is time."""
    state, cause = recovery.restart_drained(task.id, task.state, now), "runner.drained"
    if state is task.state:
        state, cause = recovery.restart_lost(task.id, task.state, now, policy), "agent.lost"
    if state is task.state:
        return task
    if state.build_number != task.state.build_number:
        update.superseded.append(task.state)
        update.note_cause(Cause("sweep", cause))
    return replace(task, state=state)


def _follow_interrupt(update: TaskUpdate, task: Task, now: datetime) -> Task:
    """End the interrupt of an earlier build's agent, and note which work requests to send and close."""
    state = interrupts.end_superseded(task.state, now)
    before = update.before.state.interrupt if update.before else None
    if before is not None and before != state.interrupt:
        update.closed_interrupt = before.id
    if state.interrupt is not None and before != state.interrupt:
        update.opened_interrupt = state.interrupt.id
    return task if state is task.state else replace(task, state=state)


def _follow_requests(update: TaskUpdate, task: Task) -> Task:
    """Note how the agent's requests show now, and which answers are to be delivered, or no longer."""
    before = update.before.state if update.before else None
    if not task.state.agent_requests and not (before and before.agent_requests):
        return task
    state = agent_requests.prune(task.state)
    shown, shown_before = agent_requests.shown_states(state), agent_requests.shown_states(before) if before else {}
    recorded = update.requests.changed if update.requests else ()
    for request_id in sorted((shown.keys() | shown_before.keys()).difference(recorded)):
        now_shown = shown.get(request_id, RequestState.WITHDRAWN)
        if now_shown is not shown_before.get(request_id):
            update.shown_requests[request_id] = now_shown
    answers = agent_requests.answers_to_deliver(state)
    answers_before = agent_requests.answers_to_deliver(before) if before else {}
    update.opened_answers = dict(answers.items() - answers_before.items())
    update.closed_answers = sorted(dict(answers_before.items() - answers.items()))
    return task if state is task.state else replace(task, state=state)


def _send_next_input(update: TaskUpdate, task: Task, now: datetime) -> Task:
    queue = inbox.in_order(update.queue, (inbox.QueuedInput(new.input_id, new.steers) for new in update.new_inputs))
    decided = {report.input_id for report in update.input_outcomes}
    state, update.sent_input = inbox.send_next(task.state, queue, decided, now)
    return task if state is task.state else replace(task, state=state)


RECHECK_AFTER = timedelta(seconds=1)
"""Minimum time until the next timer check of a task."""


def due_at(
    state: TaskState, watermark: datetime | None, now: datetime, timeouts: Timeouts, policy: RecoveryPolicy
) -> datetime | None:
    """Return when the sweeper must check the task next, or None if only a report or command can make that necessary.

    ``watermark``: the watermark, or None if it is not known.
    """
    deadlines = (
        liveness.next_deadline(state, timeouts, now, watermark),
        inbox.next_check_at(state, now),
        interrupts.deadline(state, watermark, now, timeouts),
        recovery.stall_deadline(state, watermark, now, policy),
        state.deletion.retry_at if state.deletion else state.loss_restarts.retry_at,
    )
    times = [at for at in deadlines if at is not None]
    if not is_steady(state) and is_connected(state) and agent_of(state) is not None:
        last_heartbeat = state.last_heartbeat[state.build_number]
        times.append(
            (last_heartbeat if liveness.is_plausible(last_heartbeat, now) else now) + timeouts.agent_lost_after
        )
    return max(min(times), now + RECHECK_AFTER) if times else None
