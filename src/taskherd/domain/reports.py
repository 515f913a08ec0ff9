"""What can be reported about a task: one frozen value for each report type of the contract.

A report that reaches this layer is well formed: texts are cleaned and cut, identifiers parsed, ``seq`` known.
``build_number`` may still be None, which stands for "the task's latest build when the report is taken".
"""

from __future__ import annotations

import json
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from taskherd.domain.value import value

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class Transition(StrEnum):
    """What a workspace build is to do."""

    START = "start"
    STOP = "stop"
    DELETE = "delete"


class JobStatus(StrEnum):
    """How far a provisioner's job has come."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CANCELING = "canceling"
    CANCELED = "canceled"
    FAILED = "failed"


class Lifecycle(StrEnum):
    """Where an agent's start-up or shut-down is."""

    CREATED = "created"
    STARTING = "starting"
    START_TIMEOUT = "start_timeout"
    START_ERROR = "start_error"
    READY = "ready"
    SHUTTING_DOWN = "shutting_down"
    SHUTDOWN_TIMEOUT = "shutdown_timeout"
    SHUTDOWN_ERROR = "shutdown_error"
    OFF = "off"


class Health(StrEnum):
    """The verdict of a task app's health check; ``disabled`` means that there is no check."""

    DISABLED = "disabled"
    INITIALIZING = "initializing"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class AgentState(StrEnum):
    """What an agent says it is doing. ``failure`` is kept as it was said and shown as ``failed``."""

    WORKING = "working"
    IDLE = "idle"
    COMPLETE = "complete"
    FAILED = "failed"
    FAILURE = "failure"


class InputOutcome(StrEnum):
    """What became of an input that was sent to an agent."""

    DELIVERED = "delivered"
    FAILED = "failed"


class LogSource(StrEnum):
    """Who wrote a log entry: the person (input) or the agent (output)."""

    INPUT = "input"
    OUTPUT = "output"


@value(frozen=True, slots=True)
class Workspace:
    """The workspace that a build made, as its provisioner names it."""

    id: UUID
    name: str


@value(frozen=True, slots=True)
class App:
    """The task's app in the workspace; ``health`` is its health when the build ended, if the build knew it."""

    id: UUID
    slug: str
    url: str | None = None
    health: Health | None = None


@value(frozen=True, slots=True)
class LogEntry:
    """One line of the conversation; ``id`` counts within its build."""

    id: int
    type: LogSource
    content: str
    time: datetime


@value(frozen=True, slots=True, kw_only=True)
class BaseReport:
    """What every report carries. ``seq`` rises per task and facet, in [0, 2**53); -1 is the worker's own asking."""

    type: ClassVar[str]
    task_id: UUID
    build_number: int | None
    seq: int
    observed_at: datetime | None = None
    agent_id: UUID | None = None

    @property
    def key(self) -> tuple[int, int]:
        """The place of this report in its facet's order; the build number must be known by now."""
        return (self.build_number or 1, self.seq)


@value(frozen=True, slots=True, kw_only=True)
class WorkspaceBuild(BaseReport):
    """The provisioner says where a workspace build is."""

    type: ClassVar[str] = "workspace.build"
    transition: Transition
    job_status: JobStatus
    workspace: Workspace | None = None
    app: App | None = None
    runner: str | None = None
    error: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class AgentLifecycle(BaseReport):
    """The agent says where its start-up or shut-down is."""

    type: ClassVar[str] = "agent.lifecycle"
    lifecycle: Lifecycle


@value(frozen=True, slots=True, kw_only=True)
class AgentHeartbeat(BaseReport):
    """The agent is alive."""

    type: ClassVar[str] = "agent.heartbeat"


@value(frozen=True, slots=True, kw_only=True)
class AgentDisconnected(BaseReport):
    """The agent said goodbye."""

    type: ClassVar[str] = "agent.disconnected"


@value(frozen=True, slots=True, kw_only=True)
class AppHealth(BaseReport):
    """The task app's health check gave a verdict."""

    type: ClassVar[str] = "app.health"
    health: Health


@value(frozen=True, slots=True, kw_only=True)
class AppStatus(BaseReport):
    """The agent says what it is doing."""

    type: ClassVar[str] = "app.status"
    state: AgentState
    message: str = ""
    uri: str = ""


@value(frozen=True, slots=True, kw_only=True)
class TaskLog(BaseReport):
    """Entries of the conversation, at most 1,000."""

    type: ClassVar[str] = "task.log"
    entries: tuple[LogEntry, ...]


@value(frozen=True, slots=True, kw_only=True)
class TaskInput(BaseReport):
    """What became of an input."""

    type: ClassVar[str] = "task.input"
    input_id: UUID
    outcome: InputOutcome
    detail: str | None = None


Report: TypeAlias = (
    WorkspaceBuild | AgentLifecycle | AgentHeartbeat | AgentDisconnected | AppHealth | AppStatus | TaskLog | TaskInput
)


@lru_cache(maxsize=16)
def rfc3339(instant: datetime) -> str:
    """An aware UTC instant as RFC 3339 with six fractional digits and ``Z``; kept, as batches repeat it."""
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def canonical_json(report: Report) -> str:
    """The canonical JSON of a report: keys sorted at every level, known fields only, absent ones left out.

    It decides which of two clashing reports with one ``(build_number, seq)`` is kept, so it depends on nothing but
    what the report says.
    """
    return json.dumps(_plain(report), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(report: Report) -> dict[str, object]:
    said: dict[str, object] = {
        "type": report.type,
        "task_id": str(report.task_id),
        "build_number": report.build_number,
        "seq": report.seq,
    }
    if report.observed_at is not None:
        said["observed_at"] = rfc3339(report.observed_at)
    if report.agent_id is not None:
        said["agent_id"] = str(report.agent_id)
    said.update((name, value) for name, value in _own_fields(report).items() if value is not None)
    return said


def _own_fields(report: Report) -> dict[str, object]:  # noqa: PLR0911 - one return for each report type
    match report:
        case WorkspaceBuild():
            return {
                "transition": report.transition,
                "job_status": report.job_status,
                "workspace": _workspace(report.workspace),
                "app": _app(report.app),
                "runner": report.runner,
                "error": report.error,
            }
        case AgentLifecycle():
            return {"lifecycle": report.lifecycle}
        case AgentHeartbeat() | AgentDisconnected():
            return {}
        case AppHealth():
            return {"health": report.health}
        case AppStatus():
            return {"state": report.state, "message": report.message or None, "uri": report.uri or None}
        case TaskLog():
            return {"entries": [_entry(entry) for entry in report.entries]}
        case TaskInput():
            return {"input_id": str(report.input_id), "outcome": report.outcome, "detail": report.detail}


def _workspace(workspace: Workspace | None) -> dict[str, str] | None:
    return None if workspace is None else {"id": str(workspace.id), "name": workspace.name}


def _app(app: App | None) -> dict[str, str] | None:
    if app is None:
        return None
    said = {"id": str(app.id), "slug": app.slug, "url": app.url, "health": app.health}
    return {name: value for name, value in said.items() if value is not None}


def _entry(entry: LogEntry) -> dict[str, object]:
    return {"id": entry.id, "type": entry.type, "content": entry.content, "time": rfc3339(entry.time)}
