"""What can be asked for a task: one frozen value for each command type of the contract."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar, TypeAlias
from uuid import UUID

from taskherd.domain.value import value

if TYPE_CHECKING:
    from typing import Any


@value(frozen=True, slots=True, kw_only=True)
class BaseCommand:
    """What every command carries. ``actor_id`` is recorded as the cause; who may do what is judged elsewhere."""

    type: ClassVar[str]
    command_id: UUID
    task_id: UUID
    actor_id: UUID


@value(frozen=True, slots=True, kw_only=True)
class Create(BaseCommand):
    """Make a task under the id that the caller chose. A name or display name of None is generated."""

    type: ClassVar[str] = "task.create"
    owner_id: UUID
    template_version_id: UUID
    template_version_preset_id: UUID | None = None
    input: str
    name: str | None = None
    display_name: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class Delete(BaseCommand):
    """Hide the task and take its workspace down."""

    type: ClassVar[str] = "task.delete"


@value(frozen=True, slots=True, kw_only=True)
class UpdateInput(BaseCommand):
    """Replace the prompt of a paused task."""

    type: ClassVar[str] = "task.update_input"
    input: str


@value(frozen=True, slots=True, kw_only=True)
class Send(BaseCommand):
    """Put an input into the task's inbox."""

    type: ClassVar[str] = "task.send"
    input: str


@value(frozen=True, slots=True, kw_only=True)
class Pause(BaseCommand):
    """Stop the task's workspace."""

    type: ClassVar[str] = "task.pause"


@value(frozen=True, slots=True, kw_only=True)
class Resume(BaseCommand):
    """Start the task's workspace again."""

    type: ClassVar[str] = "task.resume"


Command: TypeAlias = Create | Delete | UpdateInput | Send | Pause | Resume


def digest_text(command: Command) -> str:
    """The canonical JSON of a command: keys sorted, absent fields left out. Equal texts are the same command.

    Its digest tells a command that comes again from another one under the same ``command_id``.
    """
    said: dict[str, Any] = {"type": command.type}
    for field in fields(command):
        value = getattr(command, field.name)
        if value is not None:
            said[field.name] = str(value) if isinstance(value, UUID) else value
    return json.dumps(said, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
