"""Interrupts: a user ends what the agent does. While one is open, nothing leaves the inbox and another one joins it.

Rules, which the tests in ``tests/pure/domain/test_interrupts.py`` check as laws:

1. An open interrupt ends with the first report about it, with a later build of its task, or when no report came for the
   timeout; so it always ends.
2. What a report says replaces what the worker concluded from its absence, but no other report does.
3. ``stopped`` and ``ended`` overrule the state that the agent reported before: to the inbox, the agent does not work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.liveness import silence_duration, silence_start
from taskherd.domain.reports import AgentState, InterruptOutcome
from taskherd.domain.task import EndedInterrupt, OpenInterrupt
from taskherd.domain.value import replace
from taskherd.domain.view import current_app_status

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.reports import AgentInterrupted
    from taskherd.domain.task import TaskState

NOT_REPORTED = "The runner did not report in time what became of the interrupt."
"""Detail of an interrupt that failed because no report about it came."""
NEXT_BUILD = "The workspace was stopped or started again, which ends the agent that was to be interrupted."
"""Detail of an interrupt that a later build of the task ended."""


def begin(state: TaskState, interrupt_id: UUID, now: datetime) -> TaskState:
    """Open an interrupt of the latest build's agent; none may be open."""
    return replace(state, interrupt=OpenInterrupt(interrupt_id, state.build_number, now))


def record_outcome(state: TaskState, report: AgentInterrupted, now: datetime) -> TaskState:
    """Record what became of an interrupt.

    This has no effect unless the interrupt is open, or is the last one and counts as failed only because nothing was
    reported about it.
    """
    last = state.last_interrupt
    is_open = state.interrupt is not None and state.interrupt.id == report.interrupt_id
    is_unreported = last is not None and last.id == report.interrupt_id and last.unreported
    if is_open:
        state = replace(state, interrupt=None)
    elif not is_unreported:
        return state
    return _end(state, report.interrupt_id, report.outcome, report.detail, now)


def end_superseded(state: TaskState, now: datetime) -> TaskState:
    """End an open interrupt of an agent that a later build stops or has replaced."""
    interrupt = state.interrupt
    if interrupt is None or interrupt.build_number == state.build_number:
        return state
    state = replace(state, interrupt=None)
    return _end(state, interrupt.id, InterruptOutcome.ENDED, NEXT_BUILD, now, unreported=True)


def expire(state: TaskState, watermark: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """Fail an open interrupt about which nothing was reported for longer than the timeout, in drained time."""
    interrupt = state.interrupt
    if interrupt is None or silence_duration(interrupt.since, watermark, now) <= timeouts.interrupt_timeout:
        return state
    state = replace(state, interrupt=None)
    return _end(state, interrupt.id, InterruptOutcome.FAILED, NOT_REPORTED, now, unreported=True)


def deadline(state: TaskState, watermark: datetime | None, now: datetime, timeouts: Timeouts) -> datetime | None:
    """Return when an open interrupt fails unless something is reported about it, or None without one."""
    if state.interrupt is None:
        return None
    return silence_start(state.interrupt.since, watermark, now) + timeouts.interrupt_timeout


def counts_as_working(state: TaskState) -> bool:
    """Return whether the agent reported that it works, and no interrupt has ended that since."""
    stamped = current_app_status(state)
    if stamped is None or stamped.report.state is not AgentState.WORKING:
        return False
    last = state.last_interrupt
    return last is None or last.overruled != stamped.report.sort_key


def _end(
    state: TaskState,
    interrupt_id: UUID,
    outcome: InterruptOutcome,
    detail: str | None,
    now: datetime,
    *,
    unreported: bool = False,
) -> TaskState:
    if outcome is InterruptOutcome.FAILED:
        return replace(state, last_interrupt=EndedInterrupt(interrupt_id, outcome, now, detail, unreported))
    stamped = current_app_status(state)
    overruled = None if stamped is None else stamped.report.sort_key
    ended = EndedInterrupt(interrupt_id, outcome, now, detail, unreported, overruled)
    # as after a new state: the next input need not wait for the agent to settle
    return replace(state, last_interrupt=ended, inbox=replace(state.inbox, delivered_at=None))
