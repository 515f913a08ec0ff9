"""Interrupts: a user ends what the agent does. While one is open, nothing leaves the inbox and another one joins it.

Rules, which the tests in ``tests/pure/domain/test_interrupts.py`` check as laws:

1. An open interrupt ends with the first report about it, with a later build of its task, or when no report came for the
   timeout; so it always ends.
2. What a report says replaces what the worker concluded from its absence, but no other report does.
3. ``stopped`` and ``ended`` overrule the state that the same agent reported before: to the inbox, it does not work.
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
    number = report.sort_key[0]
    is_unreported = last is not None and last.id == report.interrupt_id and last.unreported
    if state.interrupt is not None and state.interrupt.id == report.interrupt_id:
        number = state.interrupt.build_number
        state = replace(state, interrupt=None)
    elif not is_unreported:
        return state
    return _end(state, number, EndedInterrupt(report.interrupt_id, report.outcome, now, report.detail))


def end_superseded(state: TaskState, now: datetime) -> TaskState:
    """End an open interrupt of an agent that a later build stops or has replaced."""
    interrupt = state.interrupt
    if interrupt is None or interrupt.build_number == state.build_number:
        return state
    state = replace(state, interrupt=None)
    ended = EndedInterrupt(interrupt.id, InterruptOutcome.ENDED, now, NEXT_BUILD, unreported=True)
    return _end(state, interrupt.build_number, ended)


def expire(state: TaskState, watermark: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """Fail an open interrupt about which nothing was reported for longer than the timeout, in drained time."""
    interrupt = state.interrupt
    if interrupt is None or silence_duration(interrupt.since, watermark, now) <= timeouts.interrupt_timeout:
        return state
    state = replace(state, interrupt=None)
    failed = EndedInterrupt(interrupt.id, InterruptOutcome.FAILED, now, NOT_REPORTED, unreported=True)
    return _end(state, interrupt.build_number, failed)


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


def _end(state: TaskState, build_number: int, ended: EndedInterrupt) -> TaskState:
    """Record what became of the interrupt of a build's agent; the state of a later agent is not overruled."""
    stamped = current_app_status(state)
    latest = state.build_number if stamped is None else stamped.report.sort_key[0]
    if ended.outcome is InterruptOutcome.FAILED or build_number != latest:
        return replace(state, last_interrupt=ended)
    overruled = None if stamped is None else stamped.report.sort_key
    # as after a new state: the next input need not wait for the agent to settle
    inbox = replace(state.inbox, delivered_at=None)
    return replace(state, last_interrupt=replace(ended, overruled=overruled), inbox=inbox)
