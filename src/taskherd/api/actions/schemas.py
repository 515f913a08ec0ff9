"""Request and response bodies of task actions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.api.tasks.schemas import ErrorResponse
from taskherd.messages.fields import Input

MAX_TASKS: Final = 10_000
"""Maximum number of tasks of one action."""
MAX_BYTES: Final = 2 * 1024 * 1024
"""Maximum size of a request for an action: the ids of as many tasks, and an input, as JSON may escape them."""
MAX_PREVIEW: Final = 100
"""Maximum number of tasks that a dry run shows."""


class ActionType(StrEnum):
    """What an action does to each of its tasks."""

    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    SEND = "send"
    INTERRUPT = "interrupt"


class ActionState(StrEnum):
    """Where an action is."""

    PENDING = "pending"
    """It waits for an earlier action of the same user, or for an API process."""
    RUNNING = "running"
    CANCELING = "canceling"
    COMPLETED = "completed"
    """Every task has a result, which may be an error."""
    CANCELED = "canceled"
    FAILED = "failed"
    """It ended before every task had a result; ``failure`` says why."""


class CreateAction(BaseModel):
    """An action, and its tasks: those that match ``q``, or those of ``ids``, or those of ``ids`` that match."""

    action: ActionType
    q: Annotated[str, Field(strict=True, max_length=4096)] | None = Field(
        None,
        description="Search terms, as of the list of tasks; at least one. `owner:me` selects all tasks of the caller.",
    )
    ids: Annotated[list[UUID], Field(max_length=MAX_TASKS)] | None = Field(
        None,
        description="IDs of tasks, at least one. One that does not exist, or that the caller may not see, has the"
        " result 404. With `q`: the `ids` of a dry run, perhaps none; the action is for those of them that match now.",
    )
    input: Input | None = Field(None, description="For `send`: the input, 1 byte to 256 KiB of UTF-8.")
    dry_run: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="`true`: nothing is changed; the response says which tasks the action would be for."
    )


class Action(BaseModel):
    """An action and its progress. ``pending`` tasks have no result yet; once it has ended, they stay as they are."""

    id: UUID
    action: ActionType
    q: str | None = Field(description="The search terms that selected the tasks; null if they were given by ID.")
    state: ActionState
    total: int
    succeeded: int
    refused: int
    unconfirmed: int = Field(
        description="Number of tasks whose command was sent and not confirmed before the action ended; it may still"
        " take effect."
    )
    pending: int
    failure: str | None = Field(description="Why the action ended before every task had a result.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Actions(BaseModel):
    """Actions of the caller, newest first."""

    actions: list[Action]
    next: str | None = Field(description="The value of `after` for the next page, or null on the last page.")


class PreviewedTask(BaseModel):
    """A task that an action would be for."""

    task_id: UUID
    owner_name: str
    name: str
    status: str


class ActionPreview(BaseModel):
    """What an action would be for: the number of tasks, and the first 100 of them."""

    action: ActionType
    total: int
    missing: int = Field(description="Number of IDs of tasks that do not exist, or that the caller may not see.")
    tasks: list[PreviewedTask]
    ids: list[UUID] | None = Field(
        None,
        description="With `q`: all of the tasks. Send them with the action, for which no other tasks are then taken.",
    )


class ActionResult(BaseModel):
    """What became of one task."""

    position: int = Field(description="Position of the task in the action, from 0.")
    task_id: UUID
    owner_name: str | None = Field(description="Null, like `name`, if the caller may not see the task any more.")
    name: str | None
    status: int | None = Field(
        description="The HTTP status that a request for this task would have had: 503 if its command was sent and not"
        " confirmed before the action ended, so that it may still take effect. Null while it is pending, and for good"
        " if the action ended before its command was sent."
    )
    error: ErrorResponse | None = None
    decided_at: datetime | None


class ActionResults(BaseModel):
    """Results of an action, in its order."""

    results: list[ActionResult]
    next: int | None = Field(description="The value of `after` for the next page, or null on the last page.")
