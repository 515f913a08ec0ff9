"""Why a task is as it is: the rule that `view.py` went by, a sentence for people, and the report that decided.

It walks the tables of `view.py` in their order, so it can't say anything else; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from taskherd.domain import explanations
from taskherd.domain.reports import AgentState, Health
from taskherd.domain.view import (
    AGENT_STATUS,
    APP_STATUS,
    BUILD_STATUS,
    Status,
    agent_of,
    app_health_of,
    current_app_status,
    health_of,
    is_current,
    state_of,
)

if TYPE_CHECKING:
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.task import Facet, Stamped, TaskState
    from taskherd.domain.view import AgentHealth, CurrentState

V = TypeVar("V")

_OF_LIFECYCLE = frozenset(
    {"agent is not running", "agent startup script exited with an error", "agent is shutting down"}
)
"""The reasons of health that the agent's lifecycle gives; the others are of its connection."""


@dataclass(frozen=True, slots=True)
class Reason(Generic[V]):
    """A value, the rule that gave it, a sentence for people, and the report that decided (None: no report did)."""

    value: V
    rule: str
    explanation: str
    report: Stamped[Facet] | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task has its status, its state and its agent's health."""

    status: Reason[Status]
    current_state: Reason[CurrentState | None]
    health: Reason[AgentHealth | None]


def explain(state: TaskState, timeouts: Timeouts) -> Explanation:
    """Everything that is derived from this memory, each with its reason."""
    status = _status(state, timeouts)
    return Explanation(status, _state(state, status.value), _health(state, timeouts))


def _status(state: TaskState, timeouts: Timeouts) -> Reason[Status]:
    transition = state.build.report.transition
    build = BUILD_STATUS.get((transition, state.job), Status.UNKNOWN)
    if build is not Status.ACTIVE:
        rule = "build.given_up" if state.build_timed_out else f"build.{transition}.{state.job}"
        return Reason(build, rule, explanations.build(state, timeouts), _reported(state))
    agent = agent_of(state)
    if agent is None:
        return Reason(Status.INITIALIZING, "agent.none", explanations.no_agent(state), _reported(state))
    lifecycle = _lifecycle(state)
    running = AGENT_STATUS.get(agent.lifecycle, Status.UNKNOWN)
    if running is not Status.ACTIVE:
        return Reason(running, f"agent.{agent.lifecycle}", explanations.agent(agent.lifecycle), lifecycle)
    health = app_health_of(state)
    named: Stamped[Facet] | None = state.app if is_current(state, state.app) else None
    checked: Stamped[Facet] | None = state.app_health if is_current(state, state.app_health) else None
    report = checked or (lifecycle if health is Health.DISABLED else named)
    return Reason(APP_STATUS[health], f"app.{health}", explanations.APP[health], report)


def _reported(state: TaskState) -> Stamped[Facet] | None:
    """The build's report, unless the worker's own asking, or its giving up, is what decides."""
    return state.build if state.build.report.seq >= 0 and not state.build_timed_out else None


def _lifecycle(state: TaskState) -> Stamped[Facet] | None:
    return state.lifecycle if is_current(state, state.lifecycle) else None


def _state(state: TaskState, status: Status) -> Reason[CurrentState | None]:
    value = state_of(state, status, agent_of(state))
    stamped = current_app_status(state)
    if value is None:
        return Reason(None, "app_status.none", explanations.NOTHING_REPORTED)
    if stamped is not None:
        return Reason(value, f"app_status.{value.state}", explanations.reported_state(stamped.report.key[0]), stamped)
    if value.state == AgentState.FAILED:
        return Reason(value, "build.failed", explanations.failed_build(state), _reported(state))
    return Reason(value, "start_up", explanations.COMING_UP, _reported(state))


def _health(state: TaskState, timeouts: Timeouts) -> Reason[AgentHealth | None]:
    value = health_of(state, agent_of(state))
    if value is None:
        return Reason(None, "agent.none", explanations.NO_AGENT)
    connection: Stamped[Facet] | None = state.connection if is_current(state, state.connection) else None
    if value.reason is None:
        return Reason(value, "healthy", explanations.healthy(timeouts), connection)
    report = _lifecycle(state) if value.reason in _OF_LIFECYCLE else connection
    return Reason(value, value.reason.replace(" ", "_"), explanations.unhealthy(value.reason, timeouts), report)
