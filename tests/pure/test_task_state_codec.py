"""The stored form of the task state: it loses nothing, and rows that are already stored stay readable."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest

from taskherd.domain import builds
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    ExitReason,
    Health,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    Transition,
    Workspace,
    WorkspaceBuild,
)
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import (
    Deletion,
    EndedInterrupt,
    Inbox,
    LastLog,
    LossRestarts,
    OpenAgentRequest,
    OpenInterrupt,
    Silence,
    Stall,
    Stamped,
    TaskState,
    TimedOut,
)
from taskherd.domain.usage import ContextTokens, TaskUsage, UsageAmounts
from taskherd.domain.value import replace
from taskherd.store import task_state_codec

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
TASK, AGENT, APP, WORKSPACE, INPUT, INTERRUPT = (UUID(int=number) for number in range(1, 7))

KEYS = {
    "since",
    "guessed_from",
    "builds", "build", "workspace", "runner", "agent", "app", "lifecycle", "app_health", "app_status", "connection",
    "heard", "appeared", "asked", "unanswered", "silence", "given_up", "inbox", "deletion",
    "agent_exit", "restarts", "last_log", "stall", "loss_restarts", "usage", "interrupt",
    "last_interrupt",
    "labels", "requests",
}  # fmt: skip
"""The keys in stored rows; renaming one means rewriting the rows."""


def at(seconds: int) -> datetime:
    """Return a time after noon."""
    return NOON + timedelta(seconds=seconds)


def full_state() -> TaskState:
    """Make a state in which every field differs from its default, with facets from two builds."""
    start = WorkspaceBuild(
        task_id=TASK,
        build_number=3,
        seq=7,
        observed_at=at(1),
        agent_id=AGENT,
        transition=Transition.START,
        job_status=JobStatus.RUNNING,
        workspace=Workspace(WORKSPACE, "workspace"),
        app=App(APP, "app", "https://example.com", Health.HEALTHY),
        runner="runner-1",
    )
    stop = replace(start, build_number=4, seq=1, transition=Transition.STOP, workspace=None, app=None, error="failed")
    stop = replace(stop, restart=True, reason="drained")
    common: dict[str, Any] = {"task_id": TASK, "build_number": 3, "observed_at": at(2), "agent_id": AGENT}
    return TaskState(
        build=Stamped(stop, at(10)),
        workspace=Stamped(start, at(3)),
        runner=Stamped(stop, at(10)),
        agent=Stamped(stop, at(9)),
        app=Stamped(start, at(3)),
        lifecycle=Stamped(AgentLifecycle(seq=1, lifecycle=Lifecycle.READY, **common), at(4)),
        app_health=Stamped(AppHealth(seq=2, health=Health.UNHEALTHY, **common), at(5)),
        app_status=Stamped(
            AppStatus(
                seq=3,
                state=AgentState.WORKING,
                message="Compiling",
                uri="https://example.com",
                guessed_from="x",
                **common,
            ),
            at(6),
        ),
        connection=Stamped(AgentHeartbeat(seq=4, **common), at(7)),
        agent_exit=Stamped(
            AgentExit(seq=5, why=ExitReason.SIGNALLED, status=137, signal=9, words="so long", **common), at(9)
        ),
        last_heartbeat={3: at(7), 2: at(0)},
        first_seen={3: at(2)},
        requested_builds={3: Transition.START, 4: Transition.STOP},
        unanswered_build=4,
        silence=Silence(3, lost=True),
        timed_out=TimedOut(4, 1, "no runner"),
        last_log=LastLog(3, at(7)),
        stall=Stall(3, at(6)),
        loss_restarts=LossRestarts(2, at(30)),
        inbox=Inbox(2, INPUT, at(8)),
        deletion=Deletion(1, at(20), done=True),
        usage=TaskUsage(
            UsageAmounts((1, 2, 3, 4), {"USD": Decimal("0.000000001")}),
            ContextTokens(3, 7, 90),
            ContextTokens(3, 6, 100),
        ),
        interrupt=OpenInterrupt(INTERRUPT, 3, at(9)),
        last_interrupt=EndedInterrupt(INPUT, InterruptOutcome.FAILED, at(8), "why", unreported=True, overruled=(3, 3)),
        labels={"repo": "acme/app", "team": "blue"},
        agent_requests={
            INPUT: OpenAgentRequest(INPUT, 4, 9, RequestKind.QUESTION, "Which?", at(9), wants_text=True),
            APP: OpenAgentRequest(APP, 5, 0, RequestKind.APPROVAL, "May I?", at(8), answered=True),
        },
        state_since=at(6),
    )


def test_every_field_of_a_state_is_stored() -> None:
    """A full state is decoded as it was encoded, its connection being a heartbeat or a disconnect."""
    state = full_state()
    disconnect = AgentDisconnected(task_id=TASK, build_number=3, seq=5, observed_at=None, agent_id=None)
    for each in (state, replace(state, connection=Stamped(disconnect, at(8)))):
        assert task_state_codec.loads(TASK, task_state_codec.dumps(each)) == each


@pytest.mark.parametrize("name", [each.name for each in fields(TaskState)])
def test_a_field_is_stored_without_the_others(name: str) -> None:
    """What one field needs is not left out because others have their default value."""
    state = full_state()
    one = replace(builds.initial_state(TASK, NOON), **{name: getattr(state, name)})
    assert task_state_codec.loads(TASK, task_state_codec.dumps(one)) == one


@pytest.mark.parametrize("fields_of_build", [{"restart": True, "reason": ""}, {"restart": False, "reason": "drained"}])
def test_a_build_has_a_reason_or_is_a_restart_or_both(fields_of_build: dict[str, Any]) -> None:
    """Either is stored alone."""
    state = full_state()
    one = replace(state, build=Stamped(replace(state.build.report, **fields_of_build), at(10)), runner=None)
    assert task_state_codec.loads(TASK, task_state_codec.dumps(one)) == one


def test_the_full_state_is_full() -> None:
    """Every field of the full state differs from its default, so that the tests of this file cover all fields."""
    state = full_state()
    default = TaskState(build=state.build)
    same = [each.name for each in fields(TaskState) if getattr(state, each.name) == getattr(default, each.name)]
    assert same == ["build"]


def test_a_new_state_is_short() -> None:
    """Fields with their default value are left out, and facets of the latest build refer to it."""
    state = builds.initial_state(TASK, NOON)
    encoded = task_state_codec.dumps(state)
    assert task_state_codec.loads(TASK, encoded) == state
    assert set(orjson.loads(encoded)) == {"builds", "build", "asked", "unanswered"}


def test_the_keys_of_stored_rows_stay() -> None:
    """Rows are rewritten only when their task changes, so their keys keep their names."""
    assert set(orjson.loads(task_state_codec.dumps(full_state()))) == KEYS


def test_each_build_is_stored_once() -> None:
    """Facets refer to it by its place, with the time if that is another than the latest build's; the latest is 0."""
    stored = orjson.loads(task_state_codec.dumps(full_state()))
    assert [row[:2] for row in stored["builds"]] == [[4, 1], [3, 7]]
    assert stored["builds"][1] == [
        3, 7, "2026-01-02T12:00:01Z", str(AGENT), "start", "running", [str(WORKSPACE), "workspace"],
        [str(APP), "app", "https://example.com", "healthy"], "runner-1", None,
    ]  # fmt: skip
    assert [stored[name] for name in ("build", "workspace", "runner", "agent", "app")] == [
        [0, "2026-01-02T12:00:10Z"], [1, "2026-01-02T12:00:03Z"], 0, [0, "2026-01-02T12:00:09Z"],
        [1, "2026-01-02T12:00:03Z"],
    ]  # fmt: skip
    assert stored["restarts"] == [[0, True, "drained"]]


def test_a_state_that_was_read_is_stored_as_before() -> None:
    """Also its ids, which have another class then."""
    encoded = task_state_codec.dumps(full_state())
    assert task_state_codec.dumps(task_state_codec.loads(TASK, encoded)) == encoded


def test_a_build_of_an_equal_report_is_the_same_build() -> None:
    """Whether it is the same object or not, as after it was read."""
    state = full_state()
    copied = replace(state, runner=Stamped(replace(state.build.report), at(10)))
    assert task_state_codec.dumps(copied) == task_state_codec.dumps(state)
