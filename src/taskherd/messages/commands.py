"""Commands.

A pydantic model for each type of the contract, bytes as values of ``domain.commands``, and values as bytes.

Names are taken as they are: the answers to bad ones are part of the API that people's tools match on, so they are
judged where those answers are kept.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias
from uuid import UUID

from pydantic import Field, StringConstraints, TypeAdapter

from taskherd.domain import commands as domain
from taskherd.domain.commands import Command, digest_text
from taskherd.messages import texts
from taskherd.messages.decoding import InvalidMessage, Unread, decode, too_large
from taskherd.messages.fields import Input
from taskherd.messages.limits import BODY_BYTES
from taskherd.messages.reports import IncomingModel
from taskherd.messages.texts import SanitizeCounts

_NIL = UUID(int=0)
_Named = Annotated[str, StringConstraints(strict=True, max_length=1024)]


class CommandIn(IncomingModel):
    """What every command carries."""

    command_id: UUID
    task_id: UUID
    actor_id: UUID


class CreateIn(CommandIn):
    """Make a task under the id that the caller chose."""

    type: Literal["task.create"]
    owner_id: UUID
    template_version_id: UUID
    template_version_preset_id: UUID | None = Field(None, description="Absent or the nil UUID: no preset.")
    input: Input
    name: _Named | None = Field(None, description="Absent: generated from the input.")
    display_name: _Named | None = Field(None, description="Absent: generated from the input.")

    def to_domain(self, notes: SanitizeCounts) -> domain.Create:
        """The command as the core knows it."""
        preset = self.template_version_preset_id
        return domain.Create(
            command_id=self.command_id,
            task_id=self.task_id,
            actor_id=self.actor_id,
            owner_id=self.owner_id,
            template_version_id=self.template_version_id,
            template_version_preset_id=None if preset == _NIL else preset,
            input=texts.sanitize(self.input, notes),
            name=self.name,
            display_name=None if self.display_name is None else texts.sanitize(self.display_name, notes),
        )


class DeleteIn(CommandIn):
    """Hide the task and take its workspace down."""

    type: Literal["task.delete"]

    def to_domain(self, notes: SanitizeCounts) -> domain.Delete:  # noqa: ARG002 - as its siblings
        """The command as the core knows it."""
        return domain.Delete(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class UpdateInputIn(CommandIn):
    """Replace the prompt of a paused task."""

    type: Literal["task.update_input"]
    input: Input

    def to_domain(self, notes: SanitizeCounts) -> domain.UpdateInput:
        """The command as the core knows it."""
        said = texts.sanitize(self.input, notes)
        return domain.UpdateInput(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id, input=said)


class SendIn(CommandIn):
    """Put an input into the task's inbox."""

    type: Literal["task.send"]
    input: Input

    def to_domain(self, notes: SanitizeCounts) -> domain.Send:
        """The command as the core knows it."""
        said = texts.sanitize(self.input, notes)
        return domain.Send(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id, input=said)


class PauseIn(CommandIn):
    """Stop the task's workspace."""

    type: Literal["task.pause"]

    def to_domain(self, notes: SanitizeCounts) -> domain.Pause:  # noqa: ARG002 - as its siblings
        """The command as the core knows it."""
        return domain.Pause(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class ResumeIn(CommandIn):
    """Start the task's workspace again."""

    type: Literal["task.resume"]

    def to_domain(self, notes: SanitizeCounts) -> domain.Resume:  # noqa: ARG002 - as its siblings
        """The command as the core knows it."""
        return domain.Resume(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


AnyCommandIn: TypeAlias = Annotated[
    CreateIn | DeleteIn | UpdateInputIn | SendIn | PauseIn | ResumeIn, Field(discriminator="type")
]

_COMMAND: TypeAdapter[AnyCommandIn] = TypeAdapter(AnyCommandIn)


def encode(command: Command) -> bytes:
    """Return a command as JSON, in its canonical form: absent fields are left out."""
    return digest_text(command).encode()


def decode_command(body: bytes) -> Command | InvalidMessage:
    """Return the command of a body, its texts without control characters; whatever comes, nothing is raised."""
    if len(body) > BODY_BYTES:
        return too_large(body)
    try:
        return decode(_COMMAND, body, {}).to_domain({})
    except Unread as why:
        return why.bad(body)
