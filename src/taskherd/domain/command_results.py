"""What becomes of a command: the task after it, or why it was refused.

Status codes and messages are those of Coder's Tasks API, because clients match on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.domain.agent_requests import AgentRequestRecord
    from taskherd.domain.task import Task


@value(frozen=True, slots=True)
class CommandRefused:
    """A valid command that was not executed, with an HTTP status and a message for the user.

    ``validations`` are pairs of a field and what is wrong with it.
    """

    status: int
    message: str
    detail: str | None = None
    validations: tuple[tuple[str, str], ...] = ()


@value(frozen=True, slots=True)
class CommandAccepted:
    """The task after a command. ``input``: the text to append to the inbox; ``queued``: it cannot be sent right now.

    ``steers``: the input goes before those that do not; ``interrupt_id``: the interrupt that was opened or joined.
    ``repeated``: an earlier execution of the command made the change. ``answered``: the request of the agent that was
    answered.
    """

    task: Task
    input_id: UUID | None = None
    input: str | None = None
    queued: bool = False
    repeated: bool = False
    steers: bool = False
    interrupt_id: UUID | None = None
    answered: AgentRequestRecord | None = None


def name_in_use(name: str) -> CommandRefused:
    """Return the refusal of a create whose name another task of the owner has."""
    validation = ("name", "This value is already in use and should be unique.")
    return CommandRefused(409, f'Workspace "{name}" already exists.', None, (validation,))


NOT_FOUND = CommandRefused(404, "Resource not found or you do not have access to this resource")
REQUEST_NOT_FOUND = CommandRefused(404, "Request not found.")
NO_VERSION = CommandRefused(400, "Template version not found or you do not have access to this resource")
NO_INPUT = CommandRefused(400, "Task input is required.")
NO_OWNER = CommandRefused(400, "Owner not found.")
COMMAND_ID_REUSED = CommandRefused(409, "command_id was used for another command.")
BUILD_ACTIVE = CommandRefused(409, "A workspace build is already active.")
NOT_WORKING = CommandRefused(409, "The agent is not working.")
ALREADY_RUNNING = CommandRefused(409, "Task workspace is already running.")
INBOX_FULL = CommandRefused(
    409, "Too many messages wait for the agent.", "Wait until it has got some of them, then try again."
)
NO_BUILDS_LEFT = CommandRefused(409, "This task has reached the maximum number of builds.")
