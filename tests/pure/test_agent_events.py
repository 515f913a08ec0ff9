"""What a batch says about agents that was not known before: counted once, whatever else changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.domain.reports import (
    AgentExit,
    AgentState,
    ExitReason,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    Transition,
)
from taskherd.domain.task import EndedInterrupt, Silence, Stall
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.value import replace
from taskherd.observability.metrics import Metrics
from taskherd.worker.agent_events import AgentEvent, agent_events, record
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, status

POOL = TemplatePool("claude", "gpu")
INTERRUPT = EndedInterrupt(UUID(int=3), InterruptOutcome.STOPPED, NOON)


def agent_exit(why: ExitReason, number: int = 1, seq: int = 9) -> AgentExit:
    """Return the report of an agent's end."""
    return AgentExit(task_id=TASK, build_number=number, seq=seq, why=why)


def state(*reports: Any, **fields: Any) -> Any:
    """Return the state of a task after these reports, with these fields."""
    return replace(folded(unchanged_core(), reports), **fields)


STARTED = (build(job=JobStatus.SUCCEEDED), heartbeat(seq=1))
NEW = state(*STARTED)
CREATED = state(*STARTED, lifecycle(Lifecycle.STARTING))
READY = state(*STARTED, lifecycle(Lifecycle.READY, seq=2))
READY_AGAIN = state(*STARTED, lifecycle(Lifecycle.READY, seq=3))
WORKING = state(*STARTED, lifecycle(Lifecycle.READY, seq=2), status(AgentState.WORKING))
EXITED = state(*STARTED, agent_exit(ExitReason.EXITED))
VANISHED = state(*STARTED, agent_exit(ExitReason.LOST))
RESTARTING = replace(READY, build=state(build(2)).build)
RESTARTED = state(build(2), lifecycle(Lifecycle.READY, 2))
STOPPED = replace(READY, build=state(build(2, transition=Transition.STOP)).build)
SILENT = replace(READY, silence=Silence(1, lost=True))
NEVER_CONNECTED = replace(READY, silence=Silence(1, lost=False))
STALLED = replace(WORKING, stall=Stall(1, NOON))
STALLED_AND_IDLE = replace(READY, stall=Stall(1, NOON))
INTERRUPTED = replace(READY, last_interrupt=INTERRUPT)


def events(before: Any, after: Any, **fields: Any) -> list[str]:
    """Return what happened between two states of a task that has these fields, of which None is none."""
    update = TaskUpdate(
        None if before is None else make_task(TASK, state=before),
        None if after is None else make_task(TASK, state=after, **fields),
    )
    found = list(agent_events(update, POOL))
    assert all((each.task, each.template_pool) == (update.task, POOL) for each in found)
    return [each.event for each in found]


@pytest.mark.parametrize(
    ("before", "after", "happened"),
    [
        (None, None, []),
        (None, NEW, []),
        (None, CREATED, []),
        (None, READY, ["started"]),
        (None, EXITED, ["ended"]),
        (None, SILENT, ["started", "lost"]),
        (None, VANISHED, ["ended"]),
        (None, STALLED, ["started", "stalled"]),
        (None, INTERRUPTED, ["started", "interrupted"]),
        (NEW, CREATED, []),
        (NEW, READY, ["started"]),
        (CREATED, READY, ["started"]),
        (READY, READY_AGAIN, []),
        (READY, CREATED, []),
        (READY, RESTARTING, []),
        (READY, RESTARTED, ["started"]),
        (READY, STOPPED, []),
        (READY, EXITED, ["ended"]),
        (EXITED, replace(EXITED, agent_exit=replace(EXITED.agent_exit)), []),
        (EXITED, state(*STARTED, agent_exit(ExitReason.SIGNALLED, seq=10)), ["ended"]),
        (EXITED, replace(EXITED, build=STOPPED.build, agent_exit=replace(EXITED.agent_exit)), []),
        (EXITED, replace(EXITED, silence=Silence(1, lost=True)), []),
        (READY, SILENT, ["lost"]),
        (READY, NEVER_CONNECTED, []),
        (SILENT, SILENT, []),
        (SILENT, replace(SILENT, last_interrupt=INTERRUPT), ["interrupted"]),
        (SILENT, READY, []),
        (VANISHED, replace(VANISHED, silence=Silence(1, lost=True)), []),
        (WORKING, STALLED, ["stalled"]),
        (STALLED, STALLED, []),
        (STALLED, replace(STALLED, last_interrupt=INTERRUPT), ["interrupted"]),
        (STALLED, WORKING, []),
        (READY, STALLED_AND_IDLE, []),
        (READY, INTERRUPTED, ["interrupted"]),
        (INTERRUPTED, replace(INTERRUPTED, last_interrupt=replace(INTERRUPT)), []),
        (INTERRUPTED, replace(INTERRUPTED, last_interrupt=replace(INTERRUPT, id=UUID(int=4))), ["interrupted"]),
        (INTERRUPTED, READY, []),
    ],
)
def test_what_happens_to_an_agent_is_noticed_once(before: Any, after: Any, happened: list[str]) -> None:
    """Also what happened to that of a new task, whose reports came before it."""
    assert events(before, after) == happened


def test_nothing_happens_to_the_agent_of_a_deleted_task() -> None:
    """Its reports still come, for a while."""
    assert events(NEW, READY, deleted_at=NOON) == []


def test_events_have_what_is_counted_of_them() -> None:
    """An end its report, and an interrupt what became of it."""
    task = make_task(TASK, state=replace(EXITED, last_interrupt=INTERRUPT))
    found = list(agent_events(TaskUpdate(None, task), POOL))
    assert found == [
        AgentEvent(task, POOL, "ended", EXITED.agent_exit.report),
        AgentEvent(task, POOL, "interrupted", None, INTERRUPT),
    ]


def test_events_are_counted_by_kind_template_and_pool() -> None:
    """An end by its reason, an interrupt by its outcome; a pair that metrics do not name counts with all such."""
    metrics = Metrics()
    cache = SimpleNamespace(metric_label=lambda pair: pair if pair == POOL else OTHER)
    task = make_task(TASK, state=replace(EXITED, last_interrupt=INTERRUPT))
    unnamed = make_task(UUID(int=8), state=READY)
    found = [
        *agent_events(TaskUpdate(None, task), POOL),
        *agent_events(TaskUpdate(None, unnamed), TemplatePool("codex", "cpu")),
    ]
    record(partial_context(metrics=metrics, directory_cache=cache), found)

    def count(name: str, template: str, pool: str, **labels: str) -> float:
        all_labels = {**labels, "template": template, "pool": pool}
        return metrics.registry.get_sample_value(f"taskherd_{name}_total", all_labels) or 0

    assert count("agent_exits", *POOL, why="exited") == 1
    assert count("interrupts", *POOL, outcome="stopped") == 1
    assert count("agent_events", *OTHER, type="started") == 1
    assert count("agent_events", *POOL, type="interrupted") == count("agent_events", *POOL, type="ended") == 0
