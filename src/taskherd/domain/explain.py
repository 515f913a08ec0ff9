"""Explain a view: for each derived value the rule that gave it, a text for users, and the report that decided.

It evaluates the tables of ``view.py`` in the same order; a test checks that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from taskherd.domain import explanations
from taskherd.domain.handle_command import resume_refusal
from taskherd.domain.reports import AgentState, Health
from taskherd.domain.view import (
    NOT_RUNNING,
    STATUS_BY_APP_HEALTH,
    STATUS_BY_BUILD,
    STATUS_BY_LIFECYCLE,
    Status,
    agent_exit_of,
    agent_of,
    app_health_of,
    asking_requests,
    current_app_status,
    current_state_of,
    ended_agent_of,
    has_failed,
    health_of,
    is_current,
    is_lost,
    open_requests,
    stalled_since,
    status_of,
)

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.task import Facet, Stamped, TaskState
    from taskherd.domain.view import AgentHealth, CurrentState, EndedAgent

V = TypeVar("V")

_LIFECYCLE_REASONS = frozenset({NOT_RUNNING, "agent startup script exited with an error", "agent is shutting down"})
"""Reasons for an unhealthy agent that result from its lifecycle; all others result from its connection."""


@dataclass(frozen=True, slots=True)
class ExplainedValue(Generic[V]):
    """A derived value with its rule, an explanation, and the deciding report (None if no report decided)."""

    value: V
    rule: str
    explanation: str
    report: Stamped[Facet] | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a task's status, current state and agent, whether that waits for a person, and a resume.

    ``restart_at`` is when the worker starts a lost agent again by itself, None if it does not.
    """

    status: ExplainedValue[Status]
    current_state: ExplainedValue[CurrentState | None]
    health: ExplainedValue[AgentHealth | None]
    agent_exit: ExplainedValue[EndedAgent | None]
    stalled_since: ExplainedValue[datetime | None]
    interrupt: ExplainedValue[datetime | None]
    waiting: ExplainedValue[bool]
    resume: ExplainedValue[bool]
    restart_at: datetime | None


def explain(state: TaskState, timeouts: Timeouts) -> Explanation:
    """Derive and explain the status, current state and agent of a task, and whether a resume is accepted."""
    status = _status(state, timeouts)
    return Explanation(
        status,
        _current_state(state, status.value),
        _health(state, timeouts),
        _agent_exit(state),
        _stalled_since(state),
        _interrupt(state, timeouts),
        _waiting(state),
        _resume(state),
        state.loss_restarts.retry_at,
    )


def _agent_exit(state: TaskState) -> ExplainedValue[EndedAgent | None]:
    is_over = agent_exit_of(state) is not None or is_lost(state)
    rule = _gone_rule(state) if is_over else "agent_exit.none"
    return ExplainedValue(ended_agent_of(state), rule, explanations.agent_exit(state), agent_exit_of(state))


def _stalled_since(state: TaskState) -> ExplainedValue[datetime | None]:
    since = stalled_since(state)
    rule = "stalled.none" if since is None else "stalled"
    return ExplainedValue(
        since, rule, explanations.stalled(since), None if since is None else current_app_status(state)
    )


def _interrupt(state: TaskState, timeouts: Timeouts) -> ExplainedValue[datetime | None]:
    if state.interrupt is not None:
        return ExplainedValue(state.interrupt.since, "interrupt.open", explanations.open_interrupt(timeouts))
    last = state.last_interrupt
    rule = "interrupt.none" if last is None else f"interrupt.{last.outcome}"
    return ExplainedValue(None, rule, explanations.last_interrupt(last))


def _waiting(state: TaskState) -> ExplainedValue[bool]:
    requests = open_requests(state)
    if requests:
        return ExplainedValue(value=True, rule="request.open", explanation=explanations.waits_for_person(requests))
    if asking_requests(state):
        return ExplainedValue(value=False, rule="request.answered", explanation=explanations.ANSWER_ON_ITS_WAY)
    return ExplainedValue(value=False, rule="request.none", explanation=explanations.NOTHING_ASKED)


def _resume(state: TaskState) -> ExplainedValue[bool]:
    refusal = resume_refusal(state)
    text = explanations.resume(refusal.message if refusal else None)
    return ExplainedValue(refusal is None, "resume.refused" if refusal else "resume.accepted", text)


def _status(state: TaskState, timeouts: Timeouts) -> ExplainedValue[Status]:
    transition = state.build.report.transition
    build = STATUS_BY_BUILD.get((transition, state.job_status), Status.UNKNOWN)
    if build is not Status.ACTIVE:
        rule = "build.given_up" if state.build_timed_out else f"build.{transition}.{state.job_status}"
        return ExplainedValue(build, rule, explanations.build(state, timeouts), _build_report(state))
    agent = agent_of(state)
    if agent_exit_of(state) is not None or is_lost(state):
        value = status_of(state, agent, app_health_of(state))
        return ExplainedValue(value, _gone_rule(state), explanations.agent_gone(state), _gone_report(state))
    if agent is None:
        return ExplainedValue(Status.INITIALIZING, "agent.none", explanations.no_agent(state), _build_report(state))
    lifecycle = _lifecycle(state)
    by_agent = STATUS_BY_LIFECYCLE.get(agent.lifecycle, Status.UNKNOWN)
    if by_agent is not Status.ACTIVE:
        return ExplainedValue(by_agent, f"agent.{agent.lifecycle}", explanations.agent(agent.lifecycle), lifecycle)
    health = app_health_of(state)
    app: Stamped[Facet] | None = state.app if is_current(state, state.app) else None
    app_health: Stamped[Facet] | None = state.app_health if is_current(state, state.app_health) else None
    report = app_health or (lifecycle if health is Health.DISABLED else app)
    return ExplainedValue(STATUS_BY_APP_HEALTH[health], f"app.{health}", explanations.APP[health], report)


def _gone_rule(state: TaskState) -> str:
    """Return the rule for an agent that has ended or is lost: ``agent_exit.exited``, ``agent.lost``."""
    stamped = agent_exit_of(state)
    return "agent.lost" if stamped is None else f"agent_exit.{stamped.report.why}"


def _gone_report(state: TaskState) -> Stamped[Facet] | None:
    return agent_exit_of(state) or (state.connection if is_current(state, state.connection) else None)


def _build_report(state: TaskState) -> Stamped[Facet] | None:
    """Return the report of the latest build, or None if the worker's own request or timeout decided."""
    return state.build if state.build.report.seq >= 0 and not state.build_timed_out else None


def _lifecycle(state: TaskState) -> Stamped[Facet] | None:
    return state.lifecycle if is_current(state, state.lifecycle) else None


def _current_state(state: TaskState, status: Status) -> ExplainedValue[CurrentState | None]:
    value = current_state_of(state, status, agent_of(state))
    stamped = current_app_status(state)
    if value is None:
        return ExplainedValue(None, "app_status.none", explanations.NOTHING_REPORTED)
    if stamped is not None:
        text = explanations.reported_state(state, stamped.report)
        return ExplainedValue(value, f"app_status.{value.state}", text, stamped)
    if value.state == AgentState.FAILED:
        return ExplainedValue(value, "build.failed", explanations.failed_build(state), _build_report(state))
    return ExplainedValue(value, "start_up", explanations.STARTING_UP, _build_report(state))


def _health(state: TaskState, timeouts: Timeouts) -> ExplainedValue[AgentHealth | None]:
    value = health_of(state, agent_of(state))
    if value is None:
        return ExplainedValue(None, "agent.none", explanations.NO_AGENT)
    connection: Stamped[Facet] | None = state.connection if is_current(state, state.connection) else None
    agent_exit = agent_exit_of(state)
    if value.reason is None:
        return ExplainedValue(value, "healthy", explanations.healthy(state, timeouts), agent_exit or connection)
    by_lifecycle = value.reason in _LIFECYCLE_REASONS
    report: Stamped[Facet] | None = _lifecycle(state) if by_lifecycle else connection
    if agent_exit and has_failed(agent_exit.report):
        report = agent_exit
    text = explanations.unhealthy(state, value.reason, timeouts)
    return ExplainedValue(value, value.reason.replace(" ", "_"), text, report)
