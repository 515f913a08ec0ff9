"""What the task routes take and give, as models: the requests are validated by them, the OpenAPI document shows both.

As Go's decoder does, `null` stands for a field that is not there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from taskherd.domain.view import Status
from taskherd.messages.document import AgentHealthOut, CurrentStateOut, TaskDocument
from taskherd.messages.events import CauseOut
from taskherd.messages.fields import Input

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
    """A new prompt, or something to say to the agent; at most 256 KiB of UTF-8. An empty one is refused in words."""

    model_config = ConfigDict(
        json_schema_extra={"required": ["input"], "properties": {"input": {"type": "string", "minLength": 1}}}
    )
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


class FieldChange(BaseModel):
    """What a field of the document was and what it became; null: absent, or no longer known."""

    before: Any = Field(None, alias="from")
    after: Any = Field(None, alias="to")


class TimelineEvent(BaseModel):
    """One change of a task."""

    position: int = Field(description="Its place in the history of all tasks.")
    version: int
    time: datetime
    changes: dict[str, FieldChange]
    cause: CauseOut


class Timeline(BaseModel):
    """A task's changes, oldest first."""

    events: list[TimelineEvent]


class ReportOut(BaseModel):
    """The report that decided; `received_at`: when it was taken."""

    type: str
    seq: int
    build_number: int
    received_at: datetime


class BecauseStatus(BaseModel):
    """The status and why."""

    value: Status
    because: str = Field(description="For people: why, and what would change it.")
    rule: str = Field(description="For programs: which rule decided.")
    report: ReportOut | None


class BecauseState(BaseModel):
    """The agent's state and why."""

    value: CurrentStateOut | None
    because: str
    rule: str
    report: ReportOut | None


class BecauseHealth(BaseModel):
    """The agent's health and why."""

    value: AgentHealthOut | None
    because: str
    rule: str
    report: ReportOut | None


class InputOpen(BaseModel):
    """An input that was not delivered yet: queued, or sent and not answered for."""

    input_id: UUID
    state: Literal["queued", "sent"]
    input: str = Field(description="Cut at 2,000 characters.")
    created_at: datetime
    sent_at: datetime | None


class RequestOpen(BaseModel):
    """A request that no runner has answered yet; `attempt` counts how often it was sent."""

    request_id: UUID
    type: str
    build_number: int
    input_id: UUID | None
    target_runner: str | None
    attempt: int
    created_at: datetime
    first_sent_at: datetime | None
    next_at: datetime


class Explained(BaseModel):
    """Why a task is as it is; of inbox and requests the first hundred that are open."""

    status: BecauseStatus
    current_state: BecauseState
    health: BecauseHealth
    inbox: list[InputOpen]
    requests: list[RequestOpen]
