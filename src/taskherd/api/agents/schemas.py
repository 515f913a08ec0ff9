"""Request bodies of agents. As in Go's decoder, null means that the field is absent."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from taskherd.messages.fields import EntryId, Instant
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
