"""What agents send. As Go's decoder does, `null` stands for a field that is not there."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from taskherd.messages.fields import EntryId, Instant

Strict = Annotated[str, Field(strict=True)]


class AppStatusPatch(BaseModel):
    """What the agent is doing."""

    model_config = ConfigDict(json_schema_extra={"required": ["state"]})
    app_slug: Strict | None = None
    state: Strict | None = Field(
        None, json_schema_extra={"anyOf": [{"enum": ["working", "idle", "complete", "failure", "failed"]}]}
    )
    message: Strict | None = Field(None, description="Cut at 2,000 characters.")
    uri: Strict | None = None


class SnapshotMessage(BaseModel):
    """A message as AgentAPI tells it; without a time it is of now."""

    id: EntryId
    content: Strict
    role: Strict = Field(json_schema_extra={"enum": ["user", "agent"]})
    time: Instant | None = None


class LogSnapshot(BaseModel):
    """The end of a conversation, as AgentAPI's `GET /messages` gives it."""

    messages: list[SnapshotMessage]
