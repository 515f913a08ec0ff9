"""What a runner asks the worker: with a command that can't be carried out, so that nothing changes.

A runner has no access to the database, and needs none. It gives an update of a task's input to nothing. Of a task that
is unknown or deleted the worker says so (404), of any other that an input is required (400). A command id stands for
the first command that was given under it: whoever comes with the same one in another name learns just that (409).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from taskherd.domain.commands import UpdateInput
from taskherd.domain.handle_command import CommandRefused
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.commands import encode
from taskherd.messages.replies import decode_reply

if TYPE_CHECKING:
    from taskherd.broker.rpc import CommandClient

NO_ACTOR = UUID(int=0)


class Ownership(Enum):
    """What a reply says, by the status of its error."""

    EXISTS = 400
    GONE = 404
    OTHER_RUNNER = 409


async def query_ownership(
    commands: CommandClient, task_id: UUID, command_id: UUID, *, name: UUID = NO_ACTOR, lasting: bool = False
) -> Ownership:
    """Ask about a task, under this command id in this name.

    Raises Unavailable where no reply came in time, or one that says nothing of the kind. A `lasting` question counts
    even then, as soon as the worker comes to it.
    """
    question = UpdateInput(command_id=command_id, task_id=task_id, actor_id=name, input="")
    reply = await commands.call(question.type, encode(question), no_expiry=lasting)
    try:
        answer = decode_reply(reply.body)
        if isinstance(answer, CommandRefused):
            return Ownership(answer.status)
    except (Malformed, ValueError):
        pass
    raise Unavailable(f"the reply to {question.type} says nothing: {reply.body[:200]!r}")
