"""Reports.

One pydantic model for each type of the contract, bytes as values of ``domain.reports``, and values as bytes.

Unknown fields are ignored, since producers may be newer than we are; a null field counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NamedTuple, TypeAlias
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from taskherd.domain import reports as domain
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import Report, canonical_json
from taskherd.messages import json_array, texts
from taskherd.messages.decoding import TOO_DEEP, InvalidMessage, Unread, decode, may_hold_nan, parse, too_large
from taskherd.messages.fields import BuildNumber, EntryId, Instant, Name, RunnerName, Seq, Text
from taskherd.messages.limits import BODY_BYTES, ELEMENTS, MAX_SEQ
from taskherd.messages.texts import SanitizeCounts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPACE = b" \t\n\r"
_TICK = timedelta(microseconds=1)


class IncomingModel(BaseModel):
    """The base of every incoming model."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Envelope(IncomingModel):
    """What every report carries."""

    task_id: UUID
    build_number: BuildNumber | None = Field(None, description="Absent: the task's latest build when it is taken.")
    seq: Seq | None = Field(None, description="Rises per task and facet. Absent: observed_at, or our clock if earlier.")
    observed_at: Instant | None = None
    agent_id: UUID | None = None

    def seq_at(self, now: datetime) -> int:
        """The report's seq, by default the earlier of its own time and ``now`` in microseconds since the epoch."""
        if self.seq is not None:
            return self.seq
        moment = now if self.observed_at is None or self.observed_at > now else self.observed_at
        since = moment - _EPOCH
        return min(max((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds, 0), MAX_SEQ)


class WorkspaceIn(IncomingModel):
    """The workspace that a build made."""

    id: UUID
    name: Name


class AppIn(IncomingModel):
    """The task's app in the workspace."""

    id: UUID
    slug: Name
    url: Text | None = None
    health: domain.Health | None = None

    def to_domain(self, notes: SanitizeCounts) -> domain.App:
        """The app as the core knows it, its URL None where that was emptied."""
        url = texts.address(self.url, notes) or None if self.url else None
        return domain.App(id=self.id, slug=texts.sanitize(self.slug, notes), url=url, health=self.health)


class EntryIn(IncomingModel):
    """One entry of the conversation; an earlier one of this build number and id is replaced."""

    id: EntryId
    type: domain.LogSource
    content: Text
    time: Instant

    def to_domain(self, notes: SanitizeCounts) -> domain.LogEntry:
        """The entry as the core knows it."""
        return domain.LogEntry(id=self.id, type=self.type, content=texts.content(self.content, notes), time=self.time)


class WorkspaceBuildIn(Envelope):
    """The provisioner says where a workspace build is."""

    type: Literal["workspace.build"]
    transition: domain.Transition
    job_status: domain.JobStatus
    workspace: WorkspaceIn | None = None
    app: AppIn | None = None
    runner: RunnerName | None = None
    error: Text | None = None

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.WorkspaceBuild:
        """The report as the core knows it."""
        place = self.workspace
        return domain.WorkspaceBuild(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            transition=self.transition,
            job_status=self.job_status,
            workspace=None if place is None else domain.Workspace(id=place.id, name=texts.sanitize(place.name, notes)),
            app=None if self.app is None else self.app.to_domain(notes),
            runner=self.runner,
            error=None if self.error is None else texts.message(self.error, notes),
        )


class AgentLifecycleIn(Envelope):
    """The agent says where its start-up or shut-down is."""

    type: Literal["agent.lifecycle"]
    lifecycle: domain.Lifecycle

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.AgentLifecycle:  # noqa: ARG002 - as its siblings
        """The report as the core knows it."""
        return domain.AgentLifecycle(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            lifecycle=self.lifecycle,
        )


class AgentHeartbeatIn(Envelope):
    """The agent is alive."""

    type: Literal["agent.heartbeat"]

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.AgentHeartbeat:  # noqa: ARG002 - as its siblings
        """The report as the core knows it."""
        return domain.AgentHeartbeat(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
        )


class AgentDisconnectedIn(Envelope):
    """The agent said goodbye."""

    type: Literal["agent.disconnected"]

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.AgentDisconnected:  # noqa: ARG002 - as its siblings
        """The report as the core knows it."""
        return domain.AgentDisconnected(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
        )


class AppHealthIn(Envelope):
    """The task app's health check gave a verdict."""

    type: Literal["app.health"]
    health: domain.Health

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.AppHealth:  # noqa: ARG002 - as its siblings
        """The report as the core knows it."""
        return domain.AppHealth(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            health=self.health,
        )


class AppStatusIn(Envelope):
    """The agent says what it is doing."""

    type: Literal["app.status"]
    state: domain.AgentState
    message: Text | None = None
    uri: Text | None = None

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.AppStatus:
        """The report as the core knows it."""
        return domain.AppStatus(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            state=self.state,
            message=texts.message(self.message, notes) if self.message else "",
            uri=texts.address(self.uri, notes) if self.uri else "",
        )


class TaskLogIn(Envelope):
    """Entries of the conversation."""

    type: Literal["task.log"]
    entries: Annotated[list[EntryIn], Field(max_length=ELEMENTS)]

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.TaskLog:
        """The report as the core knows it."""
        return domain.TaskLog(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            entries=tuple([entry.to_domain(notes) for entry in self.entries]),
        )


class TaskInputIn(Envelope):
    """What became of an input."""

    type: Literal["task.input"]
    input_id: UUID
    outcome: domain.InputOutcome
    detail: Text | None = None

    def to_domain(self, now: datetime, notes: SanitizeCounts) -> domain.TaskInput:
        """The report as the core knows it."""
        return domain.TaskInput(
            task_id=self.task_id,
            build_number=self.build_number,
            seq=self.seq_at(now),
            observed_at=self.observed_at,
            agent_id=self.agent_id,
            input_id=self.input_id,
            outcome=self.outcome,
            detail=None if self.detail is None else texts.message(self.detail, notes),
        )


ReportIn: TypeAlias = Annotated[
    WorkspaceBuildIn
    | AgentLifecycleIn
    | AgentHeartbeatIn
    | AgentDisconnectedIn
    | AppHealthIn
    | AppStatusIn
    | TaskLogIn
    | TaskInputIn,
    Field(discriminator="type"),
]

_REPORT: TypeAdapter[ReportIn] = TypeAdapter(ReportIn)

_REPORTS: TypeAdapter[list[ReportIn]] = TypeAdapter(Annotated[list[ReportIn], Field(max_length=ELEMENTS)])


class Decoded(NamedTuple):
    """A report that can be folded, and what was done to its texts."""

    report: Report
    notes: SanitizeCounts


Element: TypeAlias = Decoded | InvalidMessage


def encode(report: Report, *, with_seq: bool = True) -> bytes:
    """Return a report as JSON, in its canonical form; without its seq the worker derives one from ``observed_at``."""
    text = canonical_json(report)
    if with_seq:
        return text.encode()
    fields = orjson.loads(text)
    del fields["seq"]
    return orjson.dumps(fields)


def join(reports: Iterable[bytes]) -> bytes:
    """Return the body of one message that carries these encoded reports."""
    return b"[" + b",".join(reports) + b"]"


def decode_stored(text: str, now: datetime) -> Report:
    """Return a report from its canonical text; ``now`` is the default of its seq. Raises ValueError for other texts."""
    return _REPORT.validate_json(text).to_domain(now, {})


def decode_reports(body: bytes, now: datetime) -> list[Element]:
    """Return the reports of a body, one or an array of them, each judged alone; whatever comes, nothing is raised.

    ``now`` (UTC) is the default of a seq, a microsecond more for each element, so that they keep their order.
    """
    if len(body) > BODY_BYTES:
        return [too_large(body)]
    if body.lstrip(_SPACE).startswith(b"["):
        return _array(body, now)
    return [_alone(None, body, now)]


def _alone(index: int | None, body: bytes, now: datetime) -> Element:
    """One report by itself."""
    notes: SanitizeCounts = {}
    try:
        return Decoded(decode(_REPORT, body, notes).to_domain(now, notes), notes)
    except Unread as why:
        return why.bad(body, index)


def _array(body: bytes, now: datetime) -> list[Element]:
    """An array in one go, in three quarters of the time; where anything is wrong with it, each element alone."""
    if not may_hold_nan(body):
        with suppress(ValidationError):
            return [
                _decoded(read, now if read.seq is not None else now + index * _TICK)
                for index, read in enumerate(_REPORTS.validate_json(body))
            ]
    pieces = json_array.split_json_array(body)
    if pieces is None:
        return [InvalidMessage(None, DeadLetterReason.NOT_JSON, _parser_says(body), body)]
    if len(pieces) > ELEMENTS:
        return [
            InvalidMessage(
                None, DeadLetterReason.TOO_MANY, f"{len(pieces)} reports, at most {ELEMENTS} are read at once", body
            )
        ]
    found: list[Element] = []
    for index, piece in enumerate(pieces):
        element = _alone(index, piece, now + index * _TICK)
        if (
            isinstance(element, InvalidMessage)
            and element.reason is DeadLetterReason.NOT_JSON
            and element.detail != TOO_DEEP
        ):
            return [InvalidMessage(None, DeadLetterReason.NOT_JSON, f"element {index}: {element.detail}", body)]
        found.append(element)
    return found


def _decoded(read: ReportIn, now: datetime) -> Decoded:
    notes: SanitizeCounts = {}
    return Decoded(read.to_domain(now, notes), notes)


def _parser_says(body: bytes) -> str:
    try:
        parse(body, {})
    except Unread as why:
        return why.detail
    return "not an array"
