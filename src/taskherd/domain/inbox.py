"""The inbox: user inputs are sent to the agent one at a time, in order, and never while the agent is busy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.interrupts import counts_as_working
from taskherd.domain.liveness import is_plausible
from taskherd.domain.reports import ExitReason
from taskherd.domain.value import replace, value
from taskherd.domain.view import (
    Status,
    agent_exit_of,
    agent_of,
    app_health_of,
    asking_requests,
    current_app_status,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import TaskState

SETTLE_TIME = timedelta(seconds=5)
"""Maximum time to wait, after a delivery, for a new state of the agent before the next input is sent."""

MAX_QUEUED = 1_000
"""Maximum number of inputs of a task that wait. All undelivered ones of a task end in one batch, with its agent."""


@value(frozen=True, slots=True)
class QueuedInput:
    """An input that waits; one that ``steers`` was sent with an interrupt, and goes before those that do not."""

    input_id: UUID
    steers: bool


def is_busy(state: TaskState) -> bool:
    """Return whether the agent works, asks something or is being interrupted, or an input is in flight."""
    if state.inbox.in_flight is not None or state.interrupt is not None or counts_as_working(state):
        return True
    return bool(asking_requests(state))


def is_ready(state: TaskState, now: datetime) -> bool:
    """Return whether an input may be sent now.

    The task must be active, its agent not busy, and since the last delivery either a new state of the agent was
    received or ``SETTLE_TIME`` has passed. Inputs for an agent that an interrupt had to end wait for the next one.
    """
    if status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE or is_busy(state):
        return False
    if _was_interrupted(state):
        return False
    settled_at = _settled_at(state, now)
    return settled_at is None or now >= settled_at


def _settled_at(state: TaskState, now: datetime) -> datetime | None:
    """Return until when a new state of the agent is waited for, or None if none is.

    A delivery that a wrong clock has noted far in the future is ignored.
    """
    delivered = state.inbox.delivered_at
    stamped = current_app_status(state)
    if delivered is None or not is_plausible(delivered, now):
        return None
    return None if stamped is not None and stamped.received_at > delivered else delivered + SETTLE_TIME


def next_check_at(state: TaskState, now: datetime) -> datetime | None:
    """Return when the next input can be sent without another report, or None if only a report can make it possible."""
    if not state.inbox.queued or is_busy(state) or _was_interrupted(state):
        return None
    if status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE:
        return None
    return _settled_at(state, now) or now


def send_next(
    state: TaskState, queued: Iterable[UUID], decided: Collection[UUID], now: datetime
) -> tuple[TaskState, UUID | None]:
    """Send the next input: return the new task state, and the input, or None if none may be sent or none is left.

    Args:
        state: the task state after all reports of the batch.
        queued: the first inputs of the queue in order, at least one more than there are ``decided`` ones.
        decided: inputs that have an outcome, whether they had been sent before or not.
        now: the time at which the input is sent.
    """
    if not state.inbox.queued or not is_ready(state, now):
        return state, None
    for input_id in queued:
        if input_id not in decided:
            return mark_sent(state, input_id), input_id
    return fail_all(state), None  # all inputs that were counted as queued got an outcome before they were sent


def in_order(queue: Iterable[QueuedInput], new: Iterable[QueuedInput]) -> list[UUID]:
    """Return queued inputs in the order in which they are sent: steers first, each kind first come, first served.

    Args:
        queue: the first inputs of the queue, in this order.
        new: inputs that are to be appended, in the order in which they were accepted.
    """
    return [each.input_id for each in sorted((*queue, *new), key=lambda each: not each.steers)]


def _was_interrupted(state: TaskState) -> bool:
    """Return whether the agent of the latest build was ended because a user interrupted it."""
    stamped = agent_exit_of(state)
    return stamped is not None and stamped.report.why is ExitReason.INTERRUPTED


def is_full(state: TaskState) -> bool:
    """Return whether no further input may be queued."""
    return state.inbox.queued >= MAX_QUEUED


def enqueue(state: TaskState) -> TaskState:
    """Count one more queued input."""
    return replace(state, inbox=replace(state.inbox, queued=state.inbox.queued + 1))


def mark_sent(state: TaskState, input_id: UUID) -> TaskState:
    """Mark a queued input as the one in flight."""
    inbox = state.inbox
    return replace(state, inbox=replace(inbox, queued=inbox.queued - 1, in_flight=input_id))


def record_outcome(state: TaskState, input_id: UUID, now: datetime, *, delivered: bool) -> TaskState:
    """Record the outcome of an input; has no effect unless that input is in flight."""
    inbox = state.inbox
    if inbox.in_flight != input_id:
        return state
    at = now if delivered else inbox.delivered_at
    return replace(state, inbox=replace(inbox, in_flight=None, delivered_at=at))


def requeue_undelivered(state: TaskState) -> tuple[TaskState, UUID | None]:
    """Put the input in flight back into the queue if the agent was interrupted and has ended: it did not get the input.

    Return the new state, and that input, or None if there is none. A runner reports what an agent got before its end.
    """
    inbox = state.inbox
    if inbox.in_flight is None or not _was_interrupted(state):
        return state, None
    return replace(state, inbox=replace(inbox, queued=inbox.queued + 1, in_flight=None)), inbox.in_flight


def fail_all(state: TaskState) -> TaskState:
    """Empty the inbox, because all undelivered inputs failed or got an outcome."""
    return replace(state, inbox=replace(state.inbox, queued=0, in_flight=None))
