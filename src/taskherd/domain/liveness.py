"""Silence, judged by our own clock and only over time in which we were listening.

The watermark is the instant since which the report queue is known to be drained without a gap, by every worker that
takes from it; None while it is not. All silences are counted from it at the earliest, so downtime proves nothing. A
mass of silences in one sweep is distrusted, and believed only when it has lasted.
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
"""The share of connected agents that must not be lost in one sweep without a second look."""

MIN_MASS = 5
"""Below this many lost agents there is no mass."""

MAX_SKEW = timedelta(seconds=30)
"""How far the clocks of workers may lie apart."""


@value(frozen=True, slots=True)
class WorkerWatermark:
    """Since when one worker has known its queue to be drained; None: it does not know it now."""

    seen_at: datetime
    drained_since: datetime | None


@value(frozen=True, slots=True)
class Timeouts:
    """How long each silence may last."""

    agent_lost_after: timedelta
    agent_connect_timeout: timedelta
    build_timeout: timedelta
    request_ttl: timedelta
    mass_silence_hold: timedelta


def watermark(workers: Sequence[WorkerWatermark], now: datetime, stale_after: timedelta) -> datetime | None:
    """Since when all live workers have been drained; None if one is not, or has been silent for a moment itself.

    A worker that takes from the queue and stands still may hold heartbeats that nobody else has seen; so it counts
    until ``stale_after``, by which its deliveries have been handed to others.
    """
    live = [worker for worker in workers if now - worker.seen_at <= stale_after]
    since = [worker.drained_since for worker in live]
    if not since or any(at is None for at in since):
        return None
    return max(at for at in since if at is not None)


def silence_duration(at: datetime | None, since: datetime, now: datetime) -> timedelta:
    """How long it has been silent, of the time since the watermark.

    A word from a moment ahead of ``now`` was taken by another worker, or just before we looked. One from further ahead
    was taken by a clock that was wrong, and says nothing.
    """
    return now - (max(at, since) if at is not None and is_plausible(at, now) else since)


def is_plausible(at: datetime, now: datetime) -> bool:
    """Whether what happened ``at`` may have happened by ``now``, as far as clocks can tell."""
    return at <= now + MAX_SKEW


def detect_loss(state: TaskState, since: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """The memory with the verdict on its agent's silence, by the time drained since the watermark."""
    agent = agent_of(state)
    number = state.number
    if agent is None or (state.silence and state.silence.build_number == number):
        return state
    if is_connected(state):
        if silence_duration(state.last_heartbeat[number], since, now) > timeouts.agent_lost_after:
            return replace(state, silence=Silence(number, lost=True))
    elif (
        number not in state.last_heartbeat
        and silence_duration(state.first_seen.get(number), since, now) > timeouts.agent_connect_timeout
    ):
        return replace(state, silence=Silence(number, lost=False))
    return state


def time_out_build(state: TaskState, since: datetime, now: datetime, timeouts: Timeouts) -> TaskState:
    """The memory with the latest build given up, if nobody took up its request or it fell silent."""
    if not state.active:
        return state
    key = state.build.report.key
    silent = silence_duration(state.build.received_at, since, now)
    what = {Transition.START: "start", Transition.STOP: "stop", Transition.DELETE: "deletion"}
    if state.pending_build == key[0]:
        if silent <= timeouts.request_ttl:
            return state
        error = f"No runner took up the workspace {what[state.build.report.transition]} in time."
    else:
        if silent <= timeouts.build_timeout:
            return state
        error = f"Nothing was heard of the workspace {what[state.build.report.transition]} for too long."
    return replace(state, timed_out=TimedOut(key[0], key[1], error), pending_build=None)


def next_deadline(
    state: TaskState, timeouts: Timeouts, now: datetime, since: datetime | None = None
) -> datetime | None:
    """When this memory wants to be looked at for the silence of a connecting agent or a build; None: never.

    ``since``: the watermark, from which silence is counted at the earliest; None where it is not known.
    """
    times: list[datetime] = []
    if state.active:
        wait = timeouts.request_ttl if state.pending_build == state.number else timeouts.build_timeout
        times.append(_later(state.build.received_at, since, now) + wait)
    first_seen = state.first_seen.get(state.number)
    judged = state.silence is not None and state.silence.build_number == state.number
    if first_seen and not judged and state.number not in state.last_heartbeat and agent_of(state):
        times.append(_later(first_seen, since, now) + timeouts.agent_connect_timeout)
    return min(times, default=None)


def _later(at: datetime, since: datetime | None, now: datetime) -> datetime:
    at = at if is_plausible(at, now) else now  # by a clock that has been set back since; else it would be waited for
    return at if since is None else max(at, since)


class MassLossGuard(StrEnum):
    """What to do with the agents that would be lost in one sweep."""

    ACCEPT = "believe"
    HOLD = "hold"


def guard_mass_loss(connected_agents: int, would_lose: int, held_for: timedelta, timeouts: Timeouts) -> MassLossGuard:
    """Whether to believe that so many agents are lost at once. ``held_for``: drained time since the first hold."""
    mass = would_lose >= MIN_MASS and 100 * would_lose >= MASS_PERCENT * connected_agents
    return MassLossGuard.HOLD if mass and held_for < timeouts.mass_silence_hold else MassLossGuard.ACCEPT
