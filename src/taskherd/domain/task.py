"""What taskherd remembers of a task: its facets, each the greatest report of its kind, and what the worker decided.

A facet is replaced whole, only by a report with a greater ``(build_number, seq)``. Everything a reader sees is
derived from this memory in ``view.py``; nothing derived is kept here.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    AppHealth,
    AppStatus,
    JobStatus,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

MAX_BUILD_NUMBER = 2**31 - 1
"""The greatest build number of the contract."""

MAX_TRACKED_BUILDS = 16
"""How many builds' last-heard and appearance are kept, the highest."""

MAX_REQUESTED_BUILDS = 256
"""How many of the worker's own builds are kept to judge conflicts by, the latest."""

Facet: TypeAlias = WorkspaceBuild | AgentLifecycle | AgentHeartbeat | AgentDisconnected | AppHealth | AppStatus
"""What a facet can hold; log entries and input outcomes live beside the memory."""

R_co = TypeVar("R_co", covariant=True, bound=Facet)


@value(frozen=True, slots=True)
class Stamped(Generic[R_co]):
    """A report as a facet holds it: with the instant at which we took it."""

    report: R_co
    received_at: datetime


@value(frozen=True, slots=True)
class Silence:
    """The sweeper's verdict that the agent of a build is silent; a heartbeat of that build ends it.

    ``lost``: it was heard once and is no longer. Otherwise it was never heard and takes too long to connect.
    """

    build_number: int
    lost: bool


@value(frozen=True, slots=True)
class TimedOut:
    """A build that counts as failed because nothing was heard of it; it holds while the build facet has this key."""

    build_number: int
    seq: int
    error: str


@value(frozen=True, slots=True)
class Inbox:
    """Where the task's inputs stand: how many wait, which one is out, when the last one was delivered."""

    queued: int = 0
    in_flight: UUID | None = None
    delivered_at: datetime | None = None


@value(frozen=True, slots=True)
class Deletion:
    """A delete that was accepted: how often its build was asked for, and when it is asked for again at the latest."""

    attempts: int = 0
    retry_at: datetime | None = None
    done: bool = False


@value(frozen=True, slots=True)
class TaskState:
    """All that is remembered of a task. The maps are keyed by build number."""

    build: Stamped[WorkspaceBuild]
    workspace: Stamped[WorkspaceBuild] | None = None
    runner: Stamped[WorkspaceBuild] | None = None
    agent: Stamped[WorkspaceBuild] | None = None
    app: Stamped[WorkspaceBuild] | None = None
    lifecycle: Stamped[AgentLifecycle] | None = None
    app_health: Stamped[AppHealth] | None = None
    app_status: Stamped[AppStatus] | None = None
    connection: Stamped[AgentHeartbeat | AgentDisconnected] | None = None
    last_heartbeat: Mapping[int, datetime] = field(default_factory=dict)
    first_seen: Mapping[int, datetime] = field(default_factory=dict)
    requested_builds: Mapping[int, Transition] = field(default_factory=dict)
    pending_build: int | None = None
    silence: Silence | None = None
    timed_out: TimedOut | None = None
    inbox: Inbox = field(default_factory=Inbox)
    deletion: Deletion | None = None

    @property
    def number(self) -> int:
        """The number of the task's latest build."""
        return self.build.report.build_number or 1

    @property
    def starting(self) -> bool:
        """Whether the latest build is a start, which is when an agent and an app can be there."""
        return self.build.report.transition is Transition.START

    @property
    def job(self) -> JobStatus:
        """The latest build's job status; one that was given up counts as failed."""
        return JobStatus.FAILED if self.build_timed_out else self.build.report.job_status

    @property
    def build_timed_out(self) -> bool:
        """Whether the latest build was given up and nothing was heard of it since."""
        mark = self.timed_out
        return mark is not None and (mark.build_number, mark.seq) == self.build.report.key

    @property
    def error(self) -> str | None:
        """The error of the latest build, the worker's own where the build was given up."""
        return self.timed_out.error if self.build_timed_out and self.timed_out else self.build.report.error

    @property
    def active(self) -> bool:
        """Whether a build is under way: pending, running or canceling, and not given up."""
        return self.job in ACTIVE_JOBS


ACTIVE_JOBS = frozenset({JobStatus.PENDING, JobStatus.RUNNING, JobStatus.CANCELING})


@value(frozen=True, slots=True)
class Task:
    """A task as it stands: who and what it is for, its version, and what is remembered of it."""

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


def request_build(
    task_id: UUID, state: TaskState | None, transition: Transition, now: datetime
) -> tuple[Stamped[WorkspaceBuild], int]:
    """The build facet that asking for the next build makes, and its number.

    Asking is the facet at seq -1, so that any report about the build counts for more.
    """
    number = 1 if state is None else state.number + 1
    report = WorkspaceBuild(
        task_id=task_id, build_number=number, seq=-1, transition=transition, job_status=JobStatus.PENDING
    )
    return Stamped(report, now), number
