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
    from taskherd.domain.task import Memory

NIL = UUID(int=0)
DISPLAY_NAME_MOST = 64


@value(frozen=True, slots=True)
class Refused:
    """A command that was understood and not carried out: an HTTP status and what to tell the person."""

    status: int
    message: str
    detail: str | None = None
    validations: tuple[tuple[str, str], ...] = ()


@value(frozen=True, slots=True)
class Accepted:
    """The task after a command. ``input``: what is to be put in the inbox; ``queued``: it does not go out at once."""

    task: Task
    input_id: UUID | None = None
    input: str | None = None
    queued: bool = False


@value(frozen=True, slots=True)
class Version:
    """A template version as the directory has it, as far as a create needs it."""

    organization_id: UUID
    template_id: UUID
    presets: frozenset[UUID]
    usable: bool


@value(frozen=True, slots=True)
class Surroundings:
    """What a create is judged by: the directory's entries and the names that the owner's live tasks bear, lowercase."""

    owners: Mapping[UUID, frozenset[UUID]]
    versions: Mapping[UUID, Version]
    taken: Mapping[UUID, Container[str]]
    draw: Callable[[str, Container[str]], str]
    strict_send: bool = False
    """Whether an input for a busy agent is refused instead of queued."""


NOT_FOUND = Refused(404, "Resource not found or you do not have access to this resource")
NO_VERSION = Refused(400, "Template version not found or you do not have access to this resource")
NO_OWNER = Refused(400, "Owner not found.")
BUILD_ACTIVE = Refused(409, "A workspace build is already active.")
NO_BUILDS_LEFT = Refused(409, "No build number is left for this task.")


def obey(  # noqa: PLR0911 - one return for each command
    task: Task | None, command: Command, now: datetime, around: Surroundings
) -> Accepted | Refused:
    """Carry out a command on a task (None: there is none of that id) at ``now``."""
    if isinstance(command, Create):
        return create(command, now, around) if task is None else Refused(409, "A task with this ID already exists.")
    if task is None or task.deleted_at is not None:
        return NOT_FOUND
    match command:
        case Delete():
            return _delete(task, now)
        case UpdateInput():
            return _update_input(task, command)
        case Send():
            return _send(task, command, now, strict=around.strict_send)
        case Pause():
            return _pause(task, now)
        case Resume():
            return _resume(task, now)
        case _:
            assert_never(command)


def create(command: Create, now: datetime, around: Surroundings) -> Accepted | Refused:
    """A new task with its first build asked for."""
    organizations = around.owners.get(command.owner_id)
    if organizations is None:
        return NO_OWNER
    version = around.versions.get(command.template_version_id)
    if version is None or not version.usable or version.organization_id not in organizations:
        return NO_VERSION
    preset = command.template_version_preset_id
    preset = None if preset == NIL else preset
    if preset is not None and preset not in version.presets:
        return Refused(400, "Preset not found.")
    name = _flaw(command) or _name(command, around)
    if isinstance(name, Refused):
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
        memory=builds.first(command.task_id, now),
    )
    return Accepted(task)


def _flaw(command: Create) -> Refused | None:
    """What is wrong with the names that the caller chose, whoever else bears them."""
    flaw = names.flaw(command.name) if command.name else None
    if flaw:
        return Refused(400, "Unable to create a Task with the provided name.", flaw)
    if len((command.display_name or "").strip()) > DISPLAY_NAME_MOST:
        return Refused(400, "Display name must be 64 characters or less.")
    return None


def _name(command: Create, around: Surroundings) -> str | Refused:
    taken = around.taken.get(command.owner_id, frozenset())
    if not command.name:
        return around.draw(command.input, taken)
    if command.name.lower() in taken:
        validation = ("name", "This value is already in use and should be unique.")
        return Refused(409, f'Workspace "{command.name}" already exists.', None, (validation,))
    return command.name


def _delete(task: Task, now: datetime) -> Accepted:
    memory = replace(inbox.emptied(task.memory), deletion=Deletion())
    return Accepted(replace(task, deleted_at=now, memory=memory))


def _update_input(task: Task, command: UpdateInput) -> Accepted | Refused:
    if not command.input.strip():
        return Refused(400, "Task input is required.")
    if status(task.memory) is not Status.PAUSED:
        return Refused(409, "Unable to update task input, task must be paused.")
    return Accepted(replace(task, prompt=command.input))


def _send(task: Task, command: Send, now: datetime, *, strict: bool) -> Accepted | Refused:
    if not command.input:
        return Refused(400, "Task input is required.")
    is_now = status(task.memory)
    match is_now:
        case Status.PENDING | Status.INITIALIZING:
            return Refused(409, f"Task is {is_now.value}.")
        case Status.PAUSED:
            return Refused(409, "Task is paused.", "Resume the task to send messages.")
        case Status.ERROR | Status.UNKNOWN:
            return Refused(400, "Task must be active.", f"The task's status is {is_now.value}.")
        case Status.ACTIVE:
            goes = task.memory.inbox.queued == 0 and inbox.ready(task.memory, now)
            if strict and not goes:
                return Refused(409, "Task app is not ready to accept input.")
            after = replace(task, memory=inbox.accepted(task.memory))
            return Accepted(after, command.command_id, command.input, queued=not goes)
        case _:
            assert_never(is_now)


def _pause(task: Task, now: datetime) -> Accepted | Refused:
    return _ask(task, Transition.STOP, now)


def _resume(task: Task, now: datetime) -> Accepted | Refused:
    memory = task.memory
    if not memory.active and memory.starting and memory.job is JobStatus.SUCCEEDED:
        return Refused(409, "Task workspace is already running.")
    return _ask(task, Transition.START, now)


def _ask(task: Task, transition: Transition, now: datetime) -> Accepted | Refused:
    if task.memory.active:
        return BUILD_ACTIVE
    if builds.exhausted(task.memory):
        return NO_BUILDS_LEFT
    return Accepted(replace(task, memory=builds.request(task.id, task.memory, transition, now)))


def status(memory: Memory) -> Status:
    """The status that this memory shows."""
    return status_of(memory, agent_of(memory), app_health_of(memory))
