"""Responses of the routes that explain a task: its timeline, and the reasons for its status. They only document."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.domain.view import Status
from taskherd.messages.document import AgentExitOut, AgentHealthOut, CurrentStateOut, InterruptOut
from taskherd.messages.events import CauseOut


class FieldChange(BaseModel):
    """The old and new value of a field of the document; null: absent, or pruned."""

    before: Any = Field(None, alias="from")
    after: Any = Field(None, alias="to")


class TimelineCause(CauseOut):
    """The cause of a change, with the name of who sent the command; the id if the directory has no such user."""

    actor_name: str | None = None
    words: str = Field(description="Who did what, or what was reported or found, for people.")


class TimelineEvent(BaseModel):
    """One change of a task."""

    position: int = Field(description="Position of the change in the feed of all tasks.")
    version: int
    time: datetime
    changes: dict[str, FieldChange]
    cause: TimelineCause


class TimelineAction(BaseModel):
    """Something that a person did and that changes nothing in the document, so that it has no version."""

    type: Literal["task.send"]
    id: UUID
    time: datetime
    actor_id: UUID | None
    actor_name: str | None = Field(description="Username; the id if the directory has no such user.")
    input: str = Field(description="Truncated to 2,000 characters.")
    steers: bool = Field(description="It was sent with an interrupt, and goes before inputs that were not.")
    words: str = Field(description="Who did what, for people.")
    state: Literal["queued", "sent", "delivered", "failed"]
    sent_at: datetime | None
    decided_at: datetime | None = Field(description="When it was delivered or failed.")
    detail: str | None


class Timeline(BaseModel):
    """The changes of a task, oldest first, and the newest 100 actions, which are the same on every page."""

    events: list[TimelineEvent]
    actions: list[TimelineAction]


class ReportOut(BaseModel):
    """The report that determined a value; ``received_at``: when the worker received it."""

    type: str
    seq: int
    build_number: int
    received_at: datetime


class ExplainedStatus(BaseModel):
    """The status and the reason for it."""

    value: Status
    because: str = Field(description="Explanation for people: the reason, and what would change the value.")
    rule: str = Field(description="Rule that determined the value, for programs.")
    report: ReportOut | None


class ExplainedState(BaseModel):
    """The agent's state and the reason for it."""

    value: CurrentStateOut | None
    because: str
    rule: str
    report: ReportOut | None


class ExplainedHealth(BaseModel):
    """The agent's health and the reason for it."""

    value: AgentHealthOut | None
    because: str
    rule: str
    report: ReportOut | None


class ExplainedAgentExit(BaseModel):
    """How the agent ended, null while it has not, and the reason; the rule of a lost agent is ``agent.lost``."""

    value: AgentExitOut | None
    because: str
    rule: str
    report: ReportOut | None


class ExplainedStall(BaseModel):
    """Since when a working agent has sent nothing but heartbeats, null if it has not stalled, and the reason."""

    value: datetime | None
    because: str
    rule: str
    report: ReportOut | None


class ExplainedInterrupt(BaseModel):
    """The open interrupt, null without one, and what became of the last one; ``rule`` names its outcome."""

    value: InterruptOut | None
    because: str
    rule: str
    report: ReportOut | None


class ExplainedResume(BaseModel):
    """Whether a resume is accepted right now; if it is not, ``because`` is the message of the refusal."""

    value: bool
    because: str
    rule: str
    report: ReportOut | None


class ExplainedWaiting(BaseModel):
    """Whether the agent waits for a person, and what it asks; ``rule`` is ``request.`` open, answered or none."""

    value: bool
    because: str
    rule: str
    report: ReportOut | None


class LastCommand(BaseModel):
    """The latest command that was accepted; ``actor_name`` as in the timeline, null without an actor."""

    type: str
    time: datetime
    actor_id: UUID | None
    actor_name: str | None
    words: str = Field(description="Who did what, for people.")


class UndeliveredInput(BaseModel):
    """An input that is not delivered yet: queued, or sent to the runner without an outcome."""

    input_id: UUID
    state: Literal["queued", "sent"]
    input: str = Field(description="Truncated to 2,000 characters.")
    steers: bool
    created_at: datetime
    sent_at: datetime | None


class UnansweredRequest(BaseModel):
    """A work request that no runner has answered yet; ``attempt`` is the number of times it was sent."""

    request_id: UUID
    type: str
    build_number: int
    input_id: UUID | None
    interrupt_id: UUID | None
    agent_request_id: UUID | None = Field(description="Of an `agent.answer`: the request of the agent.")
    target_runner: str | None
    attempt: int
    created_at: datetime
    first_sent_at: datetime | None
    next_at: datetime


class TaskExplanation(BaseModel):
    """The reasons for a task's status, state, health and agent, and the first 100 open inputs and requests."""

    status: ExplainedStatus
    current_state: ExplainedState
    health: ExplainedHealth
    agent_exit: ExplainedAgentExit
    stalled_since: ExplainedStall
    interrupt: ExplainedInterrupt
    waiting: ExplainedWaiting
    resume: ExplainedResume
    restart_at: datetime | None = Field(
        description="When the worker starts the lost agent again by itself (`run.on_loss`); null if it does not."
    )
    pool: str = Field(description="The pool of its template version, one of whose runners runs its builds.")
    runner: str | None = Field(
        description="The runner that reported its last build, or one before; null if none has reported any."
    )
    last_command: LastCommand | None = Field(
        description="Null if it is not among the latest 500 changes, or if it was pruned."
    )
    inbox: list[UndeliveredInput]
    requests: list[UnansweredRequest]
