"""When tables are pruned, erased from and counted, without a database."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from taskherd.errors import Retry, Unavailable
from taskherd.worker.context import WorkerContext
from taskherd.worker.maintenance import EVERY, PARTITIONS_RETRY, SETTLED_AFTER, Maintenance
from taskherd.worker.timer_checks import TimerChecks
from tests.harness.histories import NOON


class RecordingMaintenance(Maintenance):
    """A maintenance that only records the seconds at which it does each step."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(cast("WorkerContext", None), cast("TimerChecks", None), lambda: self.seconds)
        self.created: list[float] = []
        self.dropped: list[float] = []
        self.pruned: list[float] = []
        self.erased: list[float] = []
        self.counted: list[float] = []
        self.locked = self.outage = False

    async def run_at(self, *times: float) -> None:
        """Run the maintenance at each of these times, while no worker has a watermark."""
        for self.seconds in times:
            await self.run_maintenance(NOON, None)

    async def _create_partitions(self, now: datetime) -> None:
        assert now == NOON
        self.created.append(self.seconds)

    async def _drop_partitions(self, now: datetime) -> None:
        assert now == NOON
        self.dropped.append(self.seconds)
        if self.locked:
            raise Retry("A backup reads the partition")

    async def _update_tables(self, now: datetime) -> None:
        assert now == NOON

    async def _prune(self, now: datetime) -> None:
        assert now == NOON
        self.pruned.append(self.seconds)
        if self.outage:
            raise Unavailable("The database can't be reached")

    async def erase_once(self, now: datetime) -> int:
        """Record the time, and find nothing to erase."""
        assert now == NOON
        self.erased.append(self.seconds)
        return 0

    async def _count(self, now: datetime) -> None:
        assert now == NOON
        self.counted.append(self.seconds)


async def test_tables_are_maintained_once_per_interval() -> None:
    """The first run does all of it, and the next one as soon as the interval has passed, whatever the clock says."""
    maintenance = RecordingMaintenance()
    await maintenance.run_at(0, 0, EVERY - 0.01, EVERY, EVERY + 0.01)
    assert maintenance.pruned == maintenance.erased == maintenance.counted == [0, EVERY]
    assert maintenance.created == maintenance.dropped == [0, EVERY]


async def test_a_failed_step_keeps_no_other_from_being_done() -> None:
    """What follows it is done, and the next run tries it again."""
    maintenance = RecordingMaintenance()
    maintenance.outage = True
    await maintenance.run_at(0, 1, EVERY)
    assert maintenance.pruned == maintenance.erased == maintenance.counted == [0, EVERY]


async def test_a_partition_that_is_locked_is_dropped_minutes_later() -> None:
    """Each try makes writers wait for a moment, so there are few; all else goes on."""
    maintenance = RecordingMaintenance()
    maintenance.locked = True
    await maintenance.run_at(0, EVERY, PARTITIONS_RETRY - 0.01, PARTITIONS_RETRY + EVERY)
    assert maintenance.created == maintenance.dropped == [0, PARTITIONS_RETRY + EVERY]
    assert maintenance.counted == [0, EVERY, PARTITIONS_RETRY - 0.01, PARTITIONS_RETRY + EVERY]


async def test_nothing_is_deleted_until_the_clock_has_not_jumped_for_an_hour() -> None:
    """Each jump begins the hour anew. Partitions are created and rows are counted meanwhile."""
    maintenance = RecordingMaintenance()
    await maintenance.run_at(0)
    maintenance.on_jump()
    await maintenance.run_at(EVERY, SETTLED_AFTER - 1)
    maintenance.on_jump()
    times = [SETTLED_AFTER + EVERY, 2 * SETTLED_AFTER - 1.01, 2 * SETTLED_AFTER + EVERY]
    await maintenance.run_at(*times)
    assert maintenance.dropped == maintenance.pruned == maintenance.erased == [0, times[-1]]
    assert maintenance.created == maintenance.counted == [0, EVERY, SETTLED_AFTER - 1, *times]
