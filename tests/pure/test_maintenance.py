"""When tables are pruned, erased from and counted, without a database."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import cast

import pytest

from taskherd.errors import Unavailable
from taskherd.worker.context import WorkerContext
from taskherd.worker.maintenance import EVERY, Maintenance
from tests.harness.histories import NOON

MOMENT = timedelta(microseconds=1)


class RecordingMaintenance(Maintenance):
    """A maintenance that only records when it prunes, erases and counts."""

    def __init__(self) -> None:
        super().__init__(cast("WorkerContext", None))
        self.pruned: list[datetime] = []
        self.erased: list[datetime] = []
        self.counted: list[datetime] = []
        self.outage = False

    async def _prune(self, now: datetime) -> None:
        self.pruned.append(now)

    async def erase_once(self, now: datetime) -> int:
        """Record the time, and find nothing to erase."""
        self.erased.append(now)
        return 0

    async def _count(self, now: datetime) -> None:
        if self.outage:
            raise Unavailable("The database can't be reached")
        self.counted.append(now)


async def run_at(maintenance: Maintenance, *times: datetime) -> None:
    """Run the maintenance at each of these times, while no worker has a watermark."""
    for time in times:
        await maintenance.run_maintenance(time, None)


async def test_tables_are_maintained_once_per_interval() -> None:
    """The first run does all of it, and the next one as soon as the interval has passed, not before."""
    maintenance = RecordingMaintenance()
    await run_at(maintenance, NOON, NOON, NOON + EVERY - MOMENT, NOON + EVERY, NOON + EVERY + MOMENT)
    assert maintenance.pruned == maintenance.erased == maintenance.counted == [NOON, NOON + EVERY]


async def test_a_failed_run_is_repeated_by_the_next() -> None:
    """The interval begins only when everything is done."""
    maintenance = RecordingMaintenance()
    maintenance.outage = True
    with pytest.raises(Unavailable):
        await run_at(maintenance, NOON)
    maintenance.outage = False
    await run_at(maintenance, NOON + MOMENT, NOON + 2 * MOMENT)
    assert maintenance.counted == [NOON + MOMENT]
