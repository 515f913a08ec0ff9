"""Replies to commands: encoded by the worker for the queue in ``reply_to``, decoded by the sender of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, Field

from taskherd.domain.command_results import CommandRefused, name_in_use
from taskherd.domain.commands import Create
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.value import value
from taskherd.errors import Malformed
from taskherd.messages.document import TaskDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.domain.commands import Command
    from taskherd.messages.decoding import InvalidMessage


_UNNAMED = name_in_use("")  # no task has this name

REPEATED_HEADER = "x-taskherd-repeated"
"""Header of a repeated reply: the command had been executed before, and nothing changed this time."""


class Validation(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    detail: str


class ReplyError(BaseModel):
    """Why a command was refused: an HTTP status and a message for the user."""

    status: int = Field(ge=400, le=599)
    message: str
    detail: str | None = None
    validations: list[Validation] | None = None


class AcceptedReply(BaseModel):
    """The command was executed; ``task`` is the document after it."""

    ok: Literal[True]
    task: TaskDocument
    version: int
    input_id: UUID | None = Field(None, description="For a task.send.")
    queued: bool | None = Field(None, description="For a task.send: the input could not be sent immediately.")
    interrupt_id: UUID | None = Field(
        None, description="For a task.interrupt, and a task.send that steers: the interrupt that it opened or joined."
    )
    answered: UUID | None = Field(
        None, description="For a task.answer, and a task.send that answers a question: the agent's request."
    )


class RefusedReply(BaseModel):
    """The command was not executed."""

    ok: Literal[False]
    error: ReplyError


def accepted_reply(
    task: Mapping[str, Any],
    version: int,
    *,
    input_id: UUID | None = None,
    queued: bool = False,
    interrupt_id: UUID | None = None,
    answered: UUID | None = None,
) -> bytes:
    """Encode the reply to an executed command; ``queued`` is included only with an ``input_id``."""
    reply: dict[str, Any] = {"ok": True, "task": task, "version": version}
    if input_id is not None:
        reply |= {"input_id": str(input_id), "queued": queued}
    if interrupt_id is not None:
        reply["interrupt_id"] = str(interrupt_id)
    if answered is not None:
        reply["answered"] = str(answered)
    return orjson.dumps(reply)


def refused_reply(refusal: CommandRefused) -> bytes:
    """Encode the reply to a refused command."""
    error: dict[str, Any] = {"status": refusal.status, "message": refusal.message}
    if refusal.detail is not None:
        error["detail"] = refusal.detail
    if refusal.validations:
        error["validations"] = [{"field": field, "detail": detail} for field, detail in refusal.validations]
    return orjson.dumps({"ok": False, "error": error})


def stored_reply(command: Command, body: bytes, refusal: CommandRefused | None) -> str:
    """Return the reply to a command as it is recorded, for ``restored_reply``.

    It does not name the other task whose name a create asked for, which may be erased before the record is.
    """
    is_named = isinstance(command, Create) and refusal == name_in_use(command.name or "")
    return (refused_reply(_UNNAMED) if is_named else body).decode()


def restored_reply(command: Command, recorded: str) -> bytes:
    """Return a recorded reply as it was sent; ``command`` is the one that was executed, or a repetition of it."""
    body = recorded.encode()
    if isinstance(command, Create) and command.name and decode_reply(body) == _UNNAMED:
        return refused_reply(name_in_use(command.name))
    return body


def invalid_message_reply(invalid: InvalidMessage) -> bytes:
    """Encode the reply to a message that could not be decoded, or whose sender is not trusted."""
    status, message = 400, "Command could not be read."
    if invalid.reason is DeadLetterReason.UNTRUSTED_SENDER:
        status, message = 403, "The sender is not trusted."
    detail = f"{invalid.reason.value}: {invalid.detail}"
    return orjson.dumps({"ok": False, "error": {"status": status, "message": message, "detail": detail}})


@value(frozen=True, slots=True)
class Accepted:
    """A decoded reply to an executed command: the document and version after it.

    ``queued`` belongs to a send, ``interrupt_id`` to an interrupt and a send that steers, ``answered`` to an answer and
    a send that answers: the id of the agent's request.
    """

    task: dict[str, Any]
    version: int
    queued: bool = False
    interrupt_id: UUID | None = None
    answered: UUID | None = None


def decode_reply(body: bytes) -> Accepted | CommandRefused:
    """Decode a reply. Raises ``Malformed`` if the body is not a reply."""
    try:
        match orjson.loads(body):
            case {"ok": True, "task": dict() as task, "version": int() as version, **optional}:
                interrupt_id, answered = _optional_id(optional, "interrupt_id"), _optional_id(optional, "answered")
                return Accepted(task, version, optional.get("queued") is True, interrupt_id, answered)
            case {"ok": False, "error": {"status": int() as status, "message": str() as message} as error}:
                validations = [(entry["field"], entry["detail"]) for entry in error.get("validations", ())]
                return CommandRefused(status, message, error.get("detail"), tuple(validations))
            case _:
                raise Malformed("not_a_reply")
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed("not_a_reply", str(error)) from None


def _optional_id(fields: Mapping[Any, Any], name: str) -> UUID | None:
    identifier = fields.get(name)
    return None if identifier is None else UUID(str(identifier))
