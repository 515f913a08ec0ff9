"""When tables are pruned, erased from and counted, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import erasure, partitions
from taskherd.store.engine import DataError, LockTimeout, StatementTimeout
from taskherd.store.parked_reports import ParkedReport
from taskherd.worker import maintenance as maintenance_module
from taskherd.worker.context import Retention
from taskherd.worker.maintenance import EVERY, MAX_CREATED, MAX_ROUNDS, PRUNE_TOTALS_EVERY, SETTLED_AFTER, Maintenance
from taskherd.worker.timer_checks import TimerChecks
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

HOUR = timedelta(hours=1)
EXPIRE_TIME, PARTITIONS_RETRY, MAX_ERASED = 2.0, 300.0, 100
RETENTION = Retention(HOUR, 0, HOUR, HOUR, HOUR, HOUR, HOUR)


class RecordingMaintenance(Maintenance):
    """A maintenance that only records the seconds at which it does each step."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.metrics = Metrics()
        context = partial_context(now=lambda: NOON, retention=RETENTION, metrics=self.metrics)
        super().__init__(context, cast("TimerChecks", None), lambda: self.seconds)
        self.created: list[float] = []
        self.dropped: list[float] = []
        self.pruned: list[float] = []
        self.totals_pruned: list[float] = []
        self.erased: list[float] = []
        self.counted: list[float] = []
        self.expired: list[float] = []
        self.expirable = self.erasable = 0
        self.locked = False
        self.problem: Exception | None = None

    async def run_at(self, *times: float, watermark: datetime | None = None) -> None:
        """Run the maintenance at each of these times, by default while no worker has a watermark."""
        for self.seconds in times:
            await self.run_maintenance(NOON, watermark)

    async def expire_parked_once(self, now: datetime) -> int:
        """Record the time, and expire a part, for which a second passes."""
        assert now == NOON
        self.expired.append(self.seconds)
        self.seconds += 1
        self.expirable -= 1
        return int(self.expirable >= 0)

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

    async def _prune_totals(self) -> None:
        self.totals_pruned.append(self.seconds)

    async def _prune(self, now: datetime) -> None:
        assert now == NOON
        self.pruned.append(self.seconds)
        if self.problem is not None:
            raise self.problem

    async def erase_once(self, now: datetime) -> int:
        """Record the time, and erase as many as are there, or as fit."""
        assert now == NOON
        self.erased.append(self.seconds)
        erased = min(self.erasable, MAX_ERASED)
        self.erasable -= erased
        is_last = erased < MAX_ERASED
        self._erased_until = erasure.START if is_last else erasure.ErasureCursor(NOON, UUID(int=self.erasable + 1))
        return erased

    async def _count(self, now: datetime) -> None:
        assert now == NOON
        self.counted.append(self.seconds)


async def test_tables_are_maintained_once_per_interval() -> None:
    """The first run does all of it, and the next one as soon as the interval has passed, whatever the clock says."""
    maintenance = RecordingMaintenance()
    await maintenance.run_at(0, 0, EVERY - 0.01, EVERY, EVERY + 0.01)
    assert maintenance.pruned == maintenance.erased == maintenance.counted == [0, EVERY]
    assert maintenance.created == maintenance.dropped == [0, EVERY]


async def test_all_totals_are_read_seldom() -> None:
    """What grows with the number of owners and templates is read once an hour, not with each count."""
    maintenance = RecordingMaintenance()
    await maintenance.run_at(0, EVERY, PRUNE_TOTALS_EVERY - EVERY, PRUNE_TOTALS_EVERY, PRUNE_TOTALS_EVERY + EVERY)
    assert maintenance.totals_pruned == [0, PRUNE_TOTALS_EVERY]
    assert len(maintenance.counted) == 5


@pytest.mark.parametrize(
    "problem", [Unavailable("no database"), Retry("a conflict"), DataError("no value"), KeyError("a bug")]
)
async def test_a_failed_step_keeps_no_other_from_being_done(problem: Exception) -> None:
    """What follows it is done, and the next run tries it again; it is logged and counted each time."""
    maintenance = RecordingMaintenance()
    maintenance.problem = problem
    with capture_logs() as logged:
        await maintenance.run_at(0, 1, EVERY)
    assert maintenance.pruned == maintenance.erased == maintenance.counted == [0, EVERY]
    assert [(each["step"], each["reason"]) for each in logged] == [("prune", repr(problem))] * 2
    failures = maintenance.metrics.registry.get_sample_value
    assert failures("taskherd_maintenance_failures_total", {"step": "prune"}) == 2
    assert not failures("taskherd_maintenance_failures_total", {"step": "count"})


@pytest.mark.parametrize(
    ("watermark", "expired"), [(None, []), (NOON - HOUR, []), (NOON - HOUR - timedelta.resolution, [0])]
)
async def test_parked_reports_expire_only_after_a_watermark_of_their_age(
    watermark: datetime | None, expired: list[float]
) -> None:
    """Otherwise their tasks may have been created meanwhile. Nothing more is done if none has expired."""
    maintenance = RecordingMaintenance()
    await maintenance.run_at(0, watermark=watermark)
    assert maintenance.expired == expired


async def test_parked_reports_expire_for_a_limited_time() -> None:
    """The next run goes on, also before the tables are due again."""
    maintenance = RecordingMaintenance()
    maintenance.expirable = 100
    await maintenance.run_at(0, 10, watermark=NOON - 2 * HOUR)
    parts = range(int(EXPIRE_TIME))
    assert maintenance.expired == [*parts, *(10 + part for part in parts)]
    assert maintenance.counted == [EXPIRE_TIME]


@pytest.mark.parametrize(
    ("erasable", "rounds"), [(MAX_ERASED - 1, 1), (MAX_ERASED, 2), (1000 * MAX_ERASED, MAX_ROUNDS)]
)
async def test_deleted_tasks_are_erased_until_none_is_left(erasable: int, rounds: int) -> None:
    """Part by part, a limited number of them in one run."""
    maintenance = RecordingMaintenance()
    maintenance.erasable = erasable
    await maintenance.run_at(0)
    assert len(maintenance.erased) == rounds


async def test_maintenance_is_done_each_time_that_it_is_requested() -> None:
    """With the watermark at that time; two requests before it begins are one."""
    maintenance = RecordingMaintenance()
    running = asyncio.create_task(maintenance.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert maintenance.counted == []
    maintenance.request(None)
    maintenance.request(NOON - 2 * HOUR)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (maintenance.counted, maintenance.expired, running.done()) == ([1], [0], False)
    maintenance.request(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (maintenance.expired, running.done()) == ([0], False)
    running.cancel()
    await asyncio.wait({running})


@pytest.mark.parametrize(
    ("sizes", "count"), [([], 0), ([4], 1), ([11], 1), ([4, 6], 2), ([4, 6, 1], 2), ([4, 7], 1), ([11, 1], 1)]
)
def test_reports_that_expire_together_have_a_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], count: int
) -> None:
    """Up to the maximum, or a single larger one; of characters that need two bytes both count."""
    monkeypatch.setattr(maintenance_module, "MAX_EXPIRED_BYTES", 2 * 10)
    rows = [ParkedReport(index, UUID(int=1), NOON, "é" * size) for index, size in enumerate(sizes)]
    assert [row.id for row in maintenance_module._limit_bytes(rows)] == list(range(count))


async def test_a_partition_that_is_locked_is_dropped_minutes_later() -> None:
    """Each try makes writers wait for a moment, so there are few; all else goes on."""
    maintenance = RecordingMaintenance()
    maintenance.locked = True
    await maintenance.run_at(0, EVERY, PARTITIONS_RETRY - 0.01, PARTITIONS_RETRY + EVERY)
    assert maintenance.created == maintenance.dropped == [0, PARTITIONS_RETRY + EVERY]
    assert maintenance.counted == [0, EVERY, PARTITIONS_RETRY - 0.01, PARTITIONS_RETRY + EVERY]


async def test_a_partition_that_was_locked_is_tried_again_after_five_minutes() -> None:
    """Not a moment later."""
    maintenance = RecordingMaintenance()
    maintenance.locked = True
    await maintenance.run_at(0, PARTITIONS_RETRY - EVERY, PARTITIONS_RETRY)
    assert maintenance.dropped == [0, PARTITIONS_RETRY]


class Creating(Maintenance):
    """A maintenance that only creates partitions: those of ``weeks``, relative to this one, of each table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, events: Sequence[int], logs: Sequence[int] = ()) -> None:
        self.seconds = 0.0
        self.weeks = {"task_events": list(events), "task_logs": list(logs)}
        self.takes = 0.0
        self.failing: dict[str, Exception] = {}
        self.created: list[tuple[str, int]] = []
        monkeypatch.setattr(maintenance_module, "transaction", self._no_transaction)
        monkeypatch.setattr(partitions, "limit_lock_waits", self._limit_lock_waits)
        monkeypatch.setattr(partitions, "next_partition", self._next_partition)
        monkeypatch.setattr(partitions, "create", self._create)
        context = partial_context(engine="engine", retention=RETENTION, metrics=Metrics())
        super().__init__(context, cast("TimerChecks", None), lambda: self.seconds)

    @asynccontextmanager
    async def _no_transaction(self, engine: object) -> AsyncIterator[str]:
        assert engine == "engine"
        yield "connection"

    async def _limit_lock_waits(self, connection: object, limit: timedelta) -> None:
        assert (connection, limit) == ("connection", timedelta(seconds=0.2))

    async def _next_partition(
        self, connection: object, parent: str, now: datetime, limit: timedelta, *, past: bool
    ) -> date:
        assert (connection, now, limit) == ("connection", NOON, timedelta(seconds=4))
        missing = [week for week in self.weeks[parent] if past or week >= 0]
        return partitions.monday(NOON) + timedelta(weeks=max(missing) if missing else 0)

    async def _create(self, connection: object, parent: str, week: date, limit: timedelta) -> bool:
        assert (connection, limit) == ("connection", timedelta(seconds=4))
        if parent in self.failing:
            raise self.failing[parent]
        number = (week - partitions.monday(NOON)) // timedelta(weeks=1)
        if number not in self.weeks[parent]:
            return False
        self.weeks[parent].remove(number)
        self.seconds += self.takes
        self.created.append((parent, number))
        return True

    async def create_after(self, seconds: float) -> list[tuple[str, int]]:
        """Create partitions so many seconds later, and return those that were: each table and week."""
        self.seconds += seconds
        self.created = []
        await self._create_partitions(NOON)
        return self.created


async def test_partitions_are_created_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are to come, and in each run one of a past week; a limited number in one run."""
    creating = Creating(monkeypatch, [2, 1, 0, -1, -2], [0])
    assert await creating.create_after(0) == [*(("task_events", week) for week in (2, 1, 0, -1)), ("task_logs", 0)]
    assert await creating.create_after(15) == [("task_events", -2)]
    assert await creating.create_after(15) == []
    creating = Creating(monkeypatch, range(MAX_CREATED + 2))
    assert [len(await creating.create_after(15)) for _ in range(3)] == [MAX_CREATED, 2, 0]


async def test_after_a_partition_that_has_taken_long_others_get_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one of the table comes with the next run."""
    creating = Creating(monkeypatch, [2, 1], [2])
    creating.takes = 0.6
    assert await creating.create_after(0) == [("task_events", 2), ("task_logs", 2)]
    creating.takes = 0.4
    creating.weeks["task_events"].append(0)
    assert await creating.create_after(15) == [("task_events", 1), ("task_events", 0)]


@pytest.mark.parametrize("failure", [StatementTimeout("too slow"), LockTimeout("locked")])
async def test_a_table_that_gets_no_partitions_keeps_the_other_from_none(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """The failure is told all the same."""
    creating = Creating(monkeypatch, [1], [1])
    creating.failing = {"task_events": failure}
    with pytest.raises(type(failure)):
        await creating.create_after(0)
    assert creating.created == [("task_logs", 1)]
    creating.failing = {"task_logs": failure}
    with pytest.raises(type(failure)):
        await creating.create_after(0)
    assert creating.created == [("task_events", 1)]


async def test_rows_of_past_weeks_are_looked_for_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in each run while some are found: all of the default partition is read."""
    creating = Creating(monkeypatch, [-1, -2])
    assert await creating.create_after(0) == [("task_events", -1)]
    assert await creating.create_after(15) == [("task_events", -2)]
    assert await creating.create_after(15) == []
    creating.weeks["task_logs"] = [-3]
    assert await creating.create_after(3599) == []
    assert await creating.create_after(1) == [("task_logs", -3)]


async def test_rows_are_deleted_again_an_hour_after_a_jump() -> None:
    """Not a moment later."""
    maintenance = RecordingMaintenance()
    maintenance.on_jump()
    await maintenance.run_at(SETTLED_AFTER)
    assert maintenance.dropped == maintenance.pruned == maintenance.erased == [SETTLED_AFTER]


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
