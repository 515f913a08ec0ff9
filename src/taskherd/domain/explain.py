"""Why a task is as it is: the rule that `view.py` went by, a sentence for people, and the report that decided.

It walks the tables of `view.py` in their order, so it can't say anything else; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from taskherd.domain import explanations
from taskherd.domain.reports import Health, State
from taskherd.domain.view import (
    AGENT_STATUS,
    APP_STATUS,
    BUILD_STATUS,
    Status,
    agent_of,
    app_health_of,
    counts,
    health_of,
    said,
    state_of,
)

if TYPE_CHECKING:
    from taskherd.domain.liveness import Patience
    from taskherd.domain.task import Facet, Held, Memory
    from taskherd.domain.view import CurrentState, HealthVerdict

V = TypeVar("V")

_OF_LIFECYCLE = frozenset(
    {"agent is not running", "agent startup script exited with an error", "agent is shutting down"}
)
"""The reasons of health that the agent's lifecycle gives; the others are of its connection."""


@dataclass(frozen=True, slots=True)
class Because(Generic[V]):
    """A value, the rule that gave it, a sentence for people, and the report that decided (None: no report did)."""

    value: V
    rule: str
    because: str
    report: Held[Facet] | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task has its status, its state and its agent's health."""

    status: Because[Status]
    current_state: Because[CurrentState | None]
    health: Because[HealthVerdict | None]


def explain(memory: Memory, patience: Patience) -> Explanation:
    """Everything that is derived from this memory, each with its reason."""
    status = _status(memory, patience)
    return Explanation(status, _state(memory, status.value), _health(memory, patience))


def _status(memory: Memory, patience: Patience) -> Because[Status]:
    transition = memory.build.report.transition
    build = BUILD_STATUS.get((transition, memory.job), Status.UNKNOWN)
    if build is not Status.ACTIVE:
        rule = "build.given_up" if memory.gave_up else f"build.{transition}.{memory.job}"
        return Because(build, rule, explanations.build(memory, patience), _reported(memory))
    agent = agent_of(memory)
    if agent is None:
        return Because(Status.INITIALIZING, "agent.none", explanations.no_agent(memory), _reported(memory))
    lifecycle = _lifecycle(memory)
    running = AGENT_STATUS.get(agent.lifecycle, Status.UNKNOWN)
    if running is not Status.ACTIVE:
        return Because(running, f"agent.{agent.lifecycle}", explanations.agent(agent.lifecycle), lifecycle)
    health = app_health_of(memory)
    named: Held[Facet] | None = memory.app if counts(memory, memory.app) else None
    checked: Held[Facet] | None = memory.app_health if counts(memory, memory.app_health) else None
    report = checked or (lifecycle if health is Health.DISABLED else named)
    return Because(APP_STATUS[health], f"app.{health}", explanations.APP[health], report)


def _reported(memory: Memory) -> Held[Facet] | None:
    """The build's report, unless the worker's own asking, or its giving up, is what decides."""
    return memory.build if memory.build.report.seq >= 0 and not memory.gave_up else None


def _lifecycle(memory: Memory) -> Held[Facet] | None:
    return memory.lifecycle if counts(memory, memory.lifecycle) else None


def _state(memory: Memory, status: Status) -> Because[CurrentState | None]:
    value = state_of(memory, status, agent_of(memory))
    held = said(memory)
    if value is None:
        return Because(None, "app_status.none", explanations.NOTHING_SAID)
    if held is not None:
        return Because(value, f"app_status.{value.state}", explanations.said(held.report.key[0]), held)
    if value.state == State.FAILED:
        return Because(value, "build.failed", explanations.failed(memory), _reported(memory))
    return Because(value, "start_up", explanations.COMING_UP, _reported(memory))


def _health(memory: Memory, patience: Patience) -> Because[HealthVerdict | None]:
    value = health_of(memory, agent_of(memory))
    if value is None:
        return Because(None, "agent.none", explanations.NO_AGENT)
    connection: Held[Facet] | None = memory.connection if counts(memory, memory.connection) else None
    if value.reason is None:
        return Because(value, "healthy", explanations.healthy(patience), connection)
    report = _lifecycle(memory) if value.reason in _OF_LIFECYCLE else connection
    return Because(value, value.reason.replace(" ", "_"), explanations.unwell(value.reason, patience), report)
