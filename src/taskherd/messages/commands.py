"""Commands: a pydantic model for each type of the contract; encoding and decoding of ``domain.commands``.

Names are not validated here: the error messages for invalid names are part of the API contract and belong to the
domain.
"""

from __future__ import annotations

from dataclasses import fields
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args
from uuid import UUID

import orjson
from pydantic import Field, StringConstraints, TypeAdapter

from taskherd.domain import commands as domain
from taskherd.domain.commands import Command
from taskherd.messages import texts
from taskherd.messages.decoding import InvalidMessage, Undecodable, decode, too_large
from taskherd.messages.fields import IncomingModel, Input
from taskherd.messages.limits import MAX_BODY_BYTES
from taskherd.messages.texts import SanitizeCounts

_NIL = UUID(int=0)
_UncheckedName = Annotated[str, StringConstraints(strict=True, max_length=1024)]
"""A name that ``domain.names`` validates, so that the reply has the reason; this limit only bounds the message."""


_UncheckedText = Annotated[str, StringConstraints(strict=True, max_length=256)]
_Labels = Annotated[dict[_UncheckedText, _UncheckedText], Field(max_length=256)]
"""Labels that ``domain.labels`` validates; these limits only bound the message."""
_ChangedLabels = Annotated[dict[_UncheckedText, _UncheckedText | None], Field(max_length=256)]


class BaseCommandIn(IncomingModel):
    """Fields of every command."""

    command_id: UUID
    task_id: UUID
    actor_id: UUID


class CreateIn(BaseCommandIn):
    """A command that creates a task with the id that the caller chose."""

    type: Literal["task.create"]
    owner_id: UUID
    template_version_id: UUID
    template_version_preset_id: UUID | None = Field(None, description="Absent or the nil UUID: no preset.")
    input: Input = Field(description="The prompt; a blank one is refused.")
    name: _UncheckedName | None = Field(None, description="Absent: generated from the input.")
    display_name: _UncheckedName | None = Field(None, description="Absent: generated from the input.")
    labels: _Labels | None = Field(None, description="At most 16, with keys and values of up to 64 characters.")

    def to_domain(self, counts: SanitizeCounts) -> domain.Create:
        """Return the command as a domain value, with sanitized texts."""
        preset = self.template_version_preset_id
        return domain.Create(
            command_id=self.command_id,
            task_id=self.task_id,
            actor_id=self.actor_id,
            owner_id=self.owner_id,
            template_version_id=self.template_version_id,
            template_version_preset_id=None if preset == _NIL else preset,
            input=texts.sanitize(self.input, counts),
            name=self.name,
            display_name=None if self.display_name is None else texts.sanitize_name(self.display_name, counts),
            labels=self.labels,
        )


class DeleteIn(BaseCommandIn):
    """A command that hides the task and deletes its workspace."""

    type: Literal["task.delete"]

    def to_domain(self, counts: SanitizeCounts) -> domain.Delete:  # noqa: ARG002 - the same signature for all commands
        """Return the command as a domain value, with sanitized texts."""
        return domain.Delete(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class UpdateInputIn(BaseCommandIn):
    """A command that replaces the prompt of a paused task."""

    type: Literal["task.update_input"]
    input: Input

    def to_domain(self, counts: SanitizeCounts) -> domain.UpdateInput:
        """Return the command as a domain value, with sanitized texts."""
        text = texts.sanitize(self.input, counts)
        return domain.UpdateInput(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id, input=text)


class UpdateLabelsIn(BaseCommandIn):
    """A command that sets labels of a task, and removes those whose value is null."""

    type: Literal["task.update_labels"]
    labels: _ChangedLabels

    def to_domain(self, counts: SanitizeCounts) -> domain.UpdateLabels:  # noqa: ARG002 - the same signature for all commands
        """Return the command as a domain value."""
        return domain.UpdateLabels(
            command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id, labels=self.labels
        )


class SendIn(BaseCommandIn):
    """A command that appends an input to the task's inbox."""

    type: Literal["task.send"]
    input: Input
    interrupt: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="Interrupt an agent that works; then this input goes before those without it."
    )

    def to_domain(self, counts: SanitizeCounts) -> domain.Send:
        """Return the command as a domain value, with sanitized texts."""
        text = texts.sanitize(self.input, counts)
        return domain.Send(
            command_id=self.command_id,
            task_id=self.task_id,
            actor_id=self.actor_id,
            input=text,
            interrupt=bool(self.interrupt),
        )


class PauseIn(BaseCommandIn):
    """A command that stops the task's workspace."""

    type: Literal["task.pause"]

    def to_domain(self, counts: SanitizeCounts) -> domain.Pause:  # noqa: ARG002 - the same signature for all commands
        """Return the command as a domain value, with sanitized texts."""
        return domain.Pause(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class ResumeIn(BaseCommandIn):
    """A command that starts the task's workspace again."""

    type: Literal["task.resume"]

    def to_domain(self, counts: SanitizeCounts) -> domain.Resume:  # noqa: ARG002 - the same signature for all commands
        """Return the command as a domain value, with sanitized texts."""
        return domain.Resume(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class InterruptIn(BaseCommandIn):
    """A command that ends what the task's agent does; while an interrupt is open, another one joins it."""

    type: Literal["task.interrupt"]

    def to_domain(self, counts: SanitizeCounts) -> domain.Interrupt:  # noqa: ARG002 - the same signature for all commands
        """Return the command as a domain value, with sanitized texts."""
        return domain.Interrupt(command_id=self.command_id, task_id=self.task_id, actor_id=self.actor_id)


class AnswerIn(BaseCommandIn):
    """A command that answers an open request of the task's agent; the first accepted answer stands."""

    type: Literal["task.answer"]
    request_id: UUID
    option_id: _UncheckedText | None = Field(None, description="Required if the request has options.")
    text: Input | None = Field(
        None,
        description="Required if the request has no options; else it goes to the agent as an input that interrupts it.",
    )

    def to_domain(self, counts: SanitizeCounts) -> domain.Answer:
        """Return the command as a domain value, with sanitized texts."""
        return domain.Answer(
            command_id=self.command_id,
            task_id=self.task_id,
            actor_id=self.actor_id,
            request_id=self.request_id,
            option_id=self.option_id,
            text=None if self.text is None else texts.sanitize(self.text, counts),
        )


CommandIn: TypeAlias = Annotated[
    CreateIn | DeleteIn | UpdateInputIn | UpdateLabelsIn | SendIn | PauseIn | ResumeIn | InterruptIn | AnswerIn,
    Field(discriminator="type"),
]

_COMMAND: TypeAdapter[CommandIn] = TypeAdapter(CommandIn)
_FIELDS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in get_args(Command)}


def encode_command(command: Command) -> bytes:
    """Encode a command as canonical JSON: keys sorted, fields that are absent or false omitted."""
    content: dict[str, Any] = {"type": command.type}
    for name in _FIELDS[type(command)]:
        value = getattr(command, name)
        if value is not None and value is not False:
            content[name] = value
    return orjson.dumps(content, default=str, option=orjson.OPT_SORT_KEYS)


def digest(command: Command) -> bytes:
    """Return a digest that tells a repeated command from another command with the same id."""
    return sha256(encode_command(command)).digest()


def decode_command(body: bytes, original_length: int | None = None) -> Command | InvalidMessage:
    """Decode a body. Invalid input is returned, not raised.

    ``original_length`` is the size of a body of which only the beginning was received.
    """
    if original_length is not None or len(body) > MAX_BODY_BYTES:
        return too_large(body, original_length)
    try:
        return decode(_COMMAND, body, {}).to_domain({})
    except Undecodable as error:
        return error.to_invalid_message(body)
