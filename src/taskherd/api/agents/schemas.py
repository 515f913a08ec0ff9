"""Request bodies of agents. As in Go's decoder, null means that the field is absent."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from taskherd.domain.request_values import RequestKind, RequestState
from taskherd.messages.agent_requests import AgentRequestFields
from taskherd.messages.fields import EntryId, Instant
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.messages.report_models import EntryIn
from taskherd.messages.usage import UsageFields

Strict = Annotated[str, Field(strict=True)]


class AppStatusPatch(BaseModel):
    """The current state of an agent."""

    model_config = ConfigDict(json_schema_extra={"required": ["state"]})
    app_slug: Strict | None = None
    state: Strict | None = Field(
        None, json_schema_extra={"anyOf": [{"enum": ["working", "idle", "complete", "failure", "failed"]}]}
    )
    message: Strict | None = Field(None, description="Shown with the state; truncated to 2,000 characters.")
    uri: Strict | None = None


class SnapshotMessage(BaseModel):
    """A message as AgentAPI returns it; without a time, the time of the request is used."""

    id: EntryId
    content: Strict
    role: Strict = Field(json_schema_extra={"enum": ["user", "agent"]})
    time: Instant | None = None


class LogSnapshot(BaseModel):
    """The end of a conversation, as AgentAPI's ``GET /messages`` returns it."""

    messages: list[SnapshotMessage]


class UsageReport(UsageFields):
    """What the agent used a model for, and what that cost: totals since its build began, so a repeat adds nothing."""


class LogReport(BaseModel):
    """Entries of the conversation; one with the id of an earlier one that the agent added in its build replaces it."""

    entries: Annotated[list[EntryIn], Field(max_length=MAX_ELEMENTS)]


class AgentRequestReport(AgentRequestFields):
    """What the agent asks people for, as a whole; with the state ``withdrawn``, that it no longer does."""

    request_id: UUID | None = Field(
        None, description="Chosen by the agent; a repetition with the same id asks nothing twice. Default: random."
    )
    state: Literal[RequestState.OPEN, RequestState.WITHDRAWN] | None = None  # type: ignore[assignment]


class ReportedRequest(BaseModel):
    """The request that was reported."""

    request_id: UUID


class OwnRequest(BaseModel):
    """A request of the agent: what became of it, and the answer once there is one."""

    request_id: UUID
    kind: RequestKind
    title: str
    state: RequestState
    option_id: str | None = Field(description="The chosen option; null without an answer, or if there are no options.")
    text: str | None = Field(
        description="The answer to a question without options; a text sent with an option is an input."
    )
