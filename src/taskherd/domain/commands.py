"""The commands: one immutable value for each command type of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias
from uuid import UUID

from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping


@value(frozen=True, slots=True, kw_only=True)
class BaseCommand:
    """Fields of every command. ``actor_id`` is recorded as the cause; permissions are checked by the API."""

    type: ClassVar[str]
    command_id: UUID
    task_id: UUID
    actor_id: UUID


@value(frozen=True, slots=True, kw_only=True)
class Create(BaseCommand):
    """A command that creates a task with the id that the caller chose. A name or display name of None is generated."""

    type: ClassVar[str] = "task.create"
    owner_id: UUID
    template_version_id: UUID
    template_version_preset_id: UUID | None = None
    input: str
    name: str | None = None
    display_name: str | None = None
    labels: Mapping[str, str] | None = None


@value(frozen=True, slots=True, kw_only=True)
class Delete(BaseCommand):
    """A command that hides the task and deletes its workspace."""

    type: ClassVar[str] = "task.delete"


@value(frozen=True, slots=True, kw_only=True)
class UpdateInput(BaseCommand):
    """A command that replaces the prompt of a paused task."""

    type: ClassVar[str] = "task.update_input"
    input: str


@value(frozen=True, slots=True, kw_only=True)
class UpdateLabels(BaseCommand):
    """A command that sets labels of a task, and removes those whose value is None."""

    type: ClassVar[str] = "task.update_labels"
    labels: Mapping[str, str | None]


@value(frozen=True, slots=True, kw_only=True)
class Send(BaseCommand):
    """A command that appends an input to the task's inbox; with ``interrupt`` it steers an agent that works."""

    type: ClassVar[str] = "task.send"
    input: str
    interrupt: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Pause(BaseCommand):
    """A command that stops the task's workspace."""

    type: ClassVar[str] = "task.pause"


@value(frozen=True, slots=True, kw_only=True)
class Resume(BaseCommand):
    """A command that starts the task's workspace again."""

    type: ClassVar[str] = "task.resume"


@value(frozen=True, slots=True, kw_only=True)
class Interrupt(BaseCommand):
    """A command that ends what the task's agent does. The id of the interrupt is that of the command."""

    type: ClassVar[str] = "task.interrupt"


@value(frozen=True, slots=True, kw_only=True)
class Answer(BaseCommand):
    """A command that answers a request of the task's agent: with an option and perhaps a text, or with a text alone."""

    type: ClassVar[str] = "task.answer"
    request_id: UUID
    option_id: str | None = None
    text: str | None = None


Command: TypeAlias = Create | Delete | UpdateInput | UpdateLabels | Send | Pause | Resume | Interrupt | Answer
