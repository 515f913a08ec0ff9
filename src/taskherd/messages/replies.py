"""The answers to commands, as JSON for the queue that the caller named, and what a caller reads from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, Field

from taskherd.domain.handle_command import CommandRefused
from taskherd.domain.value import value
from taskherd.errors import Malformed
from taskherd.messages.document import TaskDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.messages.decoding import InvalidMessage


REPEATED = "x-taskherd-repeated"
"""The header of a reply that was given before: the command was done already, and nothing changed this time."""

USED_BEFORE = "command_id was used for another command."


class Validation(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    detail: str


class ErrorOut(BaseModel):
    """Why a command was refused: an HTTP status, and what to tell the person."""

    status: int = Field(ge=400, le=599)
    message: str
    detail: str | None = None
    validations: list[Validation] | None = None


class AcceptedReply(BaseModel):
    """The command was carried out; ``task`` is the document as it stands after it."""

    ok: Literal[True]
    task: TaskDocument
    version: int
    input_id: UUID | None = Field(None, description="For a task.send.")
    queued: bool | None = Field(None, description="For a task.send: the input waits until the agent is idle.")


class RefusedReply(BaseModel):
    """The command was not carried out."""

    ok: Literal[False]
    error: ErrorOut


def accepted_reply(
    task: Mapping[str, Any], version: int, *, input_id: UUID | None = None, queued: bool = False
) -> bytes:
    """The reply to a command that was carried out; ``queued`` is told where there is an ``input_id``."""
    said: dict[str, Any] = {"ok": True, "task": task, "version": version}
    if input_id is not None:
        said |= {"input_id": str(input_id), "queued": queued}
    return orjson.dumps(said)


def refused_reply(refusal: CommandRefused) -> bytes:
    """The reply to a command that was understood and not carried out."""
    error: dict[str, Any] = {"status": refusal.status, "message": refusal.message}
    if refusal.detail is not None:
        error["detail"] = refusal.detail
    if refusal.validations:
        error["validations"] = [{"field": field, "detail": detail} for field, detail in refusal.validations]
    return orjson.dumps({"ok": False, "error": error})


def invalid_message_reply(bad: InvalidMessage) -> bytes:
    """The reply to a command that could not be decoded."""
    error = {"status": 400, "message": "Command could not be read.", "detail": f"{bad.reason.value}: {bad.detail}"}
    return orjson.dumps({"ok": False, "error": error})


@value(frozen=True, slots=True)
class Accepted:
    """A command was carried out; ``task`` is the document right after it, ``queued`` belongs to a send."""

    task: dict[str, Any]
    version: int
    queued: bool = False


def decode_reply(body: bytes) -> Accepted | CommandRefused:
    """Return what the worker replied. Raises Malformed for what is no reply."""
    try:
        match orjson.loads(body):
            case {"ok": True, "task": dict() as task, "version": int() as version, **more}:
                return Accepted(task, version, queued=more.get("queued") is True)
            case {"ok": False, "error": {"status": int() as status, "message": str() as message} as error}:
                validations = [(each["field"], each["detail"]) for each in error.get("validations", ())]
                return CommandRefused(status, message, error.get("detail"), tuple(validations))
            case _:
                raise Malformed("not_a_reply")
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Malformed("not_a_reply", str(error)) from None
