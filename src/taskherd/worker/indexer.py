"""Keep the index and the totals of the tasks up to date: apply the changes that batches have recorded.

One worker does it, the one that sweeps. Readers of lists and totals look at every change that waits, so a few may wait,
but not ever more: the indexer takes a part of each second as long as that is enough, and otherwise nearly all of it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.errors import Retry, Unavailable
from taskherd.store import task_index
from taskherd.store.engine import DataError, transaction
from taskherd.worker.maintenance import MaintenanceStep

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

MIN_INDEXED, MAX_INDEXED = 8, 250
"""Limits of the number of tasks whose changes are applied in one transaction."""

TRANSACTION_TIME: Final = 0.2
"""Seconds that such a transaction should take at most, since reports about its tasks wait for its end.

While it takes longer, as when the disk is busy, the next ones have fewer tasks.
"""

INDEX_TIME = 0.25
"""Seconds after which no further transaction begins until the next sweep, unless the index is behind."""

BEHIND_AFTER = 5.0
"""Seconds for which changes must have waited without interruption for the index to count as behind."""

REST: Final = 0.25
"""How long the indexer rests after each transaction while the index is behind, as a part of the transaction's time."""


class Indexer:
    """Applies recorded changes whenever the sweeper asks for it."""

    def __init__(self, context: WorkerContext, monotonic: Callable[[], float] = monotonic) -> None:
        """Record that no change waits. ``monotonic`` returns seconds."""
        self._context = context
        self._monotonic = monotonic
        self._requested = asyncio.Event()
        self._after = task_index.FIRST
        self._limit = MAX_INDEXED
        self._waiting_since: float | None = None

    def request(self) -> None:
        """Have the changes applied that wait."""
        self._requested.set()

    def hand_over(self) -> None:
        """Know no more of changes that wait: another worker sweeps now."""
        self._note_waiting(waits=False)

    async def run(self) -> None:
        """Apply changes whenever it was requested. A failure is logged and counted, the next request tries again."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.update()
            except (Unavailable, Retry, DataError) as error:
                log.warning("the index of the tasks cannot be updated, it is tried again", reason=str(error))
                self._context.metrics.maintenance_failures.labels(MaintenanceStep.INDEX).inc()
                self._shrink()
                self._note_waiting(waits=True)

    async def update(self) -> int:
        """Apply changes until hardly any waits, or the time for it has passed, and return their number.

        Each pass goes through the changes by task, continues where the one before ended, and begins anew at the end.
        """
        indexed = 0
        until = self._monotonic() + INDEX_TIME
        while True:
            began, after, limit = self._monotonic(), self._after, self._limit
            applied = await self._apply(after, limit)
            ended = self._monotonic()
            self._adapt_limit(ended - began)
            indexed += len(applied)
            if len(applied) < limit:
                self._after = task_index.FIRST
                if after == task_index.FIRST:
                    self._note_waiting(waits=False)
                    return indexed
            else:
                self._after = applied[-1]
            if self._is_behind:
                self._note_waiting(waits=True)
                await self._rest((ended - began) * REST)
            elif ended > until:
                self._note_waiting(waits=True)
                return indexed

    async def _apply(self, after: UUID, limit: int) -> list[UUID]:
        async with transaction(self._context.engine) as connection:
            return await task_index.apply(connection, limit, after)

    def _adapt_limit(self, seconds: float) -> None:
        """Choose how many tasks the next transaction has, after one that took so long."""
        if seconds > TRANSACTION_TIME:
            self._shrink()
        elif seconds < TRANSACTION_TIME / 2:
            self._limit = min(MAX_INDEXED, self._limit * 2)

    def _shrink(self) -> None:
        self._limit = max(MIN_INDEXED, self._limit // 2)

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @property
    def _is_behind(self) -> bool:
        return self._waiting_since is not None and self._monotonic() - self._waiting_since >= BEHIND_AFTER

    def _note_waiting(self, *, waits: bool) -> None:
        was_behind, now = self._is_behind, self._monotonic()
        if not waits:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        self._context.metrics.index_lag.set(0.0 if self._waiting_since is None else now - self._waiting_since)
        if was_behind and not waits:
            log.info("the index of the tasks has caught up")
