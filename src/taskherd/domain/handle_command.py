"""The effect of a command on a task: check its preconditions in order, then apply it.

A refusal is returned, not raised. Status codes, messages and the order of the checks are those of Coder's Tasks API,
because clients match on them.
"""

from __future__ import annotations

from dataclasses import field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, assert_never
from uuid import UUID

from taskherd.domain import agent_requests, builds, inbox, interrupts, labels, names
from taskherd.domain.blank import is_blank
from taskherd.domain.command_results import (
    ALREADY_RUNNING,
    BUILD_ACTIVE,
    COMMAND_ID_REUSED,
    INBOX_FULL,
    NO_BUILDS_LEFT,
    NO_INPUT,
    NO_OWNER,
    NO_VERSION,
    NOT_FOUND,
    NOT_WORKING,
    REQUEST_NOT_FOUND,
    CommandAccepted,
    CommandRefused,
    name_in_use,
)
from taskherd.domain.commands import Answer, Create, Delete, Interrupt, Pause, Resume, Send, UpdateInput, UpdateLabels
from taskherd.domain.reports import AgentState, JobStatus, Transition
from taskherd.domain.task import Deletion, LossRestarts, Task
from taskherd.domain.value import replace, value
from taskherd.domain.view import (
    Status,
    agent_of,
    app_health_of,
    current_app_status,
    is_agent_gone,
    is_running,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from taskherd.domain.agent_requests import AgentRequestRecord
    from taskherd.domain.commands import Command
    from taskherd.domain.task import TaskState

NIL = UUID(int=0)
NO_REQUESTS: Final[Mapping[UUID, AgentRequestRecord]] = MappingProxyType({})


@value(frozen=True, slots=True)
class EarlierInput:
    """The input that an earlier send with the same command id appended. Inputs are kept longer than replies are."""

    task_id: UUID
    content: str
    actor_id: UUID | None
    queued: bool


@value(frozen=True, slots=True)
class TemplateVersionInfo:
    """The fields of a template version in the directory that a create needs."""

    organization_id: UUID
    template_id: UUID
    presets: frozenset[UUID]
    usable: bool


@value(frozen=True, slots=True)
class CommandContext:
    """Directory entries and settings needed to evaluate a command.

    Attributes:
        owners: the organizations of each owner.
        versions: the template versions by id.
        names_in_use: lowercase names of each owner's tasks that are not deleted, including those of the tasks that
            the batch has created so far.
        drawn_names: names for each create without one, by task id: the first that is not in use is taken.
        strict_send: True if an input for a busy agent is refused instead of queued.
        earlier_inputs: the inputs with the ids of commands: of sends whose recorded replies are gone.
        running: number of running tasks of each owner who starts one, kept up to date while the batch is applied.
        max_running: maximum number of running tasks of one owner, 0 for no maximum.
    """

    owners: Mapping[UUID, frozenset[UUID]]
    versions: Mapping[UUID, TemplateVersionInfo]
    names_in_use: dict[UUID, set[str]]
    drawn_names: Mapping[UUID, Sequence[str]]
    strict_send: bool = False
    earlier_inputs: Mapping[UUID, EarlierInput] = field(default_factory=dict)
    running: dict[UUID, int] = field(default_factory=dict)
    max_running: int = 0

    def note_change(self, before: Task | None, after: Task) -> None:
        """Let the next commands of the batch see the name that a create took, and what runs now."""
        if before is None:
            self.names_in_use.setdefault(after.owner_id, set()).add(after.name.lower())
        change = is_running(after) - (before is not None and is_running(before))
        self.running[after.owner_id] = self.running.get(after.owner_id, 0) + change


def handle_command(  # noqa: C901, PLR0911 - one return for each command
    task: Task | None,
    command: Command,
    now: datetime,
    context: CommandContext,
    requests: Mapping[UUID, AgentRequestRecord] = NO_REQUESTS,
) -> CommandAccepted | CommandRefused:
    """Execute a command on a task, which is None if no task has its id.

    ``requests`` are those of the task's agent that the command may answer, by id.
    """
    if isinstance(command, Create):
        return (
            _create(command, now, context)
            if task is None
            else CommandRefused(409, "A task with this ID already exists.")
        )
    if task is None or task.deleted_at is not None:
        return NOT_FOUND
    match command:
        case Delete():
            return _delete(task, now)
        case UpdateInput():
            return _update_input(task, command)
        case UpdateLabels():
            return _update_labels(task, command)
        case Send():
            return _send_once(task, command, now, context, requests)
        case Pause():
            return _pause(task, now)
        case Resume():
            return _resume(task, now, context)
        case Interrupt():
            return _interrupt(task, command, now)
        case Answer():
            return _answer(task, command, now, requests)
        case _:
            assert_never(command)


def _send_once(
    task: Task, command: Send, now: datetime, context: CommandContext, requests: Mapping[UUID, AgentRequestRecord]
) -> CommandAccepted | CommandRefused:
    """Send an input, unless an earlier command with the same id did."""
    earlier = context.earlier_inputs.get(command.command_id)
    if earlier is not None:
        return _repeat_send(task, command, earlier)
    return _send(task, command, now, requests, strict=context.strict_send)


def _create(command: Create, now: datetime, context: CommandContext) -> CommandAccepted | CommandRefused:
    """Create a task and request its first build."""
    organizations = context.owners.get(command.owner_id)
    if organizations is None:
        return NO_OWNER
    version = context.versions.get(command.template_version_id)
    if version is None or not version.usable or version.organization_id not in organizations:
        return NO_VERSION
    preset = command.template_version_preset_id
    preset = None if preset == NIL else preset
    if preset is not None and preset not in version.presets:
        return CommandRefused(400, "Preset not found.")
    if is_blank(command.input):
        return NO_INPUT
    name = _refuse_bad_names(command) or _refuse_bad_labels(command.labels or {}) or _choose_name(command, context)
    if isinstance(name, CommandRefused):
        return name
    display = command.display_name or ""
    display = "" if is_blank(display) else display.strip()
    state = builds.initial_state(command.task_id, now)
    task = Task(
        id=command.task_id,
        owner_id=command.owner_id,
        organization_id=version.organization_id,
        template_id=version.template_id,
        template_version_id=command.template_version_id,
        preset_id=preset,
        name=name,
        display_name=display or names.display_name(command.input, name),
        prompt=command.input,
        prompt_version=1,
        created_at=now,
        updated_at=now,
        version=1,
        deleted_at=None,
        state=replace(state, labels=dict(sorted(command.labels.items()))) if command.labels else state,
    )
    return _running_refusal(task.owner_id, context) or CommandAccepted(task)


def _refuse_bad_names(command: Create) -> CommandRefused | None:
    """Check the form of the names that the caller chose, but not whether they are in use."""
    error = names.name_error(command.name) if command.name else None
    if error:
        return CommandRefused(400, "Unable to create a Task with the provided name.", error)
    if len((command.display_name or "").strip()) > names.MAX_DISPLAY_NAME:
        return CommandRefused(400, "Display name must be 64 characters or less.")
    return None


def _refuse_bad_labels(wanted: Mapping[str, str]) -> CommandRefused | None:
    error = labels.error(wanted)
    return None if error is None else CommandRefused(400, "Invalid labels.", None, (("labels", error),))


def _choose_name(command: Create, context: CommandContext) -> str | CommandRefused:
    names_in_use = context.names_in_use.get(command.owner_id, set())
    if not command.name:
        drawn = context.drawn_names[command.task_id]
        return next((name for name in drawn if name not in names_in_use), drawn[-1])
    if command.name.lower() in names_in_use:
        return name_in_use(command.name)
    return command.name


def _delete(task: Task, now: datetime) -> CommandAccepted:
    state = replace(inbox.fail_all(task.state), deletion=Deletion(), loss_restarts=LossRestarts(), interrupt=None)
    return CommandAccepted(replace(task, deleted_at=now, state=state))


def _update_input(task: Task, command: UpdateInput) -> CommandAccepted | CommandRefused:
    if is_blank(command.input):
        return NO_INPUT
    if current_status(task.state) is not Status.PAUSED:
        return CommandRefused(409, "Unable to update task input, task must be paused.")
    return CommandAccepted(replace(task, prompt=command.input))


def _update_labels(task: Task, command: UpdateLabels) -> CommandAccepted | CommandRefused:
    """Set and remove labels, whatever the task's status; the same labels again change nothing."""
    changed = labels.changed(task.state.labels, command.labels)
    refusal = _refuse_bad_labels(changed)
    if refusal is not None:
        return refusal
    return CommandAccepted(replace(task, state=replace(task.state, labels=changed)))


def _send(
    task: Task, command: Send, now: datetime, requests: Mapping[UUID, AgentRequestRecord], *, strict: bool
) -> CommandAccepted | CommandRefused:
    if not command.input:
        return NO_INPUT
    status = current_status(task.state)
    match status:
        case Status.PENDING | Status.INITIALIZING:
            return CommandRefused(409, f"Task is {status.value}.")
        case Status.PAUSED:
            return CommandRefused(409, "Task is paused.", "Resume the task to send messages.")
        case Status.ERROR | Status.UNKNOWN:
            return CommandRefused(400, "Task must be active.", f"The task's status is {status.value}.")
        case Status.ACTIVE:
            question = None if command.interrupt else agent_requests.question_for_text(task.state)
            if question is not None and question.id in requests:
                return _answer_by_input(task, command, requests[question.id], now)
            return _append_input(task, command, now, strict=strict)
        case _:
            assert_never(status)


def _append_input(task: Task, command: Send, now: datetime, *, strict: bool) -> CommandAccepted | CommandRefused:
    """Append an input to the inbox of an active task, and interrupt an agent that works if the input is to steer it."""
    if inbox.is_full(task.state):
        return INBOX_FULL
    if command.interrupt and (interrupted := _begin_interrupt(task, command.command_id, now)):
        return _steer(interrupted, command.command_id, command.input)
    sent_now = task.state.inbox.queued == 0 and inbox.is_ready(task.state, now)
    if strict and not sent_now:
        return CommandRefused(409, "Task app is not ready to accept input.")
    after = replace(task, state=inbox.enqueue(task.state))
    return CommandAccepted(after, command.command_id, command.input, queued=not sent_now)


def _answer_by_input(
    task: Task, command: Send, record: AgentRequestRecord, now: datetime
) -> CommandAccepted | CommandRefused:
    """Answer the agent's question with an input: clients of Coder's API have no other way to do that."""
    if is_blank(command.input):
        return NO_INPUT
    answer = agent_requests.RequestAnswer(None, command.input, command.actor_id, now, command.command_id)
    state, record = agent_requests.accept(task.state, record, answer, now)
    return CommandAccepted(replace(task, state=state), answered=record)


def _answer(
    task: Task, command: Answer, now: datetime, requests: Mapping[UUID, AgentRequestRecord]
) -> CommandAccepted | CommandRefused:
    """Answer a request of the agent. The text to an option steers the agent, which has its answer before."""
    record = requests.get(command.request_id)
    if record is None:
        return REQUEST_NOT_FOUND
    refusal = agent_requests.refusal(task.state, record, command)
    if refusal is not None:
        return refusal
    steers = not record.wants_text and not is_blank(command.text or "")
    if steers and inbox.is_full(task.state):
        return INBOX_FULL
    text = command.text if record.wants_text else None
    answer = agent_requests.RequestAnswer(command.option_id, text, command.actor_id, now, command.command_id)
    state, record = agent_requests.accept(task.state, record, answer, now)
    task = replace(task, state=state)
    if not steers:
        return CommandAccepted(task, answered=record)
    interrupted = _begin_interrupt(task, command.command_id, now) or CommandAccepted(task)
    return replace(_steer(interrupted, command.command_id, command.text), answered=record)


def _steer(interrupted: CommandAccepted, input_id: UUID, text: str | None) -> CommandAccepted:
    """Append an input that goes before those that do not steer, once the interrupt has ended."""
    task = replace(interrupted.task, state=inbox.enqueue(interrupted.task.state))
    return replace(interrupted, task=task, input_id=input_id, input=text, queued=True, steers=True)


def _interrupt(task: Task, command: Interrupt, now: datetime) -> CommandAccepted | CommandRefused:
    return _begin_interrupt(task, command.command_id, now) or NOT_WORKING


def _begin_interrupt(task: Task, interrupt_id: UUID, now: datetime) -> CommandAccepted | None:
    """Open an interrupt, or join the open one. Return None if there is nothing to interrupt."""
    state = task.state
    if state.interrupt is not None:
        return CommandAccepted(task, interrupt_id=state.interrupt.id)
    stamped = current_app_status(state)
    reported_working = stamped is not None and stamped.report.state is AgentState.WORKING
    if current_status(state) is not Status.ACTIVE or not (reported_working or inbox.is_busy(state)):
        return None
    return CommandAccepted(replace(task, state=interrupts.begin(state, interrupt_id, now)), interrupt_id=interrupt_id)


def _repeat_send(task: Task, command: Send, earlier: EarlierInput) -> CommandAccepted | CommandRefused:
    """Accept a repeated send again, whatever the task's status is now: its input is in the inbox, or was."""
    same_actor = earlier.actor_id in {None, command.actor_id}
    if earlier.task_id != task.id or earlier.content != command.input or not same_actor:
        return COMMAND_ID_REUSED
    return CommandAccepted(task, command.command_id, queued=earlier.queued, repeated=True)


def _pause(task: Task, now: datetime) -> CommandAccepted | CommandRefused:
    return _request_build(task, Transition.STOP, now)


def _resume(task: Task, now: datetime, context: CommandContext) -> CommandAccepted | CommandRefused:
    """Request the next start unless an agent is running, or may be."""
    return (
        resume_refusal(task.state)
        or _running_refusal(task.owner_id, context)
        or _request_build(task, Transition.START, now)
    )


def _running_refusal(owner_id: UUID, context: CommandContext) -> CommandRefused | None:
    """Return why the owner may start no further task, or None. This is checked last."""
    if not context.max_running or context.running.get(owner_id, 0) < context.max_running:
        return None
    return CommandRefused(
        409,
        "Too many tasks are running.",
        f"The owner may have {context.max_running} running tasks. Pause or delete one, or wait until its agent has "
        "ended, then try again.",
    )


def resume_refusal(state: TaskState) -> CommandRefused | None:
    """Return why a resume of a task with this state is refused, or None if it is accepted."""
    is_up = state.is_start and state.job_status is JobStatus.SUCCEEDED
    if is_up and not is_agent_gone(state):
        return ALREADY_RUNNING
    return _build_refusal(state)


def _build_refusal(state: TaskState) -> CommandRefused | None:
    if state.has_active_build:
        return BUILD_ACTIVE
    return NO_BUILDS_LEFT if builds.is_exhausted(state) else None


def _request_build(task: Task, transition: Transition, now: datetime) -> CommandAccepted | CommandRefused:
    refusal = _build_refusal(task.state)
    if refusal is not None:
        return refusal
    state = replace(task.state, loss_restarts=LossRestarts())
    return CommandAccepted(replace(task, state=builds.request_next_build(task.id, state, transition, now)))


def current_status(state: TaskState) -> Status:
    """Return the status of a task with this state."""
    return status_of(state, agent_of(state), app_health_of(state))
