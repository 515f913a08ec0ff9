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

BUILD_MOST = 2**31 - 1
"""The greatest build number of the contract."""

BUILDS_KEPT = 16
"""How many builds' last-heard and appearance are kept, the highest."""

ASKED_KEPT = 256
"""How many of the worker's own builds are kept to judge conflicts by, the latest."""

Facet: TypeAlias = WorkspaceBuild | AgentLifecycle | AgentHeartbeat | AgentDisconnected | AppHealth | AppStatus
"""What a facet can hold; log entries and input outcomes live beside the memory."""

R_co = TypeVar("R_co", covariant=True, bound=Facet)


@value(frozen=True, slots=True)
class Held(Generic[R_co]):
    """A report as a facet holds it: with the instant at which we took it."""

    report: R_co
    taken_at: datetime


@value(frozen=True, slots=True)
class Silence:
    """The sweeper's verdict that the agent of a build is silent; a heartbeat of that build ends it.

    ``lost``: it was heard once and is no longer. Otherwise it was never heard and takes too long to connect.
    """

    build_number: int
    lost: bool


@value(frozen=True, slots=True)
class GivenUp:
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
class Memory:
    """All that is remembered of a task. The maps are keyed by build number."""

    build: Held[WorkspaceBuild]
    workspace: Held[WorkspaceBuild] | None = None
    runner: Held[WorkspaceBuild] | None = None
    agent: Held[WorkspaceBuild] | None = None
    app: Held[WorkspaceBuild] | None = None
    lifecycle: Held[AgentLifecycle] | None = None
    app_health: Held[AppHealth] | None = None
    app_status: Held[AppStatus] | None = None
    connection: Held[AgentHeartbeat | AgentDisconnected] | None = None
    heard: Mapping[int, datetime] = field(default_factory=dict)
    appeared: Mapping[int, datetime] = field(default_factory=dict)
    asked: Mapping[int, Transition] = field(default_factory=dict)
    unanswered: int | None = None
    silence: Silence | None = None
    given_up: GivenUp | None = None
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
        return JobStatus.FAILED if self.gave_up else self.build.report.job_status

    @property
    def gave_up(self) -> bool:
        """Whether the latest build was given up and nothing was heard of it since."""
        mark = self.given_up
        return mark is not None and (mark.build_number, mark.seq) == self.build.report.key

    @property
    def error(self) -> str | None:
        """The error of the latest build, the worker's own where the build was given up."""
        return self.given_up.error if self.gave_up and self.given_up else self.build.report.error

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
    memory: Memory


def ask(
    task_id: UUID, memory: Memory | None, transition: Transition, now: datetime
) -> tuple[Held[WorkspaceBuild], int]:
    """The build facet that asking for the next build makes, and its number.

    Asking is the facet at seq -1, so that any report about the build counts for more.
    """
    number = 1 if memory is None else memory.number + 1
    report = WorkspaceBuild(
        task_id=task_id, build_number=number, seq=-1, transition=transition, job_status=JobStatus.PENDING
    )
    return Held(report, now), number
