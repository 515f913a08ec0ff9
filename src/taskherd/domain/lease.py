"""The lease of an agent: the one fast-moving part of a task's memory, kept apart while it moves nothing else.

While a task is *plain*, another heartbeat of the same build and agent only moves last-heard and the connection facet's
seq; so it may touch the lease alone, without the task being read or locked. A task that is not plain has no lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.reports import AgentHeartbeat
from taskherd.domain.task import Stamped
from taskherd.domain.value import replace, value
from taskherd.domain.view import is_connected, is_current

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task, TaskState


@value(frozen=True, slots=True)
class Lease:
    """The latest heartbeat of a plain task: what the connection facet holds, and when we took the last one."""

    task_id: UUID
    build_number: int
    agent_id: UUID | None
    seq: int
    observed_at: datetime | None
    heard_at: datetime


def is_steady(state: TaskState) -> bool:
    """Whether another heartbeat of this build and agent, with any other seq, changes nothing that a reader sees."""
    stamped = state.connection
    if (
        stamped is None
        or not is_current(state, stamped)
        or not isinstance(stamped.report, AgentHeartbeat)
        or not is_connected(state)
    ):
        return False
    lifecycle = state.lifecycle
    if (state.agent and is_current(state, state.agent)) or stamped.report.agent_id is None:
        return True
    if lifecycle is None or not is_current(state, lifecycle) or lifecycle.report.agent_id is None:
        return True
    return lifecycle.report.agent_id == stamped.report.agent_id or stamped.report.seq > lifecycle.report.seq


def lease_of(task_id: UUID, state: TaskState) -> Lease | None:
    """The lease of a task with this memory; None unless it is plain."""
    stamped = state.connection
    if stamped is None or not is_steady(state):
        return None
    report = stamped.report
    return Lease(
        task_id, state.number, report.agent_id, report.seq, report.observed_at, state.last_heartbeat[state.number]
    )


def merge_lease(state: TaskState, lease: Lease) -> TaskState:
    """The memory with what the lease has seen since the task was last written."""
    report = AgentHeartbeat(
        task_id=lease.task_id,
        build_number=lease.build_number,
        seq=lease.seq,
        observed_at=lease.observed_at,
        agent_id=lease.agent_id,
    )
    last_heartbeat = {**state.last_heartbeat, lease.build_number: lease.heard_at}
    return replace(state, connection=Stamped(report, lease.heard_at), last_heartbeat=last_heartbeat)


@value(frozen=True, slots=True)
class HeartbeatSummary:
    """The heartbeats of one task in a batch, as one; ``build_number`` None: of whatever build the lease is."""

    task_id: UUID
    build_number: int | None
    agent_id: UUID | None
    seq: int
    observed_at: datetime | None
    heard_at: datetime


def summarize_heartbeats(heartbeats: Mapping[UUID, Sequence[Report]], now: datetime) -> list[HeartbeatSummary]:
    """One beat for each task, in id order; a task whose heartbeats differ in build or agent is left out."""
    summaries: list[HeartbeatSummary] = []
    for task_id in sorted(heartbeats):
        reports = heartbeats[task_id]
        greatest = max(reports, key=_seq) if len(reports) > 1 else reports[0]
        same = all(
            report.build_number == greatest.build_number and report.agent_id == greatest.agent_id for report in reports
        )
        if same:
            summary = HeartbeatSummary(
                task_id, greatest.build_number, greatest.agent_id, greatest.seq, greatest.observed_at, now
            )
            summaries.append(summary)
    return summaries


def _seq(report: Report) -> int:
    return report.seq


def with_lease(task: Task, lease: Lease) -> Task:
    """The task with what its lease has seen since it was last written."""
    return replace(task, state=merge_lease(task.state, lease))
