"""What a batch does to one task: its inputs are applied in order, then what follows from them is decided.

Nothing is read or written here. The corridor loads what an update needs, and saves what the update holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain import builds, fold, inbox, liveness
from taskherd.domain.handle_command import CommandAccepted, CommandRefused, handle_command
from taskherd.domain.lease import is_steady
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentHeartbeat, InputOutcome, TaskInput, TaskLog, WorkspaceBuild
from taskherd.domain.value import replace, value
from taskherd.domain.view import is_connected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff
    from taskherd.domain.commands import Command
    from taskherd.domain.handle_command import CreateContext
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task, TaskState


@value(frozen=True, slots=True)
class Cause:
    """Why a task changed: a report, a command or a sweep; ``type`` is that of the message, or the sweep's finding."""

    kind: str
    type: str
    id: UUID | None = None
    actor_id: UUID | None = None


@value(frozen=True, slots=True)
class AcceptedInput:
    """An input that was accepted, for the end of the inbox."""

    input_id: UUID
    content: str
    actor_id: UUID


@value(frozen=True, slots=True)
class TimerCheck:
    """The sweeper's check of a task's timers. ``watermark``: the watermark; None: silence proves nothing now.

    ``counted_at``: when the silent agents were counted last, None for now. No agent may be found silent that had a
    moment left then: it could be the first of a mass that has not been counted.
    """

    watermark: datetime | None
    mass_held: bool = False
    counted_at: datetime | None = None
    expired_inputs: tuple[UUID, ...] = ()


@dataclass(slots=True)
class TaskUpdate:
    """The task before and after a batch, and what else is to be saved and sent. Mutable while inputs are applied.

    Attributes:
        core_document: the text of the document's own part, first as it was loaded and later as it is saved.
        queue: the first inputs of the task's queue as they were loaded, in order, see `inbox.send_next`.
        sent_input: the input that goes to the agent now.
        requested_builds: the numbers of builds to send work requests for.
        answered_builds: the numbers of builds whose work requests are no longer open.
        superseded: the memories right before a later build became the latest.
        inputs_failed: whether all inputs that are not decided yet fail with the task's delete.
        timed_out: the transition of the build that was given up.
    """

    before: Task | None
    task: Task | None
    core_document: str = ""
    queue: Sequence[UUID] = ()
    command_result: CommandAccepted | CommandRefused | None = None
    sent_input: UUID | None = None
    requested_builds: list[int] = field(default_factory=list)
    answered_builds: list[int] = field(default_factory=list)
    superseded: list[TaskState] = field(default_factory=list)
    logs: list[TaskLog] = field(default_factory=list)
    new_inputs: list[AcceptedInput] = field(default_factory=list)
    input_outcomes: list[TaskInput] = field(default_factory=list)
    inputs_failed: bool = False
    timed_out: str | None = None
    delete_retried: bool = False
    cause: Cause | None = None

    @property
    def existing_task(self) -> Task:
        """The task, for callers that know that there is one."""
        if self.task is None:
            raise AssertionError
        return self.task


@value(frozen=True, slots=True)
class Policies:
    """The timers and the surroundings by which updates are decided, and the inputs that the batch refers to.

    Of those inputs, ``known_inputs`` belong to the task they were reported for; ``open_inputs`` are the known ones that
    are not decided yet.
    """

    timeouts: Timeouts
    delete_backoff: Backoff
    create_context: CreateContext
    open_inputs: frozenset[UUID] = frozenset()
    known_inputs: frozenset[UUID] = frozenset()


def apply_report(update: TaskUpdate, report: Report, now: datetime, policies: Policies) -> ReportOutcome:
    """Fold one report into the update's task, which exists, and return what became of it."""
    task = update.existing_task
    if task.deleted_at is not None and not isinstance(report, WorkspaceBuild):
        return ReportOutcome.TOMBSTONE
    state = task.state
    report = fold.with_build_number(report, state)
    if isinstance(report, TaskInput):
        return _apply_input_outcome(update, report, now, policies)
    folded = fold.fold(state, report, now)
    if isinstance(report, TaskLog):
        update.logs.append(report)
    if folded.state is not state:
        if not (update.cause and isinstance(report, AgentHeartbeat)):
            update.cause = Cause("report", report.type)
        if isinstance(report, WorkspaceBuild) and folded.state.number != state.number:
            update.superseded.append(state)
        update.task = replace(task, state=_answer(update, state.pending_build, folded.state))
    return folded.outcome


def _answer(update: TaskUpdate, unanswered: int | None, after: TaskState) -> TaskState:
    """Close the request of a build that was answered, or superseded by a later build that was not requested."""
    if unanswered is None or (after.pending_build == unanswered and after.number == unanswered):
        return after
    update.answered_builds.append(unanswered)
    return after if after.pending_build is None else replace(after, pending_build=None)


def _apply_input_outcome(update: TaskUpdate, report: TaskInput, now: datetime, policies: Policies) -> ReportOutcome:
    if report.input_id not in policies.known_inputs:
        return ReportOutcome.UNKNOWN_INPUT
    decided = any(report.input_id == earlier.input_id for earlier in update.input_outcomes)
    if decided or report.input_id not in policies.open_inputs:
        return ReportOutcome.STALE
    task = update.existing_task
    update.input_outcomes.append(report)
    delivered = report.outcome is InputOutcome.DELIVERED
    state = inbox.record_outcome(task.state, report.input_id, now, delivered=delivered)
    update.task = replace(task, state=state)
    return ReportOutcome.APPLIED


def apply_command(update: TaskUpdate, command: Command, now: datetime, policies: Policies) -> None:
    """Carry out one command on the update's task, which may not exist."""
    answer = handle_command(update.task, command, now, policies.create_context)
    if isinstance(answer, CommandAccepted):
        if answer.input is not None and answer.input_id is not None:
            update.new_inputs.append(AcceptedInput(answer.input_id, answer.input, command.actor_id))
        if answer.task.deleted_at is not None:
            update.inputs_failed = True
        update.task = answer.task
        update.cause = Cause("command", command.type, command.command_id, command.actor_id)
    update.command_result = answer


def apply_timer_check(update: TaskUpdate, check: TimerCheck, now: datetime, policies: Policies) -> None:
    """Notice what no report tells: a silent agent, a build that no runner took up or that fell silent."""
    task = update.task
    if task is None or check.watermark is None:
        return
    for input_id in check.expired_inputs:
        _expire(update, task, input_id, now, policies)
    task = update.task or task
    state = task.state
    after = liveness.time_out_build(state, check.watermark, now, policies.timeouts)
    if after is not state:
        update.timed_out = after.build.report.transition.value
        update.answered_builds.append(after.number)
        update.cause = Cause("sweep", "build.given_up")
    if not check.mass_held and task.deleted_at is None:
        judged = liveness.detect_loss(after, check.watermark, check.counted_at or now, policies.timeouts)
        if judged is not after:
            update.cause = Cause("sweep", "agent.silent")
        after = judged
    update.task = replace(task, state=after)


def _expire(update: TaskUpdate, task: Task, input_id: UUID, now: datetime, policies: Policies) -> None:
    report = TaskInput(
        task_id=task.id,
        build_number=task.state.number,
        seq=0,
        input_id=input_id,
        outcome=InputOutcome.FAILED,
        detail="No runner took the input in time.",
    )
    if input_id in policies.open_inputs:
        update.input_outcomes.append(report)
        update.task = replace(task, state=inbox.record_outcome(task.state, input_id, now, delivered=False))


def finalize(update: TaskUpdate, now: datetime, policies: Policies) -> None:
    """Decide what follows when all inputs are applied: the delete's next step, the next input, new requests."""
    task = update.task
    if task is None:
        return
    if task.state.deletion is not None:
        task = update.task = _advance_delete(update, task, now, policies)
    if task.state.inbox.queued and task.deleted_at is None:
        task = update.task = _send_next_input(update, task, now)
    before = update.before.state.requested_builds if update.before else {}
    answered = update.answered_builds
    update.requested_builds.extend(
        sorted(n for n in task.state.requested_builds if n not in before and n not in answered)
    )


def _advance_delete(update: TaskUpdate, task: Task, now: datetime, policies: Policies) -> Task:
    state = builds.advance_delete(task.id, task.state, now, policies.delete_backoff)
    if state.number != task.state.number:
        update.superseded.append(task.state)
        update.delete_retried = state.deletion is not None and state.deletion.attempts > 1
    return replace(task, state=state)


def _send_next_input(update: TaskUpdate, task: Task, now: datetime) -> Task:
    queue = [*update.queue, *(new.input_id for new in update.new_inputs)]
    decided = {report.input_id for report in update.input_outcomes}
    state, update.sent_input = inbox.send_next(task.state, queue, decided, now)
    return task if state is task.state else replace(task, state=state)


RECHECK_AFTER = timedelta(seconds=1)
"""A task that is due and stays as it is, is looked at again no sooner."""


def due_at(state: TaskState, since: datetime | None, now: datetime, timeouts: Timeouts) -> datetime | None:
    """Return when the sweeper must check a task with this memory again; None: not before its next report or command."""
    retry = state.deletion.retry_at if state.deletion else None
    times = [
        at
        for at in (liveness.next_deadline(state, timeouts, now, since), inbox.next_check_at(state), retry)
        if at is not None
    ]
    if not is_steady(state) and is_connected(state):
        last_heartbeat = state.last_heartbeat[state.number]
        times.append(
            (last_heartbeat if liveness.is_plausible(last_heartbeat, now) else now) + timeouts.agent_lost_after
        )
    return max(min(times), now + RECHECK_AFTER) if times else None
