"""Requests for builds, and the steps of an accepted delete."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.liveness import is_due
from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.task import MAX_BUILD_NUMBER, MAX_REQUESTED_BUILDS, Deletion, TaskState, request_build
from taskherd.domain.value import replace

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff


def initial_state(task_id: UUID, now: datetime) -> TaskState:
    """Return the state of a new task: build 1, a start, is requested."""
    stamped, number = request_build(task_id, None, Transition.START, now)
    return TaskState(build=stamped, requested_builds={number: Transition.START}, unanswered_build=number)


def is_exhausted(state: TaskState) -> bool:
    """Return whether no build number is left for another request."""
    return state.build_number >= MAX_BUILD_NUMBER


def request_next_build(task_id: UUID, state: TaskState, transition: Transition, now: datetime) -> TaskState:
    """Return the task state after a request for the next build."""
    stamped, number = request_build(task_id, state, transition, now)
    requested = {**state.requested_builds, number: transition}
    if len(requested) > MAX_REQUESTED_BUILDS:
        del requested[min(requested)]
    return replace(state, build=stamped, requested_builds=requested, unanswered_build=number)


def advance_delete(task_id: UUID, state: TaskState, now: datetime, backoff: Backoff) -> TaskState:
    """Advance an accepted delete by one step: request its build, wait, schedule a retry, retry, or finish.

    The delete build is requested when no other build is active. One that failed or timed out is requested again after a
    backoff, under the next number.
    """
    deletion = state.deletion
    if deletion is None or deletion.done or state.has_active_build:
        return state
    deleting = state.build.report.transition is Transition.DELETE
    if deleting and state.job_status is JobStatus.SUCCEEDED:
        return replace(state, deletion=Deletion(deletion.attempts, None, done=True))
    if is_exhausted(state):
        return state
    wait = timedelta(seconds=backoff.longest(deletion.attempts))
    if deletion.attempts == 0 or (deletion.retry_at is not None and is_due(deletion.retry_at, wait, now)):
        after = request_next_build(task_id, state, Transition.DELETE, now)
        return replace(after, deletion=Deletion(deletion.attempts + 1))
    if deletion.retry_at is None:
        return replace(state, deletion=replace(deletion, retry_at=now + wait))
    return state
