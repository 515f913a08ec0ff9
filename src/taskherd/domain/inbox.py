"""When the next input of a task's inbox may go to its agent: one at a time, in order, never while it is busy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.reports import State
from taskherd.domain.value import replace
from taskherd.domain.view import Status, agent_of, app_health_of, said, status_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import Memory

SETTLE = timedelta(seconds=5)
"""How long a delivered input is given to show in the agent's state before the next one goes."""


def busy(memory: Memory) -> bool:
    """Whether the agent cannot take an input now: it is working, or an input is in flight."""
    held = said(memory)
    return memory.inbox.in_flight is not None or (held is not None and held.report.state is State.WORKING)


def ready(memory: Memory, now: datetime) -> bool:
    """Whether an input may go out now: the task is active, not busy, and has shown a state since the last one."""
    if status_of(memory, agent_of(memory), app_health_of(memory)) is not Status.ACTIVE or busy(memory):
        return False
    delivered = memory.inbox.delivered_at
    held = said(memory)
    if delivered is None or (held is not None and held.taken_at > delivered):
        return True
    return now >= delivered + SETTLE


def due(memory: Memory) -> datetime | None:
    """When the inbox wants to be looked at although nothing is reported; None: not by itself."""
    inbox = memory.inbox
    if not inbox.queued or busy(memory) or inbox.delivered_at is None:
        return None
    if status_of(memory, agent_of(memory), app_health_of(memory)) is not Status.ACTIVE:
        return None
    held = said(memory)
    silent = held is None or held.taken_at <= inbox.delivered_at
    return inbox.delivered_at + SETTLE if silent else None


def send_next(
    memory: Memory, queued: Iterable[UUID], decided: Collection[UUID], now: datetime
) -> tuple[Memory, UUID | None]:
    """Return the memory after the next input went out, and that input; None where none may go or none is left.

    Args:
        memory: the memory after all reports of the batch.
        queued: the first inputs of the queue in order, at least one more than there are ``decided`` ones.
        decided: inputs whose outcome is known by now, whether they were sent before or not.
        now: the instant at which the input goes out.
    """
    if not memory.inbox.queued or not ready(memory, now):
        return memory, None
    for input_id in queued:
        if input_id not in decided:
            return sent(memory, input_id), input_id
    return emptied(memory), None  # everything that was still counted as queued had been decided without being sent


def accepted(memory: Memory) -> Memory:
    """The memory after an input was put at the end of the queue."""
    return replace(memory, inbox=replace(memory.inbox, queued=memory.inbox.queued + 1))


def sent(memory: Memory, input_id: UUID) -> Memory:
    """The memory after the first of the queue went out."""
    inbox = memory.inbox
    return replace(memory, inbox=replace(inbox, queued=inbox.queued - 1, in_flight=input_id))


def decided(memory: Memory, input_id: UUID, now: datetime, *, delivered: bool) -> Memory:
    """The memory after the outcome of an input became known."""
    inbox = memory.inbox
    if inbox.in_flight != input_id:
        return memory
    at = now if delivered else inbox.delivered_at
    return replace(memory, inbox=replace(inbox, in_flight=None, delivered_at=at))


def emptied(memory: Memory) -> Memory:
    """The memory after all inputs that were not delivered have failed."""
    return replace(memory, inbox=replace(memory.inbox, queued=0, in_flight=None))
