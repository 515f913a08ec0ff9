"""What a runner asks the worker: with a command that can't be carried out, so that nothing changes.

A runner has no access to the database, and needs none. It gives an update of a task's input to nothing. Of a task that
is unknown or deleted the worker says so (404), of any other that an input is required (400). A command id stands for
the first command that was given under it: whoever comes with the same one in another name learns just that (409).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from taskherd.broker.desk import Order
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from taskherd.broker.desk import Desk

COMMAND = "task.update_input"
NOBODY = UUID(int=0)


class Said(Enum):
    """What a reply says, by the status of its error."""

    THERE = 400
    GONE = 404
    ANOTHERS = 409


async def ask(desk: Desk, task_id: UUID, command_id: UUID, *, name: UUID = NOBODY, lasting: bool = False) -> Said:
    """Ask about a task, under this command id in this name.

    Raises Unavailable where no reply came in time, or one that says nothing of the kind. A `lasting` question counts
    even then, as soon as the worker comes to it.
    """
    reply = await desk.give(Order(COMMAND, command_id, task_id, name, {"input": ""}, lasting))
    try:
        return Said(reply.told["error"]["status"])
    except (KeyError, TypeError, ValueError):
        raise Unavailable(f"the reply to {COMMAND} says nothing: {str(reply.told)[:200]}") from None
