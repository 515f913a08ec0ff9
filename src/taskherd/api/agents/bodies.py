"""What agents send. As Go's decoder does, `null` stands for a field that is not there."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from taskherd.wire.fields import EntryId, Instant

Strict = Annotated[str, Field(strict=True)]


class AppStatusPatch(BaseModel):
    """What the agent is doing; `state` is working, idle, complete or failure."""

    app_slug: Strict | None = None
    state: Strict | None = None
    message: Strict | None = Field(None, description="Cut at 2,000 characters.")
    uri: Strict | None = None


class SnapshotMessage(BaseModel):
    """A message as AgentAPI tells it; without a time it is of now."""

    id: EntryId
    content: Strict
    role: Strict = Field(description="user or agent")
    time: Instant | None = None


class LogSnapshot(BaseModel):
    """The end of a conversation, as AgentAPI's `GET /messages` gives it."""

    messages: list[SnapshotMessage]
