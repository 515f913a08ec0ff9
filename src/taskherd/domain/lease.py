"""Leases: the latest heartbeat of an agent, stored separately from the task state because it changes so often.

While a task is *steady*, another heartbeat of the same build and agent changes only the time of the last heartbeat and
the seq of the connection facet. Such a heartbeat updates the lease, and the task is neither read nor locked. A task
that is not steady has no lease.
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
    """The latest heartbeat of a steady task.

    ``agent_id``, ``seq`` and ``observed_at`` are those of the connection facet, which holds the heartbeat with the
    greatest seq; ``last_heartbeat_at`` is when the last heartbeat was received.
    """

    task_id: UUID
    build_number: int
    agent_id: UUID | None
    seq: int
    observed_at: datetime | None
    last_heartbeat_at: datetime


def is_steady(state: TaskState) -> bool:
    """Return whether another heartbeat of the same build and agent, with any seq, leaves the document unchanged."""
    stamped = state.connection
    if stamped is None or not is_current(state, stamped) or not is_connected(state):
        return False
    lifecycle = state.lifecycle
    if (state.agent and is_current(state, state.agent)) or stamped.report.agent_id is None:
        return True
    if lifecycle is None or not is_current(state, lifecycle) or lifecycle.report.agent_id is None:
        return True
    return lifecycle.report.agent_id == stamped.report.agent_id or stamped.report.seq > lifecycle.report.seq


def lease_of(task_id: UUID, state: TaskState) -> Lease | None:
    """Return the lease of a task with this state, or None if it is not steady."""
    stamped = state.connection
    if stamped is None or not is_steady(state):
        return None
    report = stamped.report
    return Lease(
        task_id,
        state.build_number,
        report.agent_id,
        report.seq,
        report.observed_at,
        state.last_heartbeat[state.build_number],
    )


def merge_lease(state: TaskState, lease: Lease) -> TaskState:
    """Merge a lease into the task state, which was stored before the latest heartbeats."""
    report = AgentHeartbeat(
        task_id=lease.task_id,
        build_number=lease.build_number,
        seq=lease.seq,
        observed_at=lease.observed_at,
        agent_id=lease.agent_id,
    )
    last_heartbeat = {**state.last_heartbeat, lease.build_number: lease.last_heartbeat_at}
    return replace(state, connection=Stamped(report, lease.last_heartbeat_at), last_heartbeat=last_heartbeat)


@value(frozen=True, slots=True)
class HeartbeatSummary:
    """The heartbeats of one task in a batch, combined; a ``build_number`` of None stands for that of the lease."""

    task_id: UUID
    build_number: int | None
    agent_id: UUID | None
    seq: int
    observed_at: datetime | None
    last_heartbeat_at: datetime


def summarize_heartbeats(heartbeats: Mapping[UUID, Sequence[Report]], now: datetime) -> list[HeartbeatSummary]:
    """Summarize the heartbeats of each task, in id order; omit tasks whose heartbeats differ in build or agent."""
    summaries: list[HeartbeatSummary] = []
    for task_id in sorted(heartbeats):
        reports = heartbeats[task_id]
        greatest = max(reports, key=_seq) if len(reports) > 1 else reports[0]
        uniform = all(
            report.build_number == greatest.build_number and report.agent_id == greatest.agent_id for report in reports
        )
        if uniform:
            summary = HeartbeatSummary(
                task_id, greatest.build_number, greatest.agent_id, greatest.seq, greatest.observed_at, now
            )
            summaries.append(summary)
    return summaries


def _seq(report: Report) -> int:
    return report.seq


def with_lease(task: Task, lease: Lease) -> Task:
    """Merge a lease into the state of a task."""
    return replace(task, state=merge_lease(task.state, lease))
