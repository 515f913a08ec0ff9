"""The tasks of which another transaction keeps a row locked: the messages for them wait, and hold up no others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from taskherd import retry
from taskherd.errors import Retry, Unavailable
from taskherd.store.engine import STATEMENT_BUGS
from taskherd.worker.load import find_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from taskherd.worker.context import WorkerContext

RECHECK_EVERY: Final = 0.5
"""Seconds between two looks whether tasks are still locked."""


class LockedTasks:
    """The locked tasks of one consumer; ``watch`` forgets those that are free again."""

    def __init__(self, context: WorkerContext, on_free: Callable[[], None]) -> None:
        """Create it; ``on_free`` is called when some tasks are free again."""
        self._context = context
        self._on_free = on_free
        self._ids: set[UUID] = set()
        self._are_some = asyncio.Event()

    @property
    def ids(self) -> Collection[UUID]:
        """The tasks that were locked when they were last looked at."""
        return self._ids

    def add(self, task_ids: Collection[UUID]) -> None:
        """Note that tasks are locked."""
        self._ids.update(task_ids)
        self._are_some.set()

    async def watch(self) -> None:
        """Look again and again which of the tasks are still locked, until canceled. Outages only delay it."""
        failures = 0
        while True:
            await self._are_some.wait()
            await asyncio.sleep(max(RECHECK_EVERY, retry.delay(failures) if failures else 0.0))
            looked_at = frozenset(self._ids)
            try:
                free = looked_at - await find_locked(self._context, looked_at)
            except (Retry, Unavailable, *STATEMENT_BUGS) as error:
                failures += 1
                if not isinstance(error, Retry):
                    self._context.on_error(f"looking for locked tasks: {error}")
                continue
            failures = 0
            if free:
                self._ids -= free
                if not self._ids:
                    self._are_some.clear()
                self._on_free()
