"""The fold: what one report makes of a task's memory.

The rules, all of which the laws in ``tests/pure/domain`` lean on:

1. A facet is replaced whole, only by a report with a greater ``(build_number, seq)``; where both are equal, the greater
   canonical JSON wins. So any order of the same reports ends in the same facets.
2. A workspace build names up to five facets at once; each is judged by itself.
3. Last-heard and the agent's appearance are kept for each build number, the 16 highest, whatever the reports' seq.
4. A build report that contradicts what the worker asked for under its number changes nothing (a conflict).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, assert_never

from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    AppHealth,
    AppStatus,
    TaskInput,
    TaskLog,
    WorkspaceBuild,
    canonical_json,
)
from taskherd.domain.task import MAX_TRACKED_BUILDS, Stamped, TaskState
from taskherd.domain.value import replace, value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from taskherd.domain.reports import Report

F = TypeVar("F", WorkspaceBuild, AgentLifecycle, AgentHeartbeat | AgentDisconnected, AppHealth, AppStatus)


@value(frozen=True, slots=True)
class FoldResult:
    """The memory after a report, and what became of the report: applied, stale or a conflict."""

    state: TaskState
    outcome: ReportOutcome


def with_build_number(report: Report, state: TaskState | None) -> Report:
    """The report with its build number known: the task's latest build when we take it, 1 while there is none."""
    if report.build_number is not None:
        return report
    return replace(report, build_number=state.number if state else 1)


def fold(state: TaskState, report: Report, now: datetime) -> FoldResult:  # noqa: PLR0911 - one return for each facet
    """Fold a report whose build number is known, taken at ``now``, into the memory.

    Log entries and input outcomes are not part of the memory, so they leave it as it is.
    """
    match report:
        case WorkspaceBuild():
            return _build(state, report, now)
        case AgentLifecycle():
            first_seen = _record_first_seen(state, report, now)
            stamped = _greater(state.lifecycle, report, now)
            return _fold_result(
                state, replace(first_seen, lifecycle=stamped) if stamped is not state.lifecycle else first_seen
            )
        case AgentHeartbeat():
            return FoldResult(_heartbeat(state, report, now), ReportOutcome.APPLIED)
        case AgentDisconnected():
            return _fold_result(state, _connection(_record_first_seen(state, report, now), report, now))
        case AppHealth():
            health = _greater(state.app_health, report, now)
            return _fold_result(state, state if health is state.app_health else replace(state, app_health=health))
        case AppStatus():
            status = _greater(state.app_status, report, now)
            return _fold_result(state, state if status is state.app_status else replace(state, app_status=status))
        case TaskLog() | TaskInput():
            return FoldResult(state, ReportOutcome.APPLIED)
        case _:
            assert_never(report)


def _fold_result(before: TaskState, after: TaskState) -> FoldResult:
    return FoldResult(after, ReportOutcome.STALE if after is before else ReportOutcome.APPLIED)


def _build(state: TaskState, report: WorkspaceBuild, now: datetime) -> FoldResult:
    number = report.key[0]
    if state.requested_builds.get(number, report.transition) is not report.transition:
        return FoldResult(state, ReportOutcome.CONFLICT)
    after = _record_first_seen(state, report, now) if report.agent_id else state
    build = _greater(state.build, report, now)
    workspace = _greater(state.workspace, report, now) if report.workspace else state.workspace
    runner = _greater(state.runner, report, now) if report.runner else state.runner
    agent = _greater(state.agent, report, now) if report.agent_id else state.agent
    app = _greater(state.app, report, now) if report.app else state.app
    before = (state.build, state.workspace, state.runner, state.agent, state.app)
    named = (build, workspace, runner, agent, app)
    if any(new is not old for new, old in zip(named, before, strict=True)):
        after = replace(after, build=build, workspace=workspace, runner=runner, agent=agent, app=app)
    if build is not state.build:
        after = replace(after, timed_out=None)
    if state.pending_build == number:
        after = replace(after, pending_build=None)
    return _fold_result(state, after)


def _heartbeat(state: TaskState, report: AgentHeartbeat, now: datetime) -> TaskState:
    number = report.key[0]
    after = _connection(_record_first_seen(state, report, now), report, now)
    silence = after.silence
    if silence is not None and silence.build_number == number:
        silence = None
    return replace(after, last_heartbeat=_keep_latest_builds(after.last_heartbeat, number, now), silence=silence)


def _connection(state: TaskState, report: AgentHeartbeat | AgentDisconnected, now: datetime) -> TaskState:
    stamped = _greater(state.connection, report, now)
    return state if stamped is state.connection else replace(state, connection=stamped)


def _record_first_seen(state: TaskState, report: Report, now: datetime) -> TaskState:
    number = report.key[0]
    if number in state.first_seen:
        return state
    first_seen = _keep_latest_builds(state.first_seen, number, now)
    return replace(state, first_seen=first_seen) if number in first_seen else state


def _keep_latest_builds(kept: Mapping[int, datetime], number: int, at: datetime) -> Mapping[int, datetime]:
    """The map with this build's instant, cut to the highest builds."""
    after = {**kept, number: at}
    if len(after) > MAX_TRACKED_BUILDS:
        del after[min(after)]
    return after


def _greater(stamped: Stamped[F] | None, report: F, now: datetime) -> Stamped[F]:
    """The facet after the report: what was held, or the report if it is greater."""
    if stamped is None or report.key > stamped.report.key:
        return Stamped(report, now)
    if report.key == stamped.report.key and canonical_json(report) > canonical_json(stamped.report):
        return Stamped(report, now)
    return stamped
