"""Recovery: notice an agent that has stalled, and start a drained or lost agent again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain import builds
from taskherd.domain.liveness import is_due, silence_duration, silence_start
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import (
    AgentHeartbeat,
    AgentRequest,
    AgentUsage,
    InputOutcomeReport,
    JobStatus,
    TaskLog,
    Transition,
)
from taskherd.domain.task import LastLog, LossRestarts, Stall
from taskherd.domain.value import replace, value
from taskherd.domain.view import asking_requests, is_lost, is_working

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff
    from taskherd.domain.reports import Report
    from taskherd.domain.task import TaskState

LOG_RESOLUTION = timedelta(seconds=10)
"""Precision with which the time of the latest log entries is kept: most of them then write nothing else."""


@value(frozen=True, slots=True)
class RecoveryPolicy:
    """What a template version asks for.

    Attributes:
        stalled_after: time without a word after which an agent that is working counts as stalled; zero for never.
        max_loss_restarts: how often a lost agent is started again until a user pauses or resumes the task.
        loss_backoff: how long each of these restarts waits.
    """

    stalled_after: timedelta
    max_loss_restarts: int
    loss_backoff: Backoff


def record_word(state: TaskState, report: Report, outcome: ReportOutcome, now: datetime) -> TaskState:
    """Note that the agent has reported something other than a heartbeat, which ends a stall of its build."""
    if outcome is not ReportOutcome.APPLIED or isinstance(report, AgentHeartbeat | InputOutcomeReport):
        return state
    number = report.sort_key[0]
    if state.stall is not None and state.stall.build_number == number:
        state = replace(state, stall=None)
    if isinstance(report, TaskLog | AgentUsage | AgentRequest):
        latest = state.last_log
        is_newer = latest is None or number > latest.build_number
        if latest is not None and number == latest.build_number:
            is_newer = not latest.at <= now < latest.at + LOG_RESOLUTION
        if is_newer:
            state = replace(state, last_log=LastLog(number, now))
    return state


def detect_stall(state: TaskState, watermark: datetime, now: datetime, policy: RecoveryPolicy) -> TaskState:
    """Mark a working agent as stalled if only heartbeats came for longer than the policy allows, in drained time."""
    if not _can_stall(state, policy):
        return state
    since = _last_word_at(state)
    if silence_duration(since, watermark, now) <= policy.stalled_after:
        return state
    return replace(state, stall=Stall(state.build_number, since))


def stall_deadline(
    state: TaskState, watermark: datetime | None, now: datetime, policy: RecoveryPolicy
) -> datetime | None:
    """Return when a working agent counts as stalled unless it reports something, or None if it is stalled or idle."""
    if not _can_stall(state, policy):
        return None
    return silence_start(_last_word_at(state), watermark, now) + policy.stalled_after


def restart_drained(task_id: UUID, state: TaskState, now: datetime) -> TaskState:
    """Request the next start if a runner stopped the workspace of its own accord, and asked for a restart.

    Nothing is requested if a user has paused or deleted the task: the stop then answers that request, or a delete
    follows it.
    """
    report = state.build.report
    asked_for = report.transition is Transition.STOP and report.restart
    if not asked_for or state.build_number in state.requested_builds or state.deletion is not None:
        return state
    if state.job_status not in {JobStatus.SUCCEEDED, JobStatus.FAILED} or builds.is_exhausted(state):
        return state
    return builds.request_next_build(task_id, state, Transition.START, now)


def restart_lost(task_id: UUID, state: TaskState, now: datetime, policy: RecoveryPolicy) -> TaskState:
    """Advance the restart of a lost agent by one step: schedule it, wait, request the next start, or call it off."""
    restarts = state.loss_restarts
    may_restart = (
        is_lost(state)
        and state.job_status is JobStatus.SUCCEEDED
        and state.deletion is None
        and restarts.count < policy.max_loss_restarts
        and not builds.is_exhausted(state)
    )
    if not may_restart:
        return state if restarts.retry_at is None else replace(state, loss_restarts=LossRestarts(restarts.count))
    wait = timedelta(seconds=policy.loss_backoff.longest(restarts.count + 1))
    if restarts.retry_at is None:
        return replace(state, loss_restarts=LossRestarts(restarts.count, now + wait))
    if not is_due(restarts.retry_at, wait, now):
        return state
    after = builds.request_next_build(task_id, state, Transition.START, now)
    return replace(after, loss_restarts=LossRestarts(restarts.count + 1))


def _can_stall(state: TaskState, policy: RecoveryPolicy) -> bool:
    is_stalled = state.stall is not None and state.stall.build_number == state.build_number
    return policy.stalled_after > timedelta() and not is_stalled and is_working(state) and not asking_requests(state)


def _last_word_at(state: TaskState) -> datetime:
    """Return when the latest report about this build's agent other than a heartbeat was received, or a bit later."""
    number = state.build_number
    facets = (state.build, state.lifecycle, state.app_health, state.app_status)
    times = [facet.received_at for facet in facets if facet is not None and facet.report.build_number == number]
    if state.last_log is not None and state.last_log.build_number == number:
        times.append(state.last_log.at + LOG_RESOLUTION)
    return max(times)
