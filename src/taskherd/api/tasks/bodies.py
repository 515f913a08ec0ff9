"""What the task routes take and give, as models: the requests are validated by them, the OpenAPI document shows both.

As Go's decoder does, `null` stands for a field that is not there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.wire.document import TaskDocument
from taskherd.wire.fields import Input

Strict = Annotated[str, Field(strict=True)]


class CreateTask(BaseModel):
    """A task to create. Without a name or display name, one is made from the input."""

    template_version_id: UUID | None = Field(None, description="What to make the task from; needed.")
    template_version_preset_id: UUID | None = Field(None, description="The nil UUID means none.")
    input: Input | None = Field(None, description="The prompt; at most 256 KiB of UTF-8.")
    name: Strict | None = Field(
        None, description="Letters, digits and single hyphens, 1 to 32, unique among the owner's tasks."
    )
    display_name: Strict | None = Field(None, description="At most 64 characters.")


class TaskInput(BaseModel):
    """A new prompt, or something to say to the agent; at most 256 KiB of UTF-8."""

    input: Input | None = None


class TasksList(BaseModel):
    """Tasks, newest first; `count` is the number of those in this answer."""

    tasks: list[TaskDocument]
    count: int
    next: str | None = Field(
        None, description="With limit or after: what `after` is to be for the rest; null: no more."
    )


class LogEntryOut(BaseModel):
    """One entry of the conversation; ids count from 0."""

    id: int
    content: str
    type: Literal["input", "output"]
    time: datetime


class TaskLogs(BaseModel):
    """The conversation, oldest first; `snapshot`: as it was when the agent was last there."""

    logs: list[LogEntryOut]
    snapshot: bool | None = None
    snapshot_at: datetime | None = None


class ValidationOut(BaseModel):
    """A field or parameter that is wrong."""

    field: str
    detail: str


class ErrorOut(BaseModel):
    """Every error there is."""

    message: str
    detail: str | None = None
    validations: list[ValidationOut] | None = None
