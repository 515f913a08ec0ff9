"""The order in which the ranges of the leases are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.store import leases
from taskherd.store.engine import StatementTimeout
from taskherd.store.leases import LeaseRange
from taskherd.worker import lease_scan
from taskherd.worker.lease_scan import LeaseScan, range_at, spread
from tests.harness.histories import NOON


def order(scan: LeaseScan, ranges: int) -> list[int]:
    """Return the ranges in the order in which the next sweep would read them."""
    return [number for number, _ in scan._order(ranges)]


@pytest.mark.parametrize("ranges", [0, 1, 2, 3, 7, 8, 9, 1000])
def test_each_range_is_read_once(ranges: int) -> None:
    """From any position, a complete scan reads each range exactly once, then starts again where it began."""
    for position in (0, 1, ranges // 2, ranges, 10 * ranges + 3):
        scan = LeaseScan()
        scan.continue_at(position)
        assert sorted(order(scan, ranges)) == list(range(ranges))


def test_the_next_sweep_continues_after_the_last_range() -> None:
    """The position after a range leads to the next one of the order."""
    scan = LeaseScan()
    first = list(scan._order(100))
    scan.continue_at(first[29][1])
    assert order(scan, 100)[:70] == [number for number, _ in first[30:]]
    assert order(scan, 100)[70:] == [number for number, _ in first[:30]]


def test_the_ranges_of_a_sweep_are_spread_over_the_table() -> None:
    """Any 64 consecutive ranges of the order take 4 to 12 of each eighth of the table, like a good sample."""
    scan = LeaseScan()
    ranges = order(scan, 1000)
    for start in range(0, 900, 7):
        eighths = [number * 8 // 1000 for number in ranges[start : start + 64]]
        assert all(4 <= eighths.count(eighth) <= 12 for eighth in range(8))


def test_the_order_survives_growth() -> None:
    """A table that grows within a power of two keeps the order of the ranges that it had."""
    scan = LeaseScan()
    grown = [number for number in order(scan, 1000) if number < 600]
    assert grown == order(scan, 600)
    assert spread(600) == spread(1000) == spread(1024) == 1024
    assert [spread(ranges) for ranges in range(6)] == [1, 1, 2, 4, 4, 8]
    assert [range_at(position, 8) for position in range(8)] == [0, 4, 2, 6, 1, 5, 3, 7]


LOST_AFTER, SECOND = timedelta(minutes=2), timedelta(seconds=1)


class Table:
    """A table of leases with so many blocks, each range of which has two leases and so many silent ones."""

    def __init__(self, blocks: int, silent: int = 1) -> None:
        self.blocks, self.silent = blocks, silent
        self.seconds = 1000.0
        self.times: list[float] = []
        self.slow: set[int] = set()
        self.starts: list[list[int]] = []

    async def count_blocks(self, _: object) -> int:
        """Return the number of blocks."""
        return self.blocks

    async def scan(
        self, _: object, starts: Sequence[int], blocks: int, *, before: datetime, until: datetime, time_limit: timedelta
    ) -> list[LeaseRange]:
        """Read ranges, which takes the next of ``times``."""
        assert (blocks, before, until) == (4, NOON - LOST_AFTER, NOON + 30 * SECOND)
        assert time_limit == 2 * SECOND
        self.starts.append(list(starts))
        self.seconds += self.times.pop(0) if self.times else 0
        if self.slow & {*starts}:
            raise StatementTimeout("too slow")
        return [LeaseRange(2, [UUID(int=start)] * self.silent) for start in starts]

    @property
    def sizes(self) -> list[int]:
        """The number of ranges that each statement has read."""
        return [len(each) for each in self.starts]


@asynccontextmanager
async def _no_transaction(_: object) -> AsyncIterator[None]:
    yield


async def read(monkeypatch: pytest.MonkeyPatch, table: Table, scan: LeaseScan) -> lease_scan.LeaseSample:
    """Read leases from this table."""
    table.starts.clear()
    monkeypatch.setattr(leases, "count_blocks", table.count_blocks)
    monkeypatch.setattr(leases, "scan", table.scan)
    monkeypatch.setattr(lease_scan, "transaction", _no_transaction)
    monkeypatch.setattr(lease_scan, "monotonic", lambda: table.seconds)
    engine: Any = None
    return await scan.read(engine, NOON, LOST_AFTER)


async def test_a_table_is_read_by_ranges_of_four_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one may be shorter; each is read once, and counted with its silent leases."""
    table, scan = Table(blocks=17), LeaseScan()
    sample = await read(monkeypatch, table, scan)
    assert sorted(table.starts[0]) == [0, 4, 8, 12, 16]
    assert (sample.connected, sample.lost, len(sample.ranges)) == (10, 5, 5)
    assert [each.silent for each in sample.ranges] == [[UUID(int=start)] for start in table.starts[0]]
    assert (await read(monkeypatch, Table(blocks=0), scan)).ranges == []


async def test_a_statement_reads_up_to_256_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep starts no further one once it has taken half a second, or has found 20,000 silent agents."""
    for times, silent, sizes in (
        ([], 0, [256, 256, 88]),
        ([0.25, 0.25], 0, [256, 256, 88]),
        ([0.25, 0.251], 0, [256, 256]),
        ([0.501], 0, [256]),
        ([], 79, [256]),
        ([], 40, [256, 256]),
        ([], 39, [256, 256, 88]),
    ):
        table = Table(blocks=4 * 600, silent=silent)
        table.times = list(times)
        sample = await read(monkeypatch, table, LeaseScan())
        assert table.sizes == sizes
        assert sample.lost == silent * sum(sizes)


async def test_20_000_silent_agents_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one less."""
    for silent, sizes in ((20_000, [1]), (19_999, [1, 1])):
        table, scan = Table(blocks=8, silent=silent), LeaseScan()
        scan._at_once = 1
        table.times = [0.25]
        await read(monkeypatch, table, scan)
        assert table.sizes == sizes


async def test_statements_have_the_size_that_fits_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many ranges after one that took too long, twice as many after a quick one, down to one, up to 256."""
    table, scan = Table(blocks=4 * 4096), LeaseScan()
    for size in (256, 128, 64, 32, 16, 8, 4, 2, 1, 1):
        table.slow = set(range(4 * 4096))
        sample = await read(monkeypatch, table, scan)
        assert table.sizes == [size]
        assert (len(sample.ranges), sample.connected) == (int(size == 1), 0)
        for each in sample.ranges:
            scan.continue_at(each.next_position)
    table.slow, table.times = set(), [0.25, 0.249, 0.002]
    await read(monkeypatch, table, scan)
    assert table.sizes == [1, 1, 2]
    assert table.starts[0] == [4096]
    table.times = [0.0] * 99
    await read(monkeypatch, table, scan)
    assert table.sizes[:9] == [4, 8, 16, 32, 64, 128, 256, 256, 256]
