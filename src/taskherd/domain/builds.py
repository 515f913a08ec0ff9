"""Which build a task needs next: asking for one, and carrying an accepted delete to its end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.task import MAX_BUILD_NUMBER, MAX_REQUESTED_BUILDS, Deletion, TaskState, request_build
from taskherd.domain.value import replace

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff


def initial_state(task_id: UUID, now: datetime) -> TaskState:
    """The memory of a task that was just created: its first build, a start, is asked for."""
    stamped, number = request_build(task_id, None, Transition.START, now)
    return TaskState(build=stamped, requested_builds={number: Transition.START}, pending_build=number)


def is_exhausted(state: TaskState) -> bool:
    """Whether no build number is left to ask under."""
    return state.number >= MAX_BUILD_NUMBER


def request_next_build(task_id: UUID, state: TaskState, transition: Transition, now: datetime) -> TaskState:
    """The memory after asking for the next build."""
    stamped, number = request_build(task_id, state, transition, now)
    asked = {**state.requested_builds, number: transition}
    if len(asked) > MAX_REQUESTED_BUILDS:
        del asked[min(asked)]
    return replace(state, build=stamped, requested_builds=asked, pending_build=number)


def advance_delete(task_id: UUID, state: TaskState, now: datetime, backoff: Backoff) -> TaskState:
    """The memory of a deleted task one step on: its delete asked for, waited for, retried or done.

    A delete begins when no other build is active. One that failed or was given up is asked for again, after a backoff,
    under the next number.
    """
    deletion = state.deletion
    if deletion is None or deletion.done or state.active:
        return state
    deleting = state.build.report.transition is Transition.DELETE
    if deleting and state.job is JobStatus.SUCCEEDED:
        return replace(state, deletion=Deletion(deletion.attempts, None, done=True))
    if is_exhausted(state):
        return state
    if deletion.attempts == 0 or (deletion.retry_at is not None and now >= deletion.retry_at):
        after = request_next_build(task_id, state, Transition.DELETE, now)
        return replace(after, deletion=Deletion(deletion.attempts + 1))
    if deletion.retry_at is None:
        return replace(
            state, deletion=replace(deletion, retry_at=now + timedelta(seconds=backoff.longest(deletion.attempts)))
        )
    return state
