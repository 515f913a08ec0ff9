"""Two lanes through the corridor: while one batch waits for the database, the next goes on if it is of other tasks.

The reports of a task thus keep their order, and no batch waits for the row locks of another. A batch that is not full
rather waits for the one before it, and grows: each costs the same few round trips, however small it is. That takes a
sixth off the 99th percentile from report to event, at 500 reports/s.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any
    from uuid import UUID

MAX_CONCURRENT_BATCHES = 2
"""Batches on their way at once."""


@dataclass(frozen=True, slots=True)
class BatchFootprint:
    """What a batch occupies a lane with: its tasks, how many deliveries it is of, and whether it must go alone."""

    tasks: frozenset[UUID]
    size: int
    alone: bool


class BatchScheduler:
    """Starts batches in ``group``, a few at once."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._loads: dict[asyncio.Task[None], BatchFootprint] = {}
        self._latest: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """How many deliveries are on their way."""
        return sum(load.size for load in self._loads.values())

    async def wait_idle(self, full: Callable[[], bool]) -> None:
        """Return when nothing is on its way, or when a lane is free and the next batch would be ``full``."""
        while self._loads and not (len(self._loads) < MAX_CONCURRENT_BATCHES and full()):
            await self._one_done()

    async def submit(
        self, load: BatchFootprint, batch: Callable[[asyncio.Task[None] | None], Coroutine[Any, Any, None]]
    ) -> None:
        """Start a batch as soon as nothing is in its way. It gets the one before it, to end after."""
        while len(self._loads) >= MAX_CONCURRENT_BATCHES or any(
            _conflicts(other, load) for other in self._loads.values()
        ):
            await self._one_done()
        self._latest = self._group.create_task(batch(self._latest), name="batch")
        self._loads[self._latest] = load
        self._latest.add_done_callback(self._loads.pop)

    async def _one_done(self) -> None:
        await asyncio.wait(self._loads, return_when=asyncio.FIRST_COMPLETED)


def _conflicts(other: BatchFootprint, load: BatchFootprint) -> bool:
    return load.alone or other.alone or not other.tasks.isdisjoint(load.tasks)
