"""What happened to agents in a batch (started, ended, lost, stalled, interrupted): counted and logged after commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from taskherd.domain.reports import Lifecycle
from taskherd.domain.value import value
from taskherd.domain.view import agent_exit_of, is_current, is_lost, stalled_since

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from taskherd.domain.directory import TemplatePool
    from taskherd.domain.reports import AgentExit
    from taskherd.domain.task import EndedInterrupt, Task, TaskState
    from taskherd.domain.updates import TaskUpdate
    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

COUNTED: Final = {"started": "agent started", "lost": "agent lost", "stalled": "agent stalled"}
"""The events of ``taskherd_agent_events_total``, with the message in the log; an end is counted by its reason."""


@value(frozen=True, slots=True)
class AgentEvent:
    """Something that happened to the agent of a task's latest build.

    ``agent_exit`` is the report of its end, ``interrupt`` what became of an interrupt.
    """

    task: Task
    template_pool: TemplatePool
    event: str
    agent_exit: AgentExit | None = None
    interrupt: EndedInterrupt | None = None


def agent_events(update: TaskUpdate, template_pool: TemplatePool) -> Iterator[AgentEvent]:
    """Yield what the update says about the agent that was not known before. Facets that did not change are the same."""
    task = update.task
    if task is None or task.deleted_at is not None:
        return
    before, after = update.before.state if update.before else None, task.state
    if _has_started(before, after):
        yield AgentEvent(task, template_pool, "started")
    if before is None or after.agent_exit is not before.agent_exit:
        ended = agent_exit_of(after)
        if ended is not None and (before is None or agent_exit_of(before) != ended):
            yield AgentEvent(task, template_pool, "ended", ended.report)
    if (before is None or after.silence is not before.silence) and agent_exit_of(after) is None and is_lost(after):
        yield AgentEvent(task, template_pool, "lost")
    if after.stall is not None and (before is None or after.stall is not before.stall) and stalled_since(after):
        yield AgentEvent(task, template_pool, "stalled")
    last = after.last_interrupt
    if last is not None and (before is None or last != before.last_interrupt):
        yield AgentEvent(task, template_pool, "interrupted", interrupt=last)


def record(context: WorkerContext, events: Iterable[AgentEvent]) -> None:
    """Count and log these events, whose batch is committed."""
    for each in events:
        fields = {"task_id": str(each.task.id), "task": each.task.name, "build_number": each.task.state.build_number}
        ended, label = each.agent_exit, context.directory_cache.metric_label(each.template_pool)
        if each.interrupt is not None:
            context.metrics.interrupts.labels(each.interrupt.outcome.value, *label).inc()
            outcome = {"outcome": each.interrupt.outcome.value, "detail": each.interrupt.detail}
            log.info("interrupt ended", **fields, interrupt_id=str(each.interrupt.id), **outcome)
        elif ended is None:
            context.metrics.agent_events.labels(each.event, *label).inc()
            log.info(COUNTED[each.event], **fields)
        else:
            context.metrics.agent_exits.labels(ended.why.value, *label).inc()
            log.info("agent ended", **fields, why=ended.why.value, status=ended.status, signal=ended.signal)


def _has_started(before: TaskState | None, after: TaskState) -> bool:
    if not _is_ready(after) or (before is not None and after.lifecycle is before.lifecycle):
        return False
    return before is None or before.build_number != after.build_number or not _is_ready(before)


def _is_ready(state: TaskState) -> bool:
    lifecycle = state.lifecycle
    return lifecycle is not None and is_current(state, lifecycle) and lifecycle.report.lifecycle is Lifecycle.READY
