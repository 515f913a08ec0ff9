"""Confirmed events that cannot leave the outbox, because another transaction keeps rows of their tasks locked.

Somebody has left a ``DELETE FROM outbox …`` open in psql, say. The events of these tasks wait here, so that those of
others go on; a look every second finds out which are free again (docs/adr/0004).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from taskherd.store import outbox
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

RECHECK_EVERY: Final = 1.0
"""Seconds between two looks whether rows are still locked."""

MAX_HELD: Final = 20_000
"""Maximum number of events that wait for locks, and of their tasks; further ones are left to the outbox."""


class ConfirmedEvent(NamedTuple):
    """What identifies an event that the broker has, and when it occurred."""

    task_id: UUID
    version: int
    occurred_at: datetime


class LockedEvents:
    """The confirmed events of tasks whose rows in the outbox were locked when they were last looked at."""

    def __init__(self) -> None:
        self._last: dict[UUID, int] = {}
        """The locked tasks, each with its last version that is to leave the outbox."""
        self._held: dict[ConfirmedEvent, None] = {}
        self._released: list[ConfirmedEvent] = []
        """What the last look has released, which mostly leaves the outbox before the next one."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not (self._last or self._released)

    def keys(self) -> list[tuple[UUID, int]]:
        """Return (task id, version) of the events that are not to be published again from the outbox."""
        return [(event.task_id, event.version) for events in (self._held, self._released) for event in events]

    def divide(self, confirmed: Iterable[ConfirmedEvent]) -> tuple[list[ConfirmedEvent], list[ConfirmedEvent]]:
        """Keep the events of locked tasks; return those of others, and those of locked tasks that have no room."""
        others: list[ConfirmedEvent] = []
        without_room: list[ConfirmedEvent] = []
        for event in confirmed:
            if event.task_id not in self._last:
                others.append(event)
                continue
            self._last[event.task_id] = max(self._last[event.task_id], event.version)
            if event in self._held or len(self._held) < MAX_HELD:
                self._held[event] = None
            else:
                without_room.append(event)
        return others, without_room

    async def look(self, context: WorkerContext, confirmed: Iterable[ConfirmedEvent]) -> bool:
        """Find the locked tasks of events that could not be removed in time, and return whether there are some.

        Raises:
            Unavailable, Retry: the database cannot be asked.
        """
        last: dict[UUID, int] = {}
        for event in confirmed:
            last[event.task_id] = max(last.get(event.task_id, 0), event.version)
        locked = sorted(await _find_locked(context, last))
        if locked:
            log.warning("rows of the outbox are locked, their events wait", tasks=len(locked), first=str(locked[0]))
        for task_id in locked[: max(0, MAX_HELD - len(self._last))]:
            self._last[task_id] = last[task_id]
        return bool(locked)

    async def release(self, context: WorkerContext) -> list[ConfirmedEvent]:
        """Look which tasks are free again, and return their events, each task's in the order of their versions.

        Raises:
            Unavailable, Retry: the database cannot be asked.
        """
        looked_at = dict(self._last)
        free = looked_at.keys() - await _find_locked(context, looked_at)
        for task_id in free:
            del self._last[task_id]
        self._released = sorted(event for event in self._held if event.task_id in free)
        for event in self._released:
            del self._held[event]
        return self._released


async def _find_locked(context: WorkerContext, last: Mapping[UUID, int]) -> frozenset[UUID]:
    if not last:
        return frozenset()
    async with transaction(context.engine) as connection:
        return await outbox.find_locked(connection, last)
