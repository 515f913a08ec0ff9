"""Work requests to runners: what each says, as bytes and back, and where they go."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from taskherd.messages.decoding import InvalidMessage, Unread, decode
from taskherd.messages.limits import MAX_BUILD


class Owner(BaseModel):
    """Whose task it is."""

    id: UUID
    username: str


class Preset(BaseModel):
    """The preset that the task was created with."""

    id: UUID
    name: str
    parameters: dict[str, Any]


class BaseWorkRequest(BaseModel):
    """What every request carries. ``(task_id, build_number, type)`` is to be done once, whatever is repeated."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    request_id: UUID = Field(description="The same at every repeat.")
    attempt: int = Field(ge=1)
    task_id: UUID
    task_name: str
    owner: Owner
    build_number: int = Field(ge=1, le=MAX_BUILD)
    build_id: UUID
    template_version_id: UUID
    run: dict[str, Any] = Field(description="What the template version says to the runner.")


class WorkspaceStart(BaseWorkRequest):
    """Start the workspace and the agent in it."""

    type: Literal["workspace.start"] = "workspace.start"
    prompt: str
    preset: Preset | None
    agent_token: str = Field(description="The agent's credential for this task and build, a secret.", repr=False)


class WorkspaceStop(BaseWorkRequest):
    """Stop the workspace and keep what is in it."""

    type: Literal["workspace.stop"] = "workspace.stop"


class WorkspaceDelete(BaseWorkRequest):
    """Take the workspace down for good."""

    type: Literal["workspace.delete"] = "workspace.delete"


class AgentInput(BaseWorkRequest):
    """Give an input to the agent; ``input_id`` is to be done once."""

    type: Literal["agent.input"] = "agent.input"
    input_id: UUID
    input: str


WorkRequest: TypeAlias = Annotated[
    WorkspaceStart | WorkspaceStop | WorkspaceDelete | AgentInput, Field(discriminator="type")
]

_WORK: TypeAdapter[WorkRequest] = TypeAdapter(WorkRequest)


def encode(request: WorkRequest) -> bytes:
    """Return a request as JSON."""
    return _WORK.dump_json(request)


def decode_request(body: bytes) -> WorkRequest | InvalidMessage:
    """Return the request of a body; whatever comes, nothing is raised."""
    try:
        return decode(_WORK, body, {})
    except Unread as why:
        return why.bad(body)


def routing_key(request_type: str, target: str) -> str:
    """The routing key of a request for a runner or pool of that name."""
    return f"{request_type}.{target}"


def build_id(task_id: UUID, build_number: int) -> UUID:
    """The id of a task's build: UUIDv5 of the number's digits in the task's namespace."""
    return uuid5(task_id, str(build_number))
