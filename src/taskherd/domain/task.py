"""The task state: the greatest report of each facet, and the worker's own decisions about the task.

A facet is one aspect of a task that is reported independently. Only a report with a greater ``(build_number, seq)``
replaces it, and replaces it as a whole. Nothing that can be derived from the task state is stored in it: what users see
is derived in ``view.py``.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AppHealth,
    AppStatus,
    InterruptOutcome,
    JobStatus,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.usage import TaskUsage
from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.request_values import RequestKind

MAX_BUILD_NUMBER = 2**31 - 1
"""Maximum build number in the message contract."""

MAX_TRACKED_BUILDS = 16
"""``last_heartbeat`` and ``first_seen`` are kept for this many of the highest build numbers."""

MAX_BUILDS_AHEAD = 1_000
"""Maximum distance of a report's build number above the highest one that the worker requested."""

MAX_REQUESTED_BUILDS = 256
"""Maximum number of requested builds, the latest ones, whose transition is kept to detect conflicting reports."""

Facet: TypeAlias = (
    WorkspaceBuild | AgentLifecycle | AgentHeartbeat | AgentDisconnected | AgentExit | AppHealth | AppStatus
)
"""The reports that are folded into a facet; log entries and input outcomes are not part of the task state."""

R_co = TypeVar("R_co", covariant=True, bound=Facet)


@value(frozen=True, slots=True)
class Stamped(Generic[R_co]):
    """A report in a facet, with the time at which it was received."""

    report: R_co
    received_at: datetime


@value(frozen=True, slots=True)
class Silence:
    """The decision that the agent of a build is silent; a heartbeat of that build ends it.

    ``lost`` is True if the agent had sent heartbeats before, and False if it has never connected.
    """

    build_number: int
    lost: bool


@value(frozen=True, slots=True)
class LastLog:
    """The latest build with log entries, usage or requests, and when the latest of them was received.

    The time is kept to ``recovery.LOG_RESOLUTION``.
    """

    build_number: int
    at: datetime


@value(frozen=True, slots=True)
class Stall:
    """The decision that the agent of a build is stalled: it is working, and has sent only heartbeats since ``since``.

    The next report about it, other than a heartbeat, ends it.
    """

    build_number: int
    since: datetime


@value(frozen=True, slots=True)
class LossRestarts:
    """The restarts after the loss of an agent: how many were requested, and when the next one is to be requested.

    ``retry_at`` is None unless the agent of the latest build is lost.
    """

    count: int = 0
    retry_at: datetime | None = None


@value(frozen=True, slots=True)
class TimedOut:
    """The decision that a build counts as failed because reports are missing; valid while its facet has this key."""

    build_number: int
    seq: int
    error: str


@value(frozen=True, slots=True)
class Inbox:
    """The state of the inbox: how many user inputs are queued, which is in flight, and when the last was delivered."""

    queued: int = 0
    in_flight: UUID | None = None
    delivered_at: datetime | None = None


@value(frozen=True, slots=True)
class OpenInterrupt:
    """An interrupt of the agent of a build, which is the id of the command, and since when it is open."""

    id: UUID
    build_number: int
    since: datetime


@value(frozen=True, slots=True)
class EndedInterrupt:
    """What became of an interrupt, and when the worker learned it.

    ``unreported``: the worker concluded it without a report. ``overruled``: the key of the app status that no longer
    counts, since the agent has stopped what that says.
    """

    id: UUID
    outcome: InterruptOutcome
    at: datetime
    detail: str | None = None
    unreported: bool = False
    overruled: tuple[int, int] | None = None


@value(frozen=True, slots=True)
class OpenAgentRequest:
    """A request of an agent whose greatest report, with this build number and ``seq``, is open.

    ``since`` is when it was first reported. ``wants_text``: it is a question without options. ``answered``: an answer
    was accepted, and is on its way to the agent.
    """

    id: UUID
    build_number: int
    seq: int
    kind: RequestKind
    title: str
    since: datetime
    wants_text: bool = False
    answered: bool = False


@value(frozen=True, slots=True)
class Deletion:
    """An accepted delete: the number of times its build was requested, and when it is to be requested again."""

    attempts: int = 0
    retry_at: datetime | None = None
    done: bool = False


@value(frozen=True, slots=True)
class TaskState:
    """Everything the worker knows about a task. The mappings are keyed by build number.

    Attributes:
        build: the latest build; the other facets may belong to earlier builds, see ``view.is_current``.
        workspace: the latest build report that names a workspace; likewise ``runner``, ``agent`` and ``app``.
        last_heartbeat: when the last heartbeat was received, whatever its seq.
        first_seen: when the first report by or about the agent was received.
        requested_builds: the transitions of the builds that the worker requested itself.
        unanswered_build: the number of the requested build that no report has answered yet.
        labels: the labels that people gave the task, by key.
        agent_requests: the open requests of the agents of the latest build and later ones, by id.
        state_since: since when the task is in the state in which it shows, see ``messages.shown_state``; None if the
            release that saved it did not keep that.
    """

    build: Stamped[WorkspaceBuild]
    workspace: Stamped[WorkspaceBuild] | None = None
    runner: Stamped[WorkspaceBuild] | None = None
    agent: Stamped[WorkspaceBuild] | None = None
    app: Stamped[WorkspaceBuild] | None = None
    lifecycle: Stamped[AgentLifecycle] | None = None
    app_health: Stamped[AppHealth] | None = None
    app_status: Stamped[AppStatus] | None = None
    connection: Stamped[AgentHeartbeat | AgentDisconnected] | None = None
    agent_exit: Stamped[AgentExit] | None = None
    last_heartbeat: Mapping[int, datetime] = field(default_factory=dict)
    first_seen: Mapping[int, datetime] = field(default_factory=dict)
    requested_builds: Mapping[int, Transition] = field(default_factory=dict)
    unanswered_build: int | None = None
    silence: Silence | None = None
    timed_out: TimedOut | None = None
    last_log: LastLog | None = None
    stall: Stall | None = None
    loss_restarts: LossRestarts = field(default_factory=LossRestarts)
    inbox: Inbox = field(default_factory=Inbox)
    deletion: Deletion | None = None
    usage: TaskUsage | None = None
    interrupt: OpenInterrupt | None = None
    last_interrupt: EndedInterrupt | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_requests: Mapping[UUID, OpenAgentRequest] = field(default_factory=dict)
    state_since: datetime | None = None

    @property
    def build_number(self) -> int:
        """Number of the latest build."""
        return self.build.report.build_number or 1

    @property
    def is_start(self) -> bool:
        """True if the latest build is a start; only then can there be an agent and an app."""
        return self.build.report.transition is Transition.START

    @property
    def job_status(self) -> JobStatus:
        """Job status of the latest build; ``failed`` if the build timed out."""
        return JobStatus.FAILED if self.build_timed_out else self.build.report.job_status

    @property
    def build_timed_out(self) -> bool:
        """True if the latest build timed out and no report has replaced its facet since."""
        timeout = self.timed_out
        return timeout is not None and (timeout.build_number, timeout.seq) == self.build.report.sort_key

    @property
    def build_error(self) -> str | None:
        """Error of the latest build; the worker's own text if the build timed out."""
        return self.timed_out.error if self.build_timed_out and self.timed_out else self.build.report.error

    @property
    def has_active_build(self) -> bool:
        """True while the latest build is pending, running or canceling, and has not timed out."""
        return self.job_status in ACTIVE_JOBS


ACTIVE_JOBS = frozenset({JobStatus.PENDING, JobStatus.RUNNING, JobStatus.CANCELING})


@value(frozen=True, slots=True)
class Task:
    """A task: its owner, template, names and prompt, its version, and its task state.

    A task with an ``erased_at`` is a tombstone without its contents, see ``erasure``.
    """

    id: UUID
    owner_id: UUID
    organization_id: UUID
    template_id: UUID
    template_version_id: UUID
    preset_id: UUID | None
    name: str
    display_name: str
    prompt: str
    prompt_version: int
    created_at: datetime
    updated_at: datetime
    version: int
    deleted_at: datetime | None
    state: TaskState
    erased_at: datetime | None = None


def request_build(
    task_id: UUID, state: TaskState | None, transition: Transition, now: datetime
) -> tuple[Stamped[WorkspaceBuild], int]:
    """Return the build facet for a new build request, and its build number.

    The facet has seq -1, so any report about the build supersedes it.
    """
    number = 1 if state is None else state.build_number + 1
    report = WorkspaceBuild(
        task_id=task_id, build_number=number, seq=-1, transition=transition, job_status=JobStatus.PENDING
    )
    return Stamped(report, now), number
