"""Request and response bodies of the task routes. Requests are validated by these models, responses only documented.

As in Go's decoder, null in a request means that the field is absent.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from taskherd.api.agent_requests.schemas import WaitingRequests
from taskherd.messages.document import TaskDocument
from taskherd.messages.fields import Input

Strict = Annotated[str, Field(strict=True)]
Label = Annotated[str, Field(strict=True, max_length=256)]
"""A key or a value of a label, whose form the worker checks."""


class CreateTask(BaseModel):
    """A task to create. A missing name or display name is generated from the input."""

    template_version_id: UUID | None = Field(None, description="Template version to create the task from. Required.")
    template_version_preset_id: UUID | None = Field(
        None, description="Preset of the template version. The nil UUID means none."
    )
    input: Input | None = Field(None, description="Prompt: not blank, at most 256 KiB of UTF-8. Required.")
    name: Strict | None = Field(
        None, description="Name, unique among the owner's tasks: 1 to 32 letters, digits and single hyphens."
    )
    display_name: Strict | None = Field(None, description="Display name, at most 64 characters.")
    labels: Annotated[dict[Label, Label], Field(max_length=256)] | None = Field(
        None, description="Up to 16 labels: texts by key, both of up to 64 characters, by which lists select tasks."
    )


MAX_BATCH: Final = 1_000
"""Maximum number of tasks in one batch."""


class BatchTask(CreateTask):
    """A task of a batch."""

    owner: Strict | None = Field(None, description="Username or ID of the owner; by default the authenticated user.")
    idempotency_key: Strict | None = Field(
        None,
        description="A key of the caller's choice for this task, as a single create has it in its Idempotency-Key."
        " Default: the Idempotency-Key of the request, a slash, and the index of the task, from 0.",
    )


class CreateTasks(BaseModel):
    """Tasks to create. Each is judged by itself: what is wrong with one is in its result."""

    tasks: Annotated[
        list[Any],
        Field(min_length=1, max_length=MAX_BATCH),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": {
                    "anyOf": [
                        BatchTask.model_json_schema(),
                        {"description": "Anything else is answered by a 400 in its own result."},
                    ]
                },
            }
        ),
    ]


class TaskInputRequest(BaseModel):
    """A new prompt, or an input for the agent: 1 byte to 256 KiB of UTF-8."""

    model_config = ConfigDict(
        json_schema_extra={"required": ["input"], "properties": {"input": {"type": "string", "minLength": 1}}}
    )
    input: Input | None = None


class SendRequest(TaskInputRequest):
    """An input for the agent: 1 byte to 256 KiB of UTF-8."""

    interrupt: Annotated[bool, Field(strict=True)] | None = Field(
        None,
        description="`true`: interrupt an agent that works; then this input goes before all that were sent without it."
        " To an agent that does not work, this is an ordinary input.",
    )


class RequestedInterrupt(BaseModel):
    """The interrupt that the request opened, or joined because it was open already."""

    interrupt_id: UUID


class LabelsRequest(BaseModel):
    """Labels to set, by key, and with null to remove; the others stay."""

    labels: Annotated[dict[Label, Label | None], Field(min_length=1, max_length=256)]


class TaskOut(TaskDocument):
    """A task, with the fields that are added on request."""

    state_since: datetime | None = Field(
        None,
        description="Only if `include` asks for it, and in an overview: since when the task is in the state in which it"
        " shows. That follows from `status`, `current_state.state`, `requests_open`, `workspace_agent_health` and"
        " `agent_exit`; what else changes leaves it as it is. Null if it is not known.",
    )


class TasksList(BaseModel):
    """Tasks, newest or last changed first; ``count`` is the number of tasks in this response."""

    tasks: list[TaskOut]
    count: int
    next: str | None = Field(
        None, description="With `limit` or `after`: the value of `after` for the next page, or null on the last page."
    )


class Attention(BaseModel):
    """How many tasks need a person; a task may be in several of these.

    ``waiting``: the agent has an open request; ``idle``: it is healthy, has none, and waits for a message; ``failed``:
    the status is error or the state is failed; ``lost``: the agent is lost; ``stalled``: it works, but nothing came
    from it for long.
    """

    waiting: int
    idle: int
    failed: int
    lost: int
    stalled: int


class TaskTotals(BaseModel):
    """Numbers of tasks, each of which is in one of each ``by_…``; the state ``none``: ``current_state`` is null.

    ``working``: those whose agent is healthy and at work. A lost agent, whose last state may be ``working``, is not.
    """

    total: int
    working: int
    by_status: dict[str, int]
    by_state: dict[str, int]
    by_health: dict[str, int]
    attention: Attention


class TaskGroupOut(BaseModel):
    """The first tasks of a group, in its order."""

    q: str = Field(description="The search terms that select the group from the tasks of the overview.")
    sort: str = Field(description="Its order, as `sort` of the list of tasks.")
    tasks: list[TaskOut]
    next: str | None = Field(description="`after` for the next page of that list; null if there are no more tasks.")


class TaskOverview(BaseModel):
    """What needs a person, what runs, and what is complete; a task may be in several groups."""

    position: int = Field(
        description="A position of the change feed: every change that is not in the overview has a greater one."
    )
    totals: TaskTotals
    requests: WaitingRequests
    groups: dict[str, TaskGroupOut] = Field(
        description="By name: `idle`, `failed`, `not_running`, `lost`, `stalled`, `working`, `active`, `initializing`,"
        " `pending` and `complete`. In `idle`, those that have waited for longest are the first; `failed`,"
        " `not_running` and `lost` have what changed within a day, `active` the newest"
        " active tasks, but only while some agent has not reported a state. Groups that are empty by the totals are not"
        " read."
    )


class DeletedTask(BaseModel):
    """A task that was deleted and is not erased yet; its name may be in use again."""

    id: UUID
    name: str
    display_name: str
    owner_name: str
    template_name: str
    template_display_name: str
    created_at: datetime
    deleted_at: datetime
    deleted_by: str | None = Field(description="The username of who deleted it; null if that is not known any more.")


class DeletedTasks(BaseModel):
    """Deleted tasks, last deleted first."""

    tasks: list[DeletedTask]
    next: str | None = Field(
        description="`after` for the next page; null on the last one. A page before it may have few tasks or none."
    )


class LogEntryOut(BaseModel):
    """One log entry; ids count from 0. An entry that changes keeps its id; the last four fields may be absent."""

    place: list[int] = Field(
        description="Entries are in the order of these lists, compared number by number; an entry that came late has"
        " its place among earlier ones."
    )

    id: int
    content: str
    type: Literal["input", "output"]
    time: datetime
    kind: Literal["message", "thought", "tool_call", "plan", "notice"] | None = None
    title: str | None = None
    status: Literal["pending", "in_progress", "completed", "failed"] | None = None
    data: dict[str, Any] | None = None


class TaskLogs(BaseModel):
    """The log of a task, oldest entry first; ``snapshot``: no agent is running, so it is the last one received."""

    logs: list[LogEntryOut]
    snapshot: bool | None = None
    snapshot_at: datetime | None = None


class LogChanges(BaseModel):
    """An event of a stream of a log: entries that are new or were replaced, by id, in their order."""

    logs: list[LogEntryOut]
    revision: int
    truncated: bool = Field(
        description="In the first event: there are older entries. Later: some changes are missing; read the log again."
    )


class StateDuration(BaseModel):
    """How long the task was in a state, in seconds, up to now if it still is."""

    state: str
    seconds: float


class StateSpan(BaseModel):
    """A time that the task spent in one state; ``until`` is null if it still is in it."""

    state: str = Field(
        description="`starting`, `working`, `waiting` (a request is open), `idle`, `complete`, `failed`, `lost`,"
        " `paused` or `unknown`."
    )
    since: datetime
    until: datetime | None


class Durations(BaseModel):
    """How long a task was in each state, and the newest 200 spans, oldest first.

    Only the newest 10,000 changes count; ``since`` is the time of the first.
    """

    since: datetime
    now: datetime
    totals: list[StateDuration]
    spans: list[StateSpan]


class ValidationOut(BaseModel):
    """An invalid field or parameter."""

    field: str
    detail: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    message: str
    detail: str | None = None
    validations: list[ValidationOut] | None = None


class CreateResult(BaseModel):
    """The result of one create of a batch: the task, or the error that a create of its own would have had."""

    status: int = Field(
        description="HTTP status of the create: 201; 200 if an earlier request with this key created the task; or that"
        " of the error."
    )
    idempotency_key: str | None = Field(
        None, description="Repeating the create with this key creates nothing twice. Absent if it was not valid."
    )
    task: TaskDocument | None = None
    error: ErrorResponse | None = None
    retry_after: int | None = Field(None, description="With 429 and 503: seconds after which to repeat the create.")


class CreateResults(BaseModel):
    """The results of a batch, in the order of its tasks."""

    results: list[CreateResult]
    count: int
    created: int = Field(description="Number of results with a task.")
