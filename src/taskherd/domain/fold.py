"""The fold: combines a task state and one report into the next task state.

Each facet is a maximum over its reports, so the order, repetition and batching of the reports do not change the result;
only the times of receipt differ. The rules, which the tests in ``tests/pure/domain`` check as laws:

1. A facet is replaced only by a report with a greater ``(build_number, seq)``, and as a whole. If both are equal, the
   report with the greater canonical JSON wins, so two different reports with one key give the same result in any order.
2. A workspace build concerns up to five facets: the build, and the workspace, runner, agent and app that it names.
   Each of them is compared separately.
3. The last heartbeat and the time the agent was first seen are kept per build number, for the 16 highest, regardless
   of seq.
4. A build report whose transition is not the one that the worker requested under its number is a conflict and changes
   nothing.
5. Rules 1 to 3 are for build numbers in range, see ``is_out_of_range``: a single report with the greatest number would
   otherwise outlast every build to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, assert_never

from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentInterrupted,
    AgentLifecycle,
    AgentRequest,
    AgentUsage,
    AppHealth,
    AppStatus,
    InputOutcomeReport,
    TaskLog,
    WorkspaceBuild,
)
from taskherd.domain.task import MAX_BUILDS_AHEAD, MAX_TRACKED_BUILDS, Stamped, TaskState
from taskherd.domain.value import replace, value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from taskherd.domain.reports import Report

F = TypeVar("F", WorkspaceBuild, AgentLifecycle, AgentHeartbeat | AgentDisconnected, AgentExit, AppHealth, AppStatus)


@value(frozen=True, slots=True)
class FoldResult:
    """The task state after a report, and the outcome of the report: applied, stale or a conflict."""

    state: TaskState
    outcome: ReportOutcome


def with_build_number(report: Report, state: TaskState | None) -> Report:
    """Fill in a missing build number: that of the task's latest build, or 1 if the task does not exist yet."""
    if report.build_number is not None:
        return report
    return replace(report, build_number=state.build_number if state else 1)


def is_out_of_range(report: Report, state: TaskState) -> bool:
    """Return whether a report's build number is too far above the highest one that the worker requested.

    Provisioners number builds of their own accord too, but only one after the other.
    """
    number = report.build_number
    return number is not None and number > max(state.requested_builds, default=1) + MAX_BUILDS_AHEAD


def fold(state: TaskState, report: Report, now: datetime) -> FoldResult:  # noqa: PLR0911 - one return for each facet
    """Fold a report, received at ``now`` and with its build number set, into the task state.

    Log entries and the outcomes of inputs and interrupts are not folded and leave it unchanged; ``usage`` folds usage.
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
        case AgentExit():
            ended = _greater(state.agent_exit, report, now)
            return _fold_result(state, state if ended is state.agent_exit else replace(state, agent_exit=ended))
        case AppHealth():
            health = _greater(state.app_health, report, now)
            return _fold_result(state, state if health is state.app_health else replace(state, app_health=health))
        case AppStatus():
            status = _greater(state.app_status, report, now)
            return _fold_result(state, state if status is state.app_status else replace(state, app_status=status))
        case TaskLog() | InputOutcomeReport() | AgentUsage() | AgentInterrupted() | AgentRequest():
            return FoldResult(state, ReportOutcome.APPLIED)
        case _:
            assert_never(report)


def _fold_result(before: TaskState, after: TaskState) -> FoldResult:
    return FoldResult(after, ReportOutcome.STALE if after is before else ReportOutcome.APPLIED)


def _build(state: TaskState, report: WorkspaceBuild, now: datetime) -> FoldResult:
    number = report.sort_key[0]
    if state.requested_builds.get(number, report.transition) is not report.transition:
        return FoldResult(state, ReportOutcome.CONFLICT)
    after = _record_first_seen(state, report, now) if report.agent_id else state
    build = _greater(state.build, report, now)
    workspace = _greater(state.workspace, report, now) if report.workspace else state.workspace
    runner = _greater(state.runner, report, now) if report.runner else state.runner
    agent = _greater(state.agent, report, now) if report.agent_id else state.agent
    app = _greater(state.app, report, now) if report.app else state.app
    before = (state.build, state.workspace, state.runner, state.agent, state.app)
    facets = (build, workspace, runner, agent, app)
    if any(new is not old for new, old in zip(facets, before, strict=True)):
        after = replace(after, build=build, workspace=workspace, runner=runner, agent=agent, app=app)
    if build is not state.build:
        after = replace(after, timed_out=None)
    if state.unanswered_build == number:
        after = replace(after, unanswered_build=None)
    return _fold_result(state, after)


def _heartbeat(state: TaskState, report: AgentHeartbeat, now: datetime) -> TaskState:
    number = report.sort_key[0]
    after = _connection(_record_first_seen(state, report, now), report, now)
    silence = after.silence
    if silence is not None and silence.build_number == number:
        silence = None
    return replace(after, last_heartbeat=_keep_latest_builds(after.last_heartbeat, number, now), silence=silence)


def _connection(state: TaskState, report: AgentHeartbeat | AgentDisconnected, now: datetime) -> TaskState:
    stamped = _greater(state.connection, report, now)
    return state if stamped is state.connection else replace(state, connection=stamped)


def _record_first_seen(state: TaskState, report: Report, now: datetime) -> TaskState:
    number = report.sort_key[0]
    if number in state.first_seen:
        return state
    first_seen = _keep_latest_builds(state.first_seen, number, now)
    return replace(state, first_seen=first_seen) if number in first_seen else state


def _keep_latest_builds(times: Mapping[int, datetime], number: int, at: datetime) -> Mapping[int, datetime]:
    """Return ``times`` with the time of build ``number`` added, without the lowest build if there are too many."""
    after = {**times, number: at}
    if len(after) > MAX_TRACKED_BUILDS:
        del after[min(after)]
    return after


def _greater(stamped: Stamped[F] | None, report: F, now: datetime) -> Stamped[F]:
    """Return the greater of the current facet and the report."""
    if stamped is None or report.sort_key > stamped.report.sort_key:
        return Stamped(report, now)
    if report.sort_key == stamped.report.sort_key and canonical_json(report) > canonical_json(stamped.report):
        return Stamped(report, now)
    return stamped
