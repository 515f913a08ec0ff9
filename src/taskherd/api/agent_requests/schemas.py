"""Bodies of the routes of agents' requests. Requests are validated by these models, responses only documented."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.directory_file.run import ToolKind
from taskherd.domain.request_values import OptionKind, RequestKind, RequestState
from taskherd.messages.fields import Input

Strict = Annotated[str, Field(strict=True)]


class AnswerBody(BaseModel):
    """An answer: with an option of the request, or if it has none with a text."""

    option_id: Strict | None = Field(None, description="The chosen option. Required if the request has options.")
    text: Input | None = Field(
        None,
        description="The answer to a question without options: not blank, at most 256 KiB of UTF-8. With an option, the"
        " agent gets it as an input that interrupts it.",
    )


class RequestOptionOut(BaseModel):
    """One of the answers to choose from."""

    id: str
    label: str
    kind: OptionKind


class RequestToolOut(BaseModel):
    """The tool that the agent wants to use."""

    kind: ToolKind = Field(description="What the agent says it is.")
    name: str | None = None
    input: Any = Field(None, description="JSON of at most 16 KiB.")


class RequestAnswerOut(BaseModel):
    """The answer that was accepted, or with which the template's policy answered."""

    option_id: str | None
    text: str | None = Field(description="The answer to a question; a text sent with an option is an input.")
    by: str | None = Field(description="Username of who answered; null: the template's policy.")
    by_id: UUID | None
    at: datetime
    delivered_at: datetime | None = Field(description="When the agent had it; null if it has not, or never got it.")


class AgentRequestOut(BaseModel):
    """A request of an agent, with what became of it."""

    id: UUID
    kind: RequestKind
    title: str
    detail: str
    tool: RequestToolOut | None
    options: list[RequestOptionOut] = Field(description="Empty: the question is answered with a text.")
    state: RequestState
    since: datetime = Field(description="When the worker took it.")
    expires_at: datetime | None
    build_number: int
    pull: bool = Field(description="The agent fetches the answer itself.")
    closed_at: datetime | None = Field(description="When a report closed it; null before, and if it ended by itself.")
    answer: RequestAnswerOut | None


class AgentRequestPage(BaseModel):
    """Requests of one task, open ones first, oldest first; then the others, newest first."""

    requests: list[AgentRequestOut]
    next: str | None = Field(description="The value of `after` for the next page, or null on the last page.")


class WaitingRequestOut(AgentRequestOut):
    """An open request, with its task."""

    task_id: UUID
    task_name: str
    task_display_name: str
    owner_id: UUID
    owner_name: str
    organization_id: UUID
    template_name: str
    template_display_name: str


class WaitingRequests(BaseModel):
    """Open requests of several tasks, oldest first."""

    requests: list[WaitingRequestOut]
    next: str | None = Field(description="The value of `after` for the next page, or null on the last page.")
