"""The response body of the fleet's route, which is only documented."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field


class QueueOut(BaseModel):
    """A queue and its consumers."""

    name: str
    messages: int | None = Field(
        description="Messages that no consumer has yet. Null unless `sees_all`: tenants share queues."
    )
    consumers: int


class SharedQueueOut(QueueOut):
    """A queue of the workers."""

    waiting_since: datetime | None = Field(
        description="No message waits for longer: when this API process last found the queue empty. Null if none waits,"
        " or if the queue has not been empty since the process started."
    )


class RunnerOut(BaseModel):
    """A runner. It is connected while it consumes from its queue; ``queue`` is null if the broker does not say."""

    name: str
    listed: bool = Field(description="Whether the directory has it; other runners said hello.")
    agents: int = Field(description="Connected agents of tasks that the caller may see.")
    lost: int = Field(description="Lost tasks on it that the caller may see, of the last 1,000 that were lost.")
    last_heard_at: datetime | None = Field(description="Its hello, or a later heartbeat of one of those agents.")
    waiting_since: datetime | None = Field(
        description="Time of the oldest work request that it alone has not answered, of a task that the caller may see."
    )
    queue: QueueOut | None


class PoolOut(BaseModel):
    """A pool of runners; ``waiting`` tasks, none of them deleted, have a work request that no runner has answered."""

    name: str
    templates: list[str] = Field(description="Names of the caller's templates whose tasks it runs.")
    agents: int
    waiting: int
    waiting_since: datetime | None
    queue: QueueOut | None
    runners: list[RunnerOut]


class WaitingTask(BaseModel):
    """A task that waits for an answer to a work request."""

    id: UUID
    name: str
    display_name: str
    owner_name: str
    type: str = Field(description="The type of the work request, as `workspace.start`.")
    pool: str
    runner: str | None = Field(description="The runner that it is for; null: any of the pool.")
    since: datetime
    attempt: int
    deleted: bool


class WorkerOut(BaseModel):
    """A worker; ``drained_since`` is null while reports wait for it."""

    id: str
    started_at: datetime
    seen_at: datetime
    drained_since: datetime | None


class DeadLetterReasonOut(BaseModel):
    """How many messages workers dead-lettered in the last day for a reason."""

    reason: str
    meaning: str | None = Field(description="The reason in words; null for one that this release does not know.")
    last_day: int


class DeadLettersOut(BaseModel):
    """The dead letters: how many are in the queue now, and why workers dead-lettered messages in the last day."""

    messages: int | None = Field(description="Null if the broker does not say.")
    oldest_at: datetime | None = Field(
        description="When the oldest of them was dead-lettered, as of the last half minute; null if unknown."
    )
    reasons: list[DeadLetterReasonOut]


class RateOut(BaseModel):
    """What became of tasks in one hour; a task that fails, goes on and fails again counts each time."""

    hour: datetime
    created: int
    completed: int
    failed: int


class FleetOut(BaseModel):
    """The fleet as the caller may know it.

    Workers, shared queues and dead letters are null unless the caller is an admin of every active organization.
    """

    sees_all: bool
    now: datetime
    broker: bool = Field(description="False if the broker could not be asked: all queues are null.")
    pools: list[PoolOut]
    waiting: list[WaitingTask] = Field(description="The 100 tasks that wait longest.")
    workers: list[WorkerOut] | None
    queues: list[SharedQueueOut] | None
    dead_letters: DeadLettersOut | None
    rates: list[RateOut] = Field(description="The last 24 hours, the current one last.")
