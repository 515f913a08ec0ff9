"""Count what becomes of tasks, and what is dead-lettered, in memory, and add it to the database every few seconds.

The counts are for pictures of the last day: a worker that is killed loses those of the last ``INTERVAL``. Adding them
in the transactions that change tasks would make all of these wait for each other at the row of the hour.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from taskherd.errors import Retry, Unavailable
from taskherd.messages.document import Ending
from taskherd.messages.events import EventKind
from taskherd.store import rates
from taskherd.store.engine import transaction
from taskherd.store.rates import RateKey, TaskCounts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from taskherd.store import AsyncEngine
    from taskherd.worker.batch import CommittedChange

INTERVAL: Final = 5.0
"""Seconds between two writes."""
MAX_KEYS: Final = 20_000
"""Maximum number of counts that wait for the database; what has no room is not counted."""
RETENTION: Final = timedelta(days=8)
"""Time for which the rates are kept."""


class Rates:
    """What this worker has counted and not yet written."""

    def __init__(self) -> None:
        self._tasks: defaultdict[RateKey, TaskCounts] = defaultdict(TaskCounts)
        self._letters: Counter[tuple[datetime, str]] = Counter()

    def count_changes(self, changes: Iterable[CommittedChange], now: datetime) -> None:
        """Count the tasks that these committed changes created, or that completed or failed with them."""
        hour = now.replace(minute=0, second=0, microsecond=0)
        for change in changes:
            created = change.kind is EventKind.CREATED
            if not created and change.ending is None:
                continue
            key = RateKey(hour, change.task.organization_id, change.task.owner_id)
            if len(self._tasks) >= MAX_KEYS and key not in self._tasks:
                continue
            counts = self._tasks[key]
            counts.created += created
            counts.completed += change.ending is Ending.COMPLETED
            counts.failed += change.ending is Ending.FAILED

    def count_dead_letter(self, reason: str, now: datetime) -> None:
        """Count a dead letter."""
        self._letters[now.replace(minute=0, second=0, microsecond=0), reason] += 1

    async def run(self, engine: AsyncEngine) -> None:
        """Write the counts every ``INTERVAL``; what cannot be written waits for the next time."""
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(Unavailable, Retry):
                await self.write_once(engine)

    async def write_once(self, engine: AsyncEngine) -> None:
        """Write the counts so far. Raise ``Unavailable`` and keep them if the database cannot be reached."""
        tasks, letters = self._tasks, self._letters
        if not tasks and not letters:
            return
        self._tasks, self._letters = defaultdict(TaskCounts), Counter()
        try:
            async with transaction(engine) as connection:
                if tasks:
                    await rates.add(connection, tasks)
                if letters:
                    await rates.add_dead_letters(connection, letters)
        except BaseException:
            self._keep(tasks, letters)
            raise

    def _keep(self, tasks: dict[RateKey, TaskCounts], letters: Counter[tuple[datetime, str]]) -> None:
        """Put counts back that were not written, beside those that were made in the meantime."""
        for key, counts in tasks.items():
            kept = self._tasks[key]
            kept.created += counts.created
            kept.completed += counts.completed
            kept.failed += counts.failed
        self._letters.update(letters)
