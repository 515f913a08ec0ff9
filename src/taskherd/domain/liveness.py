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
from taskherd.domain.task import GivenUp, Silence
from taskherd.domain.value import replace, value
from taskherd.domain.view import agent_of, connected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from taskherd.domain.task import Memory

MASS_PERCENT = 55
"""The share of connected agents that must not be lost in one sweep without a second look."""

MASS_LEAST = 5
"""Below this many lost agents there is no mass."""

SKEW_MOST = timedelta(seconds=30)
"""How far the clocks of workers may lie apart."""


@value(frozen=True, slots=True)
class Listening:
    """Since when one worker has known its queue to be drained; None: it does not know it now."""

    seen_at: datetime
    drained_since: datetime | None


@value(frozen=True, slots=True)
class Patience:
    """How long each silence may last."""

    agent_lost_after: timedelta
    agent_connect_timeout: timedelta
    build_timeout: timedelta
    request_ttl: timedelta
    mass_silence_hold: timedelta


def watermark(workers: Sequence[Listening], now: datetime, stale_after: timedelta) -> datetime | None:
    """Since when all live workers have been drained; None if one is not, or has been silent for a moment itself.

    A worker that takes from the queue and stands still may hold heartbeats that nobody else has seen; so it counts
    until ``stale_after``, by which its deliveries have been handed to others.
    """
    live = [worker for worker in workers if now - worker.seen_at <= stale_after]
    since = [worker.drained_since for worker in live]
    if not since or any(at is None for at in since):
        return None
    return max(at for at in since if at is not None)


def silent_for(at: datetime | None, since: datetime, now: datetime) -> timedelta:
    """How long it has been silent, of the time since the watermark.

    A word from a moment ahead of ``now`` was taken by another worker, or just before we looked. One from further ahead
    was taken by a clock that was wrong, and says nothing.
    """
    return now - (max(at, since) if at is not None and credible(at, now) else since)


def credible(at: datetime, now: datetime) -> bool:
    """Whether what happened ``at`` may have happened by ``now``, as far as clocks can tell."""
    return at <= now + SKEW_MOST


def judge(memory: Memory, since: datetime, now: datetime, patience: Patience) -> Memory:
    """The memory with the verdict on its agent's silence, by the time drained since the watermark."""
    agent = agent_of(memory)
    number = memory.number
    if agent is None or (memory.silence and memory.silence.build_number == number):
        return memory
    if connected(memory):
        if silent_for(memory.heard[number], since, now) > patience.agent_lost_after:
            return replace(memory, silence=Silence(number, lost=True))
    elif (
        number not in memory.heard
        and silent_for(memory.appeared.get(number), since, now) > patience.agent_connect_timeout
    ):
        return replace(memory, silence=Silence(number, lost=False))
    return memory


def give_up(memory: Memory, since: datetime, now: datetime, patience: Patience) -> Memory:
    """The memory with the latest build given up, if nobody took up its request or it fell silent."""
    if not memory.active:
        return memory
    key = memory.build.report.key
    silent = silent_for(memory.build.taken_at, since, now)
    what = {Transition.START: "start", Transition.STOP: "stop", Transition.DELETE: "deletion"}
    if memory.unanswered == key[0]:
        if silent <= patience.request_ttl:
            return memory
        error = f"No runner took up the workspace {what[memory.build.report.transition]} in time."
    else:
        if silent <= patience.build_timeout:
            return memory
        error = f"Nothing was heard of the workspace {what[memory.build.report.transition]} for too long."
    return replace(memory, given_up=GivenUp(key[0], key[1], error), unanswered=None)


def deadline(memory: Memory, patience: Patience, now: datetime, since: datetime | None = None) -> datetime | None:
    """When this memory wants to be looked at for the silence of a connecting agent or a build; None: never.

    ``since``: the watermark, from which silence is counted at the earliest; None where it is not known.
    """
    times: list[datetime] = []
    if memory.active:
        wait = patience.request_ttl if memory.unanswered == memory.number else patience.build_timeout
        times.append(_later(memory.build.taken_at, since, now) + wait)
    appeared = memory.appeared.get(memory.number)
    judged = memory.silence is not None and memory.silence.build_number == memory.number
    if appeared and not judged and memory.number not in memory.heard and agent_of(memory):
        times.append(_later(appeared, since, now) + patience.agent_connect_timeout)
    return min(times, default=None)


def _later(at: datetime, since: datetime | None, now: datetime) -> datetime:
    at = at if credible(at, now) else now  # by a clock that has been set back since; else it would be waited for
    return at if since is None else max(at, since)


class Brake(StrEnum):
    """What to do with the agents that would be lost in one sweep."""

    BELIEVE = "believe"
    HOLD = "hold"


def brake(connected_agents: int, would_lose: int, held_for: timedelta, patience: Patience) -> Brake:
    """Whether to believe that so many agents are lost at once. ``held_for``: drained time since the first hold."""
    mass = would_lose >= MASS_LEAST and 100 * would_lose >= MASS_PERCENT * connected_agents
    return Brake.HOLD if mass and held_for < patience.mass_silence_hold else Brake.BELIEVE
