"""When the next input of a task's inbox may go to its agent: one at a time, in order, never while it is busy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.reports import AgentState
from taskherd.domain.value import replace
from taskherd.domain.view import Status, agent_of, app_health_of, current_app_status, status_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import TaskState

SETTLE_TIME = timedelta(seconds=5)
"""How long a delivered input is given to show in the agent's state before the next one goes."""


def is_busy(state: TaskState) -> bool:
    """Whether the agent cannot take an input now: it is working, or an input is in flight."""
    stamped = current_app_status(state)
    return state.inbox.in_flight is not None or (stamped is not None and stamped.report.state is AgentState.WORKING)


def is_ready(state: TaskState, now: datetime) -> bool:
    """Whether an input may go out now: the task is active, not busy, and has shown a state since the last one."""
    if status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE or is_busy(state):
        return False
    delivered = state.inbox.delivered_at
    stamped = current_app_status(state)
    if delivered is None or (stamped is not None and stamped.received_at > delivered):
        return True
    return now >= delivered + SETTLE_TIME


def next_check_at(state: TaskState) -> datetime | None:
    """When the inbox wants to be looked at although nothing is reported; None: not by itself."""
    inbox = state.inbox
    if not inbox.queued or is_busy(state) or inbox.delivered_at is None:
        return None
    if status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE:
        return None
    stamped = current_app_status(state)
    silent = stamped is None or stamped.received_at <= inbox.delivered_at
    return inbox.delivered_at + SETTLE_TIME if silent else None


def send_next(
    state: TaskState, queued: Iterable[UUID], decided: Collection[UUID], now: datetime
) -> tuple[TaskState, UUID | None]:
    """Return the memory after the next input went out, and that input; None where none may go or none is left.

    Args:
        state: the memory after all reports of the batch.
        queued: the first inputs of the queue in order, at least one more than there are ``record_outcome`` ones.
        decided: inputs whose outcome is known by now, whether they were sent before or not.
        now: the instant at which the input goes out.
    """
    if not state.inbox.queued or not is_ready(state, now):
        return state, None
    for input_id in queued:
        if input_id not in decided:
            return mark_sent(state, input_id), input_id
    return fail_all(state), None  # everything that was still counted as queued had been decided without being sent


def enqueue(state: TaskState) -> TaskState:
    """The memory after an input was put at the end of the queue."""
    return replace(state, inbox=replace(state.inbox, queued=state.inbox.queued + 1))


def mark_sent(state: TaskState, input_id: UUID) -> TaskState:
    """The memory after the first of the queue went out."""
    inbox = state.inbox
    return replace(state, inbox=replace(inbox, queued=inbox.queued - 1, in_flight=input_id))


def record_outcome(state: TaskState, input_id: UUID, now: datetime, *, delivered: bool) -> TaskState:
    """The memory after the outcome of an input became known."""
    inbox = state.inbox
    if inbox.in_flight != input_id:
        return state
    at = now if delivered else inbox.delivered_at
    return replace(state, inbox=replace(inbox, in_flight=None, delivered_at=at))


def fail_all(state: TaskState) -> TaskState:
    """The memory after all inputs that were not delivered have failed."""
    return replace(state, inbox=replace(state.inbox, queued=0, in_flight=None))
