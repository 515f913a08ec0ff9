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
    canonical,
)
from taskherd.domain.task import BUILDS_KEPT, Held, Memory
from taskherd.domain.value import replace, value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from taskherd.domain.reports import Report

F = TypeVar("F", WorkspaceBuild, AgentLifecycle, AgentHeartbeat | AgentDisconnected, AppHealth, AppStatus)


@value(frozen=True, slots=True)
class Folded:
    """The memory after a report, and what became of the report: applied, stale or a conflict."""

    memory: Memory
    outcome: ReportOutcome


def numbered(report: Report, memory: Memory | None) -> Report:
    """The report with its build number known: the task's latest build when we take it, 1 while there is none."""
    if report.build_number is not None:
        return report
    return replace(report, build_number=memory.number if memory else 1)


def fold(memory: Memory, report: Report, now: datetime) -> Folded:  # noqa: PLR0911 - one return for each facet
    """Fold a report whose build number is known, taken at ``now``, into the memory.

    Log entries and input outcomes are not part of the memory, so they leave it as it is.
    """
    match report:
        case WorkspaceBuild():
            return _build(memory, report, now)
        case AgentLifecycle():
            appeared = _appear(memory, report, now)
            held = _greater(memory.lifecycle, report, now)
            return _folded(memory, replace(appeared, lifecycle=held) if held is not memory.lifecycle else appeared)
        case AgentHeartbeat():
            return Folded(_heartbeat(memory, report, now), ReportOutcome.APPLIED)
        case AgentDisconnected():
            return _folded(memory, _connection(_appear(memory, report, now), report, now))
        case AppHealth():
            health = _greater(memory.app_health, report, now)
            return _folded(memory, memory if health is memory.app_health else replace(memory, app_health=health))
        case AppStatus():
            status = _greater(memory.app_status, report, now)
            return _folded(memory, memory if status is memory.app_status else replace(memory, app_status=status))
        case TaskLog() | TaskInput():
            return Folded(memory, ReportOutcome.APPLIED)
        case _:
            assert_never(report)


def _folded(before: Memory, after: Memory) -> Folded:
    return Folded(after, ReportOutcome.STALE if after is before else ReportOutcome.APPLIED)


def _build(memory: Memory, report: WorkspaceBuild, now: datetime) -> Folded:
    number = report.key[0]
    if memory.asked.get(number, report.transition) is not report.transition:
        return Folded(memory, ReportOutcome.CONFLICT)
    after = _appear(memory, report, now) if report.agent_id else memory
    build = _greater(memory.build, report, now)
    workspace = _greater(memory.workspace, report, now) if report.workspace else memory.workspace
    runner = _greater(memory.runner, report, now) if report.runner else memory.runner
    agent = _greater(memory.agent, report, now) if report.agent_id else memory.agent
    app = _greater(memory.app, report, now) if report.app else memory.app
    before = (memory.build, memory.workspace, memory.runner, memory.agent, memory.app)
    named = (build, workspace, runner, agent, app)
    if any(new is not old for new, old in zip(named, before, strict=True)):
        after = replace(after, build=build, workspace=workspace, runner=runner, agent=agent, app=app)
    if build is not memory.build:
        after = replace(after, given_up=None)
    if memory.unanswered == number:
        after = replace(after, unanswered=None)
    return _folded(memory, after)


def _heartbeat(memory: Memory, report: AgentHeartbeat, now: datetime) -> Memory:
    number = report.key[0]
    after = _connection(_appear(memory, report, now), report, now)
    silence = after.silence
    if silence is not None and silence.build_number == number:
        silence = None
    return replace(after, heard=_keep(after.heard, number, now), silence=silence)


def _connection(memory: Memory, report: AgentHeartbeat | AgentDisconnected, now: datetime) -> Memory:
    held = _greater(memory.connection, report, now)
    return memory if held is memory.connection else replace(memory, connection=held)


def _appear(memory: Memory, report: Report, now: datetime) -> Memory:
    number = report.key[0]
    if number in memory.appeared:
        return memory
    appeared = _keep(memory.appeared, number, now)
    return replace(memory, appeared=appeared) if number in appeared else memory


def _keep(kept: Mapping[int, datetime], number: int, at: datetime) -> Mapping[int, datetime]:
    """The map with this build's instant, cut to the highest builds."""
    after = {**kept, number: at}
    if len(after) > BUILDS_KEPT:
        del after[min(after)]
    return after


def _greater(held: Held[F] | None, report: F, now: datetime) -> Held[F]:
    """The facet after the report: what was held, or the report if it is greater."""
    if held is None or report.key > held.report.key:
        return Held(report, now)
    if report.key == held.report.key and canonical(report) > canonical(held.report):
        return Held(report, now)
    return held
