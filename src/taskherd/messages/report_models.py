"""Reports: a pydantic model for each type of the contract, from which ``domain.reports`` are made.

A null field counts as absent.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

from pydantic import AfterValidator, Field

from taskherd.domain import reports as domain
from taskherd.messages import texts
from taskherd.messages.agent_requests import AgentRequestFields
from taskherd.messages.fields import (
    BuildNumber,
    EntryId,
    ExitStatus,
    IncomingModel,
    Instant,
    Name,
    RunnerName,
    Seq,
    StrictText,
)
from taskherd.messages.limits import MAX_DATA_BYTES, MAX_ELEMENTS, MAX_SEQ
from taskherd.messages.texts import SanitizeCounts
from taskherd.messages.usage import UsageFields

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BaseReportIn(IncomingModel):
    """Fields of every report."""

    task_id: UUID
    build_number: BuildNumber | None = Field(None, description="Absent: the task's latest build.")
    seq: Seq | None = Field(
        None,
        description="Rises per task and facet. Absent: observed_at in microseconds, or the worker's time if earlier.",
    )
    observed_at: Instant | None = None
    agent_id: UUID | None = None

    def seq_at(self, now: datetime) -> int:
        """Return the seq; by default the earlier of ``observed_at`` and ``now``, in microseconds since the epoch."""
        if self.seq is not None:
            return self.seq
        time = now if self.observed_at is None or self.observed_at > now else self.observed_at
        elapsed = time - _EPOCH
        return min(max((elapsed.days * 86400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds, 0), MAX_SEQ)


class WorkspaceIn(IncomingModel):
    """The workspace of a build."""

    id: UUID
    name: Name


class AppIn(IncomingModel):
    """The task's app in the workspace."""

    id: UUID
    slug: Name
    url: StrictText | None = None
    health: domain.Health | None = None

    def to_domain(self, counts: SanitizeCounts) -> domain.App:
        """Return the app as a domain value; a cleared URL becomes None."""
        url = texts.sanitize_uri(self.url, counts) or None if self.url else None
        return domain.App(id=self.id, slug=texts.sanitize_name(self.slug, counts), url=url, health=self.health)


def _check_data(data: Any) -> Any:
    texts.canonical_data(data, {})
    return data


EntryData: TypeAlias = Annotated[dict[str, Any] | None, AfterValidator(_check_data)]


class EntryIn(IncomingModel):
    """One entry of the conversation; replaces an earlier entry with the same build number and id."""

    id: EntryId
    type: domain.LogSource
    content: StrictText
    time: Instant
    kind: domain.LogKind | None = None
    title: StrictText | None = Field(None, description="What a tool call does, in a line.")
    status: domain.LogStatus | None = Field(None, description="How far a tool call is.")
    data: EntryData = Field(
        None,
        description="The same for programs; of a tool call its `kind`, `locations` and `diff` {`path`, `old`, `new`}. "
        f"At most {MAX_DATA_BYTES} bytes of JSON.",
    )

    def to_domain(self, counts: SanitizeCounts) -> domain.LogEntry:
        """Return the entry as a domain value, with sanitized content."""
        return domain.LogEntry(
            id=self.id,
            type=self.type,
            content=texts.sanitize_content(self.content, counts),
            time=self.time,
            kind=self.kind,
            title=texts.sanitize_title(self.title or "", counts) or None,
            status=self.status,
            data=None if self.data is None else texts.canonical_data(self.data, counts),
        )


class WorkspaceBuildIn(BaseReportIn):
    """Progress of a workspace build, reported by its provisioner."""

    type: Literal["workspace.build"]
    transition: domain.Transition
    job_status: domain.JobStatus
    workspace: WorkspaceIn | None = None
    app: AppIn | None = None
    runner: RunnerName | None = Field(
        None,
        description="It gets the task's next requests, if it is of another pool only those that stop.",
    )
    error: StrictText | None = None
    restart: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="Of a stop that the provisioner made of its own accord: start the workspace again."
    )
    reason: StrictText | None = Field(None, description="Why the provisioner stopped the workspace.")

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.WorkspaceBuild:
        """Return the report as a domain value, with sanitized texts."""
        workspace = None
        if self.workspace is not None:
            workspace = domain.Workspace(id=self.workspace.id, name=texts.sanitize_name(self.workspace.name, counts))
        return domain.WorkspaceBuild(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            transition=self.transition,
            job_status=self.job_status,
            workspace=workspace,
            app=None if self.app is None else self.app.to_domain(counts),
            runner=self.runner,
            error=None if self.error is None else texts.sanitize_message(self.error, counts),
            restart=bool(self.restart),
            reason=None if self.reason is None else texts.sanitize_message(self.reason, counts),
        )


class AgentLifecycleIn(BaseReportIn):
    """Progress of the agent's start-up or shutdown."""

    type: Literal["agent.lifecycle"]
    lifecycle: domain.Lifecycle

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentLifecycle:  # noqa: ARG002 - the same signature for all reports
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentLifecycle(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            lifecycle=self.lifecycle,
        )


class AgentHeartbeatIn(BaseReportIn):
    """A heartbeat, sent on behalf of the agent while its workspace is up."""

    type: Literal["agent.heartbeat"]

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentHeartbeat:  # noqa: ARG002 - the same signature for all reports
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentHeartbeat(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
        )


class AgentDisconnectedIn(BaseReportIn):
    """The agent disconnected deliberately."""

    type: Literal["agent.disconnected"]

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentDisconnected:  # noqa: ARG002 - the same signature for all reports
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentDisconnected(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
        )


class AgentExitIn(BaseReportIn):
    """The end of the agent's process."""

    type: Literal["agent.exit"]
    why: domain.ExitReason
    status: ExitStatus | None = None
    signal: ExitStatus | None = None
    words: StrictText | None = Field(None, description="The last words of the agent's output.")

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentExit:
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentExit(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            why=self.why,
            status=self.status,
            signal=self.signal,
            words=None if self.words is None else texts.sanitize_message(self.words, counts),
        )


class AppHealthIn(BaseReportIn):
    """Result of the health check of the task's app."""

    type: Literal["app.health"]
    health: domain.Health

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AppHealth:  # noqa: ARG002 - the same signature for all reports
        """Return the report as a domain value, with sanitized texts."""
        return domain.AppHealth(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            health=self.health,
        )


class AppStatusIn(BaseReportIn):
    """What the agent is doing, reported by itself, or concluded by its runner."""

    type: Literal["app.status"]
    state: domain.AgentState
    message: StrictText | None = None
    uri: StrictText | None = None
    guessed_from: StrictText | None = Field(
        None, description="From what the runner concluded the state. Absent: the agent reported it itself."
    )

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AppStatus:
        """Return the report as a domain value, with sanitized texts."""
        return domain.AppStatus(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            state=self.state,
            message=texts.sanitize_message(self.message, counts) if self.message else "",
            uri=texts.sanitize_uri(self.uri, counts) if self.uri else "",
            guessed_from=texts.sanitize_message(self.guessed_from, counts) if self.guessed_from else "",
        )


class TaskLogIn(BaseReportIn):
    """Entries of the conversation."""

    type: Literal["task.log"]
    entries: Annotated[list[EntryIn], Field(max_length=MAX_ELEMENTS)]

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.TaskLog:
        """Return the report as a domain value, with sanitized texts."""
        return domain.TaskLog(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            entries=tuple([entry.to_domain(counts) for entry in self.entries]),
        )


class TaskInputIn(BaseReportIn):
    """The outcome of an input."""

    type: Literal["task.input"]
    input_id: UUID
    outcome: domain.InputOutcome
    detail: StrictText | None = None

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.InputOutcomeReport:
        """Return the report as a domain value, with sanitized texts."""
        return domain.InputOutcomeReport(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            input_id=self.input_id,
            outcome=self.outcome,
            detail=None if self.detail is None else texts.sanitize_message(self.detail, counts),
        )


class AgentUsageIn(UsageFields, BaseReportIn):
    """What a model was used for and has cost since the build began; a counter that is absent says nothing."""

    type: Literal["agent.usage"]

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentUsage:
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentUsage(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            **self.to_fields(counts),
        )


class AgentInterruptedIn(BaseReportIn):
    """What became of an interrupt."""

    type: Literal["agent.interrupted"]
    interrupt_id: UUID = Field(description="Of the work request; the first outcome stands.")
    outcome: domain.InterruptOutcome = Field(description="ended: the agent did nothing any more.")
    detail: StrictText | None = None

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentInterrupted:
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentInterrupted(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            interrupt_id=self.interrupt_id,
            outcome=self.outcome,
            detail=None if self.detail is None else texts.sanitize_message(self.detail, counts),
        )


class AgentRequestIn(AgentRequestFields, BaseReportIn):
    """A request of an agent as a whole, whenever it changes; a closed request stays closed."""

    type: Literal["agent.request"]
    request_id: UUID = Field(description="Chosen by the reporter; asking again takes a new one.")

    def to_domain(self, now: datetime, counts: SanitizeCounts) -> domain.AgentRequest:
        """Return the report as a domain value, with sanitized texts."""
        return domain.AgentRequest(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            request_id=self.request_id,
            **self.to_fields(counts),
        )
