"""Detection of missing reports, measured by the worker's clock and only over drained time.

The watermark is the time since which all workers have drained their report queues without interruption, or None while
they have not. Silence before the watermark is ignored, so downtime never counts against an agent. If most agents fall
silent at once, a network problem is likely: they are marked as lost only if that lasts.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.domain.reports import Transition
from taskherd.domain.task import Silence, TimedOut
from taskherd.domain.value import replace, value
from taskherd.domain.view import agent_of, is_connected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from taskherd.domain.task import TaskState

MASS_PERCENT = 55
"""Minimum share of connected agents, in percent, whose loss in one sweep counts as a mass loss."""

MIN_MASS = 5
"""Minimum number of lost agents in a mass loss."""

MAX_SKEW = timedelta(seconds=30)
"""Maximum difference between the clocks of two workers."""


@value(frozen=True, slots=True)
class WorkerWatermark:
    """The state of one worker: when it last updated its row, and the time since which its queues have been drained.

    ``drained_since`` is None while they are not.
    """

    seen_at: datetime
    drained_since: datetime | None


@value(frozen=True, slots=True)
class Timeouts:
    """How long each kind of report may be missing; see the settings of the same names."""

    agent_lost_after: timedelta
    agent_connect_timeout: timedelta
    build_timeout: timedelta
    request_ttl: timedelta
    mass_silence_hold: timedelta
    interrupt_timeout: timedelta


def shared_watermark(workers: Sequence[WorkerWatermark], now: datetime, stale_after: timedelta) -> datetime | None:
    """Return the time since which all live workers have been drained, or None if any is not, or no worker is live.

    A worker is live until its row is older than ``stale_after``. A worker that hangs may hold heartbeats that no other
    worker has received, so it still counts until then; by that time the broker has redelivered them to others.
    """
    live = [worker for worker in workers if now - worker.seen_at <= stale_after]
    since = [worker.drained_since for worker in live]
    if not since or any(at is None for at in since):
        return None
    return max(at for at in since if at is not None)


def silence_duration(at: datetime | None, watermark: datetime, now: datetime) -> timedelta:
    """Return the silence since ``at``, but at most the drained time since ``watermark``.

    A time slightly after ``now`` is normal: another worker recorded it, or this one between two readings of the clock.
    A time further ahead comes from a wrong clock and is ignored, like None.
    """
    return now - (max(at, watermark) if at is not None and is_plausible(at, now) else watermark)


def is_plausible(at: datetime, now: datetime) -> bool:
    """Return whether a recorded time is not in the future, allowing for the skew of clocks."""
    return at <= now + MAX_SKEW


def is_due(at: datetime, wait: timedelta, now: datetime) -> bool:
    """Return whether a time has come that was set ``wait`` ahead, or was set by a clock that is itself far ahead."""
    return now >= at or not is_plausible(at - wait, now)


def detect_loss(state: TaskState, watermark: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """Mark the build's agent as silent if it has been silent for longer than the timeout while the queues were drained.

    An agent that was connected is lost after ``agent_lost_after``. One that never sent a heartbeat takes too long to
    connect after ``agent_connect_timeout``.
    """
    agent = agent_of(state)
    number = state.build_number
    if agent is None or (state.silence and state.silence.build_number == number):
        return state
    if is_connected(state):
        if silence_duration(state.last_heartbeat[number], watermark, now) > timeouts.agent_lost_after:
            return replace(state, silence=Silence(number, lost=True))
    elif (
        number not in state.last_heartbeat
        and silence_duration(state.first_seen.get(number), watermark, now) > timeouts.agent_connect_timeout
    ):
        return replace(state, silence=Silence(number, lost=False))
    return state


def time_out_build(state: TaskState, watermark: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """Mark the latest build as timed out if no runner picked it up, or if no report about it arrives any more."""
    if not state.has_active_build:
        return state
    key = state.build.report.sort_key
    silent = silence_duration(state.build.received_at, watermark, now)
    nouns = {Transition.START: "start", Transition.STOP: "stop", Transition.DELETE: "deletion"}
    if state.unanswered_build == key[0]:
        if silent <= timeouts.request_ttl:
            return state
        error = f"No runner picked up the workspace {nouns[state.build.report.transition]} in time."
    else:
        if silent <= timeouts.build_timeout:
            return state
        error = f"No report about the workspace {nouns[state.build.report.transition]} arrived in time."
    return replace(state, timed_out=TimedOut(key[0], key[1], error), unanswered_build=None)


def next_deadline(
    state: TaskState, timeouts: Timeouts, now: datetime, watermark: datetime | None = None
) -> datetime | None:
    """Return the earlier of the build's and the agent-connect deadlines, or None if neither is pending.

    ``watermark``: the watermark, before which no silence is measured, or None if it is not known.
    """
    times: list[datetime] = []
    if state.has_active_build:
        timeout = timeouts.request_ttl if state.unanswered_build == state.build_number else timeouts.build_timeout
        times.append(silence_start(state.build.received_at, watermark, now) + timeout)
    first_seen = state.first_seen.get(state.build_number)
    is_silent = state.silence is not None and state.silence.build_number == state.build_number
    if first_seen and not is_silent and state.build_number not in state.last_heartbeat and agent_of(state):
        times.append(silence_start(first_seen, watermark, now) + timeouts.agent_connect_timeout)
    return min(times, default=None)


def silence_start(at: datetime, watermark: datetime | None, now: datetime) -> datetime:
    """Return the time from which a silence since ``at`` is measured: not before the watermark, if that is known."""
    at = at if is_plausible(at, now) else now  # if the clock was set back, do not wait until it reaches ``at`` again
    return at if watermark is None else max(at, watermark)


class MassLossDecision(StrEnum):
    """Decision about the agents that would be lost in one sweep."""

    ACCEPT = "accept"
    """Mark them as lost: they are few, or they have been silent for ``mass_silence_hold``."""
    HOLD = "hold"
    """Mark none of them: so many at once point to the network. The next sweep decides again."""


def is_mass_loss(connected_agents: int, would_lose: int) -> bool:
    """Return whether a loss of ``would_lose`` of the connected agents in one sweep points to the network."""
    return would_lose >= MIN_MASS and 100 * would_lose >= MASS_PERCENT * connected_agents


def decide_mass_loss(
    connected_agents: int, would_lose: int, held_for: timedelta, timeouts: Timeouts
) -> MassLossDecision:
    """Decide whether to accept a loss of ``would_lose`` agents in one sweep.

    ``connected_agents``: the agents that the sweep looked at. ``held_for``: drained time since the first sweep that
    held this loss.
    """
    mass = is_mass_loss(connected_agents, would_lose)
    return MassLossDecision.HOLD if mass and held_for < timeouts.mass_silence_hold else MassLossDecision.ACCEPT
