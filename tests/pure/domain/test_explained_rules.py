"""The rule that gave each explained value, and the report that decided it: programs match on both."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from taskherd.domain import explanations
from taskherd.domain.explain import ExplainedValue, Explanation, explain
from taskherd.domain.reports import AgentState, App, ExitReason, Health, InterruptOutcome, JobStatus, Lifecycle
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import EndedInterrupt, LossRestarts, OpenAgentRequest, OpenInterrupt, Stall
from taskherd.domain.value import replace
from tests.harness.histories import NOON
from tests.pure.domain.test_explain import TIMEOUTS, after_silence, agent_exit, app_health, folded
from tests.pure.domain.test_fold import build, disconnected, heartbeat, lifecycle, status

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.domain.task import TaskState

HOUR = timedelta(hours=1)
UP = build(seq=1, job=JobStatus.SUCCEEDED)
READY = lifecycle(seq=2)
CONNECTED = heartbeat(seq=3)
WORKING = status(AgentState.WORKING, seq=4)
APP = App(UUID(int=9), "web", health=Health.UNHEALTHY)


def decided(part: ExplainedValue[Any]) -> tuple[str, tuple[str, int, int] | None]:
    """Return the rule of an explained value, and the type, build number and ``seq`` of the deciding report."""
    return part.rule, None if part.report is None else (part.report.report.type, *part.report.report.sort_key)


def rules(state: TaskState) -> dict[str, tuple[str, tuple[str, int, int] | None]]:
    """Return the rules and the deciding reports of all explained values."""
    explanation = explain(state, TIMEOUTS)
    parts = {each.name: getattr(explanation, each.name) for each in fields(Explanation)}
    return {name: decided(part) for name, part in parts.items() if isinstance(part, ExplainedValue)}


def asking(state: TaskState, *, answered: bool) -> TaskState:
    """Return the state with a request of the agent."""
    request = OpenAgentRequest(UUID(int=8), 1, 5, RequestKind.APPROVAL, "Push?", NOON, answered=answered)
    return replace(state, agent_requests={request.id: request})


def test_a_requested_build_was_reported_by_nobody() -> None:
    """What the worker requested itself has no report, and a requested task no agent, state or request."""
    assert rules(folded()) == {
        "status": ("build.start.pending", None),
        "current_state": ("app_status.none", None),
        "health": ("agent.none", None),
        "agent_exit": ("agent_exit.none", None),
        "stalled_since": ("stalled.none", None),
        "interrupt": ("interrupt.none", None),
        "waiting": ("request.none", None),
        "resume": ("resume.refused", None),
    }


def test_an_agent_that_works_has_reported_everything() -> None:
    """Of an active task the lifecycle decides the status without a check of its app, and the heartbeat the health."""
    state = asking(folded(UP, READY, CONNECTED, WORKING), answered=False)
    state = replace(state, stall=Stall(1, NOON), interrupt=OpenInterrupt(UUID(int=7), 1, NOON))
    assert rules(state) == {
        "status": ("app.disabled", ("agent.lifecycle", 1, 2)),
        "current_state": ("app_status.working", ("app.status", 1, 4)),
        "health": ("healthy", ("agent.heartbeat", 1, 3)),
        "agent_exit": ("agent_exit.none", None),
        "stalled_since": ("stalled", ("app.status", 1, 4)),
        "interrupt": ("interrupt.open", None),
        "waiting": ("request.open", None),
        "resume": ("resume.refused", None),
    }


def test_an_agent_that_has_ended_has_reported_its_end() -> None:
    """Its end decides the status and the health, and what it said last is its state; it can be started again."""
    ended = agent_exit(ExitReason.TIMEOUT)
    last = EndedInterrupt(UUID(int=6), InterruptOutcome.FAILED, NOON, "It has no terminal.")
    state = replace(folded(UP, READY, CONNECTED, WORKING, ended), last_interrupt=last)
    assert rules(state) == {
        "status": ("agent_exit.timeout", ("agent.exit", 1, 9)),
        "current_state": ("app_status.working", ("app.status", 1, 4)),
        "health": ("agent_is_not_running", ("agent.exit", 1, 9)),
        "agent_exit": ("agent_exit.timeout", ("agent.exit", 1, 9)),
        "stalled_since": ("stalled.none", None),
        "interrupt": ("interrupt.failed", None),
        "waiting": ("request.none", None),
        "resume": ("resume.accepted", None),
    }


def test_a_lost_agent_has_reported_its_last_heartbeat() -> None:
    """It decides the status and the health, but says nothing about an end; a later build's heartbeat is not its own."""
    lost = after_silence(asking(folded(UP, READY, CONNECTED), answered=True), HOUR)
    assert rules(lost) == {
        "status": ("agent.lost", ("agent.heartbeat", 1, 3)),
        "current_state": ("app_status.none", None),
        "health": ("agent_has_lost_connection", ("agent.heartbeat", 1, 3)),
        "agent_exit": ("agent.lost", None),
        "stalled_since": ("stalled.none", None),
        "interrupt": ("interrupt.none", None),
        "waiting": ("request.answered", None),
        "resume": ("resume.accepted", None),
    }
    early = rules(replace(lost, connection=folded(heartbeat(2, seq=7)).connection))
    assert early["status"] == ("agent.lost", None)
    assert early["health"] == ("agent_has_lost_connection", None)


@pytest.mark.parametrize(
    ("reports", "rule", "report"),
    [
        ([build(job=JobStatus.PENDING)], "build.start.pending", ("workspace.build", 1, 0)),
        ([build(seq=1, job=JobStatus.FAILED)], "build.start.failed", ("workspace.build", 1, 1)),
        ([UP], "agent.none", ("workspace.build", 1, 1)),
        ([UP, lifecycle(Lifecycle.STARTING, seq=5)], "agent.starting", ("agent.lifecycle", 1, 5)),
        ([UP, CONNECTED], "agent.created", None),
        ([UP, CONNECTED, lifecycle(Lifecycle.STARTING, 2)], "agent.created", None),
        ([UP, READY, app_health(Health.UNHEALTHY, 6)], "app.unhealthy", ("app.health", 1, 6)),
        ([UP, READY, app_health(Health.DISABLED, 6)], "app.disabled", ("app.health", 1, 6)),
        ([replace(UP, app=APP), READY], "app.unhealthy", ("workspace.build", 1, 1)),
        (
            [UP, READY, replace(app_health(Health.UNHEALTHY), build_number=2)],
            "app.disabled",
            ("agent.lifecycle", 1, 2),
        ),
    ],
)
def test_what_decides_the_status(reports: list[Report], rule: str, report: tuple[str, int, int] | None) -> None:
    """The first table that does not say ``active``, and a report of the latest build, if one says so."""
    assert rules(folded(*reports))["status"] == (rule, report)


def test_a_build_that_was_given_up_was_decided_by_nobody() -> None:
    """It failed because no report about it came."""
    given_up = after_silence(folded(build(seq=1, job=JobStatus.PENDING)), HOUR)
    assert rules(given_up)["status"] == ("build.given_up", None)


@pytest.mark.parametrize(
    ("reports", "rule", "report"),
    [
        ([build(seq=1, job=JobStatus.FAILED)], "build.failed", ("workspace.build", 1, 1)),
        ([build(seq=1)], "start_up", ("workspace.build", 1, 1)),
        ([UP, status(AgentState.FAILURE, seq=5)], "app_status.failed", ("app.status", 1, 5)),
    ],
)
def test_what_decides_the_state(reports: list[Report], rule: str, report: tuple[str, int, int]) -> None:
    """What the agent says, else the failure of its build, else the progress of its start."""
    assert rules(folded(*reports))["current_state"] == (rule, report)


@pytest.mark.parametrize(
    ("reports", "rule", "report"),
    [
        ([UP, lifecycle(Lifecycle.OFF, seq=5)], "agent_is_not_running", ("agent.lifecycle", 1, 5)),
        (
            [UP, CONNECTED, lifecycle(Lifecycle.START_ERROR, seq=5)],
            "agent_startup_script_exited_with_an_error",
            ("agent.lifecycle", 1, 5),
        ),
        (
            [UP, CONNECTED, lifecycle(Lifecycle.SHUTTING_DOWN, seq=5)],
            "agent_is_shutting_down",
            ("agent.lifecycle", 1, 5),
        ),
        ([UP, READY, disconnected(seq=5)], "agent_has_lost_connection", ("agent.disconnected", 1, 5)),
        ([UP, READY], "agent_has_not_yet_connected", None),
        ([UP, READY, CONNECTED, agent_exit(ExitReason.EXITED, status=0)], "healthy", ("agent.exit", 1, 9)),
        (
            [UP, READY, disconnected(seq=5), agent_exit(ExitReason.EXITED, status=0)],
            "agent_has_lost_connection",
            ("agent.disconnected", 1, 5),
        ),
    ],
)
def test_what_decides_the_health(reports: list[Report], rule: str, report: tuple[str, int, int] | None) -> None:
    """The lifecycle, the connection or the end of the agent, whichever gives the reason."""
    assert rules(folded(*reports))["health"] == (rule, report)


def test_an_open_interrupt_is_explained() -> None:
    """Its value is since when it is open, and the text says what ends it."""
    state = replace(folded(UP, READY, CONNECTED), interrupt=OpenInterrupt(UUID(int=5), 1, NOON + HOUR))
    interrupt = explain(state, TIMEOUTS).interrupt
    assert interrupt.value == NOON + HOUR
    assert interrupt.explanation == (
        "The agent is being interrupted, and is given no input meanwhile. The report of its runner about the interrupt"
        " changes this; after 60 seconds without one it counts as failed."
    )


def test_a_restart_by_the_worker_is_announced() -> None:
    """The time of the next restart after a loss is part of the explanation."""
    state = replace(folded(UP), loss_restarts=LossRestarts(1, NOON + HOUR))
    assert explain(state, TIMEOUTS).restart_at == NOON + HOUR
    assert explain(folded(UP), TIMEOUTS).restart_at is None


@pytest.mark.parametrize(
    ("reports", "silent", "text"),
    [
        ([UP, WORKING], False, "Reported by the agent in build 1. Its next status report replaces it."),
        (
            [UP, replace(WORKING, guessed_from="its screen")],
            False,
            (
                "The agent did not say this itself: the runner concluded it in build 1 from its screen. The next status"
                " replaces it."
            ),
        ),
        (
            [UP, CONNECTED, WORKING],
            True,
            (
                "Reported in build 1, before the agent was lost; it may no longer be true. Resume the task to start it"
                " again."
            ),
        ),
        (
            [UP, WORKING, agent_exit(ExitReason.STOPPED)],
            False,
            "The last state of the agent, which was stopped with its workspace. Resume the task to start it again.",
        ),
    ],
)
def test_what_a_reported_state_is_worth(reports: list[Report], *, silent: bool, text: str) -> None:
    """Nothing is claimed of an agent that is gone, and no guess is called its word."""
    state = after_silence(folded(*reports), HOUR) if silent else folded(*reports)
    assert state.app_status is not None
    assert explanations.reported_state(state, state.app_status.report) == text
