"""What happened to agents in a batch (started, ended, lost, stalled): counted and logged after the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from taskherd.domain.reports import Lifecycle
from taskherd.domain.value import value
from taskherd.domain.view import agent_exit_of, is_current, is_lost, stalled_since

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from taskherd.domain.reports import AgentExit
    from taskherd.domain.task import Task, TaskState
    from taskherd.domain.task_update import TaskUpdate
    from taskherd.observability.metrics import Metrics

log = structlog.get_logger(__name__)


@value(frozen=True, slots=True)
class AgentEvent:
    """Something that happened to the agent of a task's latest build; ``agent_exit`` is the report of its end."""

    task: Task
    event: str
    agent_exit: AgentExit | None = None


def agent_events(update: TaskUpdate) -> Iterator[AgentEvent]:
    """Yield what the update says about the agent that was not known before. Facets that did not change are the same."""
    task = update.task
    if task is None or task.deleted_at is not None:
        return
    before, after = update.before.state if update.before else None, task.state
    if _has_started(before, after):
        yield AgentEvent(task, "started")
    if before is None or after.agent_exit is not before.agent_exit:
        ended = agent_exit_of(after)
        if ended is not None and (before is None or agent_exit_of(before) != ended):
            yield AgentEvent(task, "ended", ended.report)
    if (before is None or after.silence is not before.silence) and agent_exit_of(after) is None and is_lost(after):
        yield AgentEvent(task, "lost")
    if after.stall is not None and (before is None or after.stall is not before.stall) and stalled_since(after):
        yield AgentEvent(task, "stalled")


def record(metrics: Metrics, events: Iterable[AgentEvent]) -> None:
    """Count and log these events, whose batch is committed."""
    for each in events:
        fields = {"task_id": str(each.task.id), "task": each.task.name, "build_number": each.task.state.build_number}
        ended = each.agent_exit
        if ended is None:
            metrics.agent_events.labels(each.event).inc()
            log.info(_MESSAGES[each.event], **fields)
        else:
            metrics.agent_exits.labels(ended.why.value).inc()
            log.info("agent ended", **fields, why=ended.why.value, status=ended.status, signal=ended.signal)


_MESSAGES = {"started": "agent started", "lost": "agent lost", "stalled": "agent stalled"}


def _has_started(before: TaskState | None, after: TaskState) -> bool:
    if not _is_ready(after) or (before is not None and after.lifecycle is before.lifecycle):
        return False
    return before is None or before.build_number != after.build_number or not _is_ready(before)


def _is_ready(state: TaskState) -> bool:
    lifecycle = state.lifecycle
    return lifecycle is not None and is_current(state, lifecycle) and lifecycle.report.lifecycle is Lifecycle.READY
