"""Work requests: a pydantic model for each type, encoded by the worker and decoded by runners; their routing keys."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from taskherd.domain.task import MAX_BUILD_NUMBER
from taskherd.messages.decoding import InvalidMessage, Undecodable, decode

AGENT_INTERRUPT: Final = "agent.interrupt"
AGENT_ANSWER: Final = "agent.answer"


class WorkRequestOwner(BaseModel):
    """The owner of the task."""

    id: UUID
    username: str


class WorkRequestPreset(BaseModel):
    """The preset with which the task was created."""

    id: UUID
    name: str
    parameters: dict[str, Any]


class BaseWorkRequest(BaseModel):
    """Fields of every request. Requests are repeated: execute each ``(task_id, build_number, type)`` once."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    request_id: UUID = Field(description="The same for each repetition.")
    attempt: int = Field(ge=1)
    task_id: UUID
    task_name: str = Field(description="Empty for a runner of another pool, as is the name of the owner.")
    owner: WorkRequestOwner
    build_number: int = Field(ge=1, le=MAX_BUILD_NUMBER)
    build_id: UUID
    template_version_id: UUID
    run: dict[str, Any] = Field(
        description="Instructions of the template version for the runner; empty for a runner of another pool."
    )


class WorkspaceStart(BaseWorkRequest):
    """A request to start the workspace and the agent in it."""

    type: Literal["workspace.start"] = "workspace.start"
    prompt: str
    preset: WorkRequestPreset | None
    agent_token: str = Field(description="The agent's credential for this task and build; a secret.", repr=False)


class WorkspaceStop(BaseWorkRequest):
    """A request to stop the workspace and keep its contents."""

    type: Literal["workspace.stop"] = "workspace.stop"


class WorkspaceDelete(BaseWorkRequest):
    """A request to delete the workspace and its contents."""

    type: Literal["workspace.delete"] = "workspace.delete"


class AgentInput(BaseWorkRequest):
    """A request to deliver an input to the agent; deliver each ``input_id`` once."""

    type: Literal["agent.input"] = "agent.input"
    input_id: UUID
    input: str


class AgentInterrupt(BaseWorkRequest):
    """A request to end what the agent does, in the end by ending it; carry out each ``interrupt_id`` once."""

    type: Literal["agent.interrupt"] = "agent.interrupt"
    interrupt_id: UUID


class AgentAnswer(BaseWorkRequest):
    """A request to give the agent the answer to its request; its ``request_id`` is that of the agent's request.

    It is repeated until a report closes the agent's request. Deliver each answer at most once; where it is unknown
    whether the agent got it, report the request as withdrawn.
    """

    type: Literal["agent.answer"] = "agent.answer"
    request_id: UUID = Field(description="The id of the agent's request; the same for each repetition.")
    option_id: str | None = Field(None, description="The chosen option; null for a question without options.")
    text: str | None = Field(None, description="The answer to a question without options; else null.")


WorkRequest: TypeAlias = Annotated[
    WorkspaceStart | WorkspaceStop | WorkspaceDelete | AgentInput | AgentInterrupt | AgentAnswer,
    Field(discriminator="type"),
]

REQUEST_TYPES: Final[tuple[str, ...]] = tuple(
    model.model_fields["type"].default for model in get_args(get_args(WorkRequest)[0])
)
"""The types of all work requests."""

_WORK: TypeAdapter[WorkRequest] = TypeAdapter(WorkRequest)


def redact(request: WorkRequest) -> WorkRequest:
    """Return a request without the task's name, its owner's and the template's instructions, but with all ids."""
    owner = request.owner.model_copy(update={"username": ""})
    return request.model_copy(update={"run": {}, "task_name": "", "owner": owner})


def encode_request(request: WorkRequest) -> bytes:
    """Encode a request as JSON."""
    return request.model_dump_json().encode()


def decode_request(body: bytes) -> WorkRequest | InvalidMessage:
    """Decode a body. Invalid input is returned, not raised."""
    try:
        return decode(_WORK, body, {})
    except Undecodable as error:
        return error.to_invalid_message(body)


def routing_key(request_type: str, target: str) -> str:
    """Return the routing key of a request; ``target`` is the name of a runner or pool."""
    return f"{request_type}.{target}"


def build_id(task_id: UUID, build_number: int) -> UUID:
    """Return the id of a build: UUIDv5 of the number's digits in the task's namespace."""
    return uuid5(task_id, str(build_number))
