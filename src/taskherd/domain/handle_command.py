"""What a command does to a task: the preconditions, in their order, and the effect; a refusal is a value.

Codes and messages are those of Coder's Tasks API, which people's tools match on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never
from uuid import UUID

from taskherd.domain import builds, inbox, names
from taskherd.domain.commands import Create, Delete, Pause, Resume, Send, UpdateInput
from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.task import Deletion, Task
from taskherd.domain.value import replace, value
from taskherd.domain.view import Status, agent_of, app_health_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from datetime import datetime

    from taskherd.domain.commands import Command
    from taskherd.domain.task import TaskState

NIL = UUID(int=0)
MAX_DISPLAY_NAME = 64


@value(frozen=True, slots=True)
class CommandRefused:
    """A command that was understood and not carried out: an HTTP status and what to tell the person."""

    status: int
    message: str
    detail: str | None = None
    validations: tuple[tuple[str, str], ...] = ()


@value(frozen=True, slots=True)
class CommandAccepted:
    """The task after a command. ``input``: what is to be put in the inbox; ``queued``: it does not go out at once."""

    task: Task
    input_id: UUID | None = None
    input: str | None = None
    queued: bool = False


@value(frozen=True, slots=True)
class TemplateVersionInfo:
    """A template version as the directory has it, as far as a create needs it."""

    organization_id: UUID
    template_id: UUID
    presets: frozenset[UUID]
    usable: bool


@value(frozen=True, slots=True)
class CreateContext:
    """What a create is judged by: the directory's entries and the names that the owner's live tasks bear, lowercase."""

    owners: Mapping[UUID, frozenset[UUID]]
    versions: Mapping[UUID, TemplateVersionInfo]
    names_in_use: Mapping[UUID, Container[str]]
    generate_name: Callable[[str, Container[str]], str]
    strict_send: bool = False
    """Whether an input for a busy agent is refused instead of queued."""


NOT_FOUND = CommandRefused(404, "Resource not found or you do not have access to this resource")
NO_VERSION = CommandRefused(400, "Template version not found or you do not have access to this resource")
NO_OWNER = CommandRefused(400, "Owner not found.")
BUILD_ACTIVE = CommandRefused(409, "A workspace build is already active.")
NO_BUILDS_LEFT = CommandRefused(409, "No build number is left for this task.")


def handle_command(  # noqa: PLR0911 - one return for each command
    task: Task | None, command: Command, now: datetime, context: CreateContext
) -> CommandAccepted | CommandRefused:
    """Carry out a command on a task (None: there is none of that id) at ``now``."""
    if isinstance(command, Create):
        return (
            create(command, now, context)
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
        case Send():
            return _send(task, command, now, strict=context.strict_send)
        case Pause():
            return _pause(task, now)
        case Resume():
            return _resume(task, now)
        case _:
            assert_never(command)


def create(command: Create, now: datetime, context: CreateContext) -> CommandAccepted | CommandRefused:
    """A new task with its first build asked for."""
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
    name = _name_errors(command) or _name(command, context)
    if isinstance(name, CommandRefused):
        return name
    display = (command.display_name or "").strip()
    task = Task(
        id=command.task_id,
        owner_id=command.owner_id,
        organization_id=version.organization_id,
        template_id=version.template_id,
        template_version_id=command.template_version_id,
        preset_id=preset,
        name=name,
        display_name=display or names.display_name(command.input, name) or name,
        prompt=command.input,
        prompt_version=1,
        created_at=now,
        updated_at=now,
        version=1,
        deleted_at=None,
        state=builds.initial_state(command.task_id, now),
    )
    return CommandAccepted(task)


def _name_errors(command: Create) -> CommandRefused | None:
    """What is wrong with the names that the caller chose, whoever else bears them."""
    error = names.name_error(command.name) if command.name else None
    if error:
        return CommandRefused(400, "Unable to create a Task with the provided name.", error)
    if len((command.display_name or "").strip()) > MAX_DISPLAY_NAME:
        return CommandRefused(400, "Display name must be 64 characters or less.")
    return None


def _name(command: Create, context: CreateContext) -> str | CommandRefused:
    taken = context.names_in_use.get(command.owner_id, frozenset())
    if not command.name:
        return context.generate_name(command.input, taken)
    if command.name.lower() in taken:
        validation = ("name", "This value is already in use and should be unique.")
        return CommandRefused(409, f'Workspace "{command.name}" already exists.', None, (validation,))
    return command.name


def _delete(task: Task, now: datetime) -> CommandAccepted:
    state = replace(inbox.fail_all(task.state), deletion=Deletion())
    return CommandAccepted(replace(task, deleted_at=now, state=state))


def _update_input(task: Task, command: UpdateInput) -> CommandAccepted | CommandRefused:
    if not command.input.strip():
        return CommandRefused(400, "Task input is required.")
    if current_status(task.state) is not Status.PAUSED:
        return CommandRefused(409, "Unable to update task input, task must be paused.")
    return CommandAccepted(replace(task, prompt=command.input))


def _send(task: Task, command: Send, now: datetime, *, strict: bool) -> CommandAccepted | CommandRefused:
    if not command.input:
        return CommandRefused(400, "Task input is required.")
    is_now = current_status(task.state)
    match is_now:
        case Status.PENDING | Status.INITIALIZING:
            return CommandRefused(409, f"Task is {is_now.value}.")
        case Status.PAUSED:
            return CommandRefused(409, "Task is paused.", "Resume the task to send messages.")
        case Status.ERROR | Status.UNKNOWN:
            return CommandRefused(400, "Task must be active.", f"The task's status is {is_now.value}.")
        case Status.ACTIVE:
            goes = task.state.inbox.queued == 0 and inbox.is_ready(task.state, now)
            if strict and not goes:
                return CommandRefused(409, "Task app is not ready to accept input.")
            after = replace(task, state=inbox.enqueue(task.state))
            return CommandAccepted(after, command.command_id, command.input, queued=not goes)
        case _:
            assert_never(is_now)


def _pause(task: Task, now: datetime) -> CommandAccepted | CommandRefused:
    return _request_build(task, Transition.STOP, now)


def _resume(task: Task, now: datetime) -> CommandAccepted | CommandRefused:
    state = task.state
    if not state.active and state.starting and state.job is JobStatus.SUCCEEDED:
        return CommandRefused(409, "Task workspace is already running.")
    return _request_build(task, Transition.START, now)


def _request_build(task: Task, transition: Transition, now: datetime) -> CommandAccepted | CommandRefused:
    if task.state.active:
        return BUILD_ACTIVE
    if builds.is_exhausted(task.state):
        return NO_BUILDS_LEFT
    return CommandAccepted(replace(task, state=builds.request_next_build(task.id, task.state, transition, now)))


def current_status(state: TaskState) -> Status:
    """The status that this memory shows."""
    return status_of(state, agent_of(state), app_health_of(state))
