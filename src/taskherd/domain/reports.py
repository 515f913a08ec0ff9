"""The reports about tasks: one immutable value for each report type of the contract.

Reports in this layer are well formed: texts are sanitized and truncated, ids are parsed, ``seq`` is set.
``build_number`` may still be None, which means the task's latest build at the time the report is folded.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from taskherd.domain.request_values import RequestState
from taskherd.domain.value import value

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from taskherd.domain.request_values import RequestKind, RequestOption, RequestTool


class Transition(StrEnum):
    """The purpose of a workspace build."""

    START = "start"
    STOP = "stop"
    DELETE = "delete"


class JobStatus(StrEnum):
    """Progress of a provisioner's job."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CANCELING = "canceling"
    CANCELED = "canceled"
    FAILED = "failed"


class Lifecycle(StrEnum):
    """Progress of an agent's start-up or shutdown."""

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
    """Result of the health check of a task's app; ``disabled`` means that the app has no check."""

    DISABLED = "disabled"
    INITIALIZING = "initializing"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class AgentState(StrEnum):
    """State that an agent reports about itself; ``failure`` is stored as reported and shown as ``failed``."""

    WORKING = "working"
    IDLE = "idle"
    COMPLETE = "complete"
    FAILED = "failed"
    FAILURE = "failure"


class InputOutcome(StrEnum):
    """Result of sending an input to an agent."""

    DELIVERED = "delivered"
    FAILED = "failed"


class InterruptOutcome(StrEnum):
    """Result of an interrupt of an agent."""

    STOPPED = "stopped"
    """What the agent did was ended, in the end by ending the agent."""
    ENDED = "ended"
    """The agent did nothing any more, or no longer ran."""
    FAILED = "failed"
    """The agent cannot be interrupted, or could not be ended."""


class ExitReason(StrEnum):
    """How an agent's process ended."""

    EXITED = "exited"
    """It exited by itself, with a status."""
    SIGNALLED = "signalled"
    """A signal ended it that its runner had not sent."""
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    """Its runner ended it because it exceeded its time limit."""
    LOST = "lost"
    """It no longer runs, and nothing recorded how it ended."""
    STOPPED = "stopped"
    """Its runner ended it because the workspace was to be stopped or deleted."""
    INTERRUPTED = "interrupted"
    """Its runner ended it because a user interrupted it."""
    NOT_STARTED = "not_started"
    """Its program could not be started."""


class LogSource(StrEnum):
    """Author of a log entry: ``input`` is the user, ``output`` is the agent."""

    INPUT = "input"
    OUTPUT = "output"


@value(frozen=True, slots=True)
class Workspace:
    """The workspace of a build, with the id and name that its provisioner gave it."""

    id: UUID
    name: str


@value(frozen=True, slots=True)
class App:
    """The task's app in the workspace; ``health`` is that at the end of the build, if the provisioner knows it."""

    id: UUID
    slug: str
    url: str | None = None
    health: Health | None = None


class LogKind(StrEnum):
    """What a log entry of an agent is, if its protocol says so."""

    MESSAGE = "message"
    THOUGHT = "thought"
    TOOL_CALL = "tool_call"
    PLAN = "plan"
    NOTICE = "notice"
    """A notice by the runner or the API."""


class LogStatus(StrEnum):
    """How far a tool call is."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


@value(frozen=True, slots=True)
class LogEntry:
    """One entry of the conversation; ``id`` is unique within its build, and ``data`` is JSON in its canonical form.

    ``content`` says everything in words for people; the other fields are for programs that show it in another way.
    """

    id: int
    type: LogSource
    content: str
    time: datetime
    kind: LogKind | None = None
    title: str | None = None
    status: LogStatus | None = None
    data: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class BaseReport:
    """Fields of every report. ``seq`` rises per task and facet, in [0, 2**53); the worker's build requests have -1."""

    type: ClassVar[str]
    task_id: UUID
    build_number: int | None
    seq: int
    observed_at: datetime | None = None
    agent_id: UUID | None = None

    @property
    def sort_key(self) -> tuple[int, int]:
        """Sort key of the report within its facet; requires the build number to be set."""
        return (self.build_number or 1, self.seq)


@value(frozen=True, slots=True, kw_only=True)
class WorkspaceBuild(BaseReport):
    """Progress of a workspace build, reported by its provisioner.

    ``restart`` asks for the next start after a stop that the provisioner made of its own accord, for ``reason``.
    """

    type: ClassVar[str] = "workspace.build"
    transition: Transition
    job_status: JobStatus
    workspace: Workspace | None = None
    app: App | None = None
    runner: str | None = None
    error: str | None = None
    restart: bool = False
    reason: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class AgentLifecycle(BaseReport):
    """Progress of the agent's start-up or shutdown."""

    type: ClassVar[str] = "agent.lifecycle"
    lifecycle: Lifecycle


@value(frozen=True, slots=True, kw_only=True)
class AgentHeartbeat(BaseReport):
    """A heartbeat, sent on behalf of the agent while its workspace is up."""

    type: ClassVar[str] = "agent.heartbeat"


@value(frozen=True, slots=True, kw_only=True)
class AgentDisconnected(BaseReport):
    """The agent disconnected deliberately."""

    type: ClassVar[str] = "agent.disconnected"


@value(frozen=True, slots=True, kw_only=True)
class AgentExit(BaseReport):
    """The end of the agent's process.

    ``status`` is its exit status and ``signal`` the number of the signal that ended it, if they are known; ``words``
    are the last words of its output.
    """

    type: ClassVar[str] = "agent.exit"
    why: ExitReason
    status: int | None = None
    signal: int | None = None
    words: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class AppHealth(BaseReport):
    """Result of the health check of the task's app."""

    type: ClassVar[str] = "app.health"
    health: Health


@value(frozen=True, slots=True, kw_only=True)
class AppStatus(BaseReport):
    """What the agent is doing, reported by itself, or by its runner, which says what it was ``guessed_from``."""

    type: ClassVar[str] = "app.status"
    state: AgentState
    message: str = ""
    uri: str = ""
    guessed_from: str = ""


@value(frozen=True, slots=True, kw_only=True)
class TaskLog(BaseReport):
    """Up to 1,000 entries of the conversation."""

    type: ClassVar[str] = "task.log"
    entries: tuple[LogEntry, ...]


@value(frozen=True, slots=True, kw_only=True)
class InputOutcomeReport(BaseReport):
    """The outcome of an input."""

    type: ClassVar[str] = "task.input"
    input_id: UUID
    outcome: InputOutcome
    detail: str | None = None


@value(frozen=True, slots=True)
class Cost:
    """An amount of money, with at most nine fractional digits; ``currency`` is a code of ISO 4217."""

    amount: Decimal
    currency: str


@value(frozen=True, slots=True, kw_only=True)
class AgentUsage(BaseReport):
    """What a model was used for and has cost since the build began, as far as the reporter knows: None says nothing.

    ``context_used`` and ``context_size`` are the tokens in the model's context now, and the most that it may hold.
    """

    type: ClassVar[str] = "agent.usage"
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost: Cost | None = None
    context_used: int | None = None
    context_size: int | None = None


@value(frozen=True, slots=True, kw_only=True)
class AgentInterrupted(BaseReport):
    """What became of an interrupt, by the record of who carried it out."""

    type: ClassVar[str] = "agent.interrupted"
    interrupt_id: UUID
    outcome: InterruptOutcome
    detail: str | None = None


@value(frozen=True, slots=True, kw_only=True)
class AgentRequest(BaseReport):
    """A request of an agent as a whole: what it asks people for, and what became of it.

    ``option_id`` and ``text`` are the answer as the agent got it. A question without options wants text; an approval
    always has options. With ``pull`` the agent fetches the answer itself, else its runner delivers it.
    """

    type: ClassVar[str] = "agent.request"
    request_id: UUID
    kind: RequestKind
    title: str
    detail: str = ""
    tool: RequestTool | None = None
    options: tuple[RequestOption, ...] = ()
    state: RequestState = RequestState.OPEN
    option_id: str | None = None
    text: str | None = None
    expires_at: datetime | None = None
    pull: bool = False


Report: TypeAlias = (
    WorkspaceBuild
    | AgentLifecycle
    | AgentHeartbeat
    | AgentDisconnected
    | AgentExit
    | AppHealth
    | AppStatus
    | TaskLog
    | InputOutcomeReport
    | AgentUsage
    | AgentInterrupted
    | AgentRequest
)


@lru_cache(maxsize=16)
def format_rfc3339(instant: datetime) -> str:
    """Format an aware UTC time as RFC 3339 with six fractional digits and ``Z``; cached, since batches repeat times."""
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_amount(amount: Decimal) -> str:
    """Return an amount of money in its one canonical form: ``0.0012``, without an exponent or final zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
