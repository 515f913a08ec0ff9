"""Ask the worker whether a task exists, with a command that always fails and therefore changes nothing.

A runner has no database access. It sends an update of the task's input with an empty text. The worker rejects it with
404 if the task is unknown or deleted, and otherwise with 400 (input required). A command id belongs to the first
command sent under it, so the same id with another actor is rejected with 409.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from taskherd.domain.commands import UpdateInput
from taskherd.domain.handle_command import CommandRefused
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.commands import encode_command
from taskherd.messages.replies import decode_reply

if TYPE_CHECKING:
    from taskherd.broker.command_client import CommandClient

NO_ACTOR = UUID(int=0)


class Ownership(Enum):
    """The worker's answer; the value is the status of the error in its reply."""

    EXISTS = 400
    """The task exists, and no other runner has used the command id: a claim with that id is won."""
    GONE = 404
    """The task does not exist, or is deleted."""
    OTHER_RUNNER = 409
    """The task exists, and another runner has used the command id: a claim with that id is lost."""


async def query_ownership(
    commands: CommandClient, task_id: UUID, command_id: UUID, *, actor_id: UUID = NO_ACTOR, no_expiry: bool = False
) -> Ownership:
    """Return the worker's answer about a task.

    With ``no_expiry`` the worker processes the query even after the runner has stopped waiting for the reply.

    Raises:
        Unavailable: no reply arrived in time, or the reply was malformed.
    """
    query = UpdateInput(command_id=command_id, task_id=task_id, actor_id=actor_id, input="")
    reply = await commands.call(query.type, encode_command(query), no_expiry=no_expiry)
    try:
        result = decode_reply(reply.body)
        if isinstance(result, CommandRefused):
            return Ownership(result.status)
    except (Malformed, ValueError):
        pass
    raise Unavailable(f"unexpected reply to {query.type}: {reply.body[:200]!r}")
