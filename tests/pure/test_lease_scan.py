"""The order in which the ranges of the leases are read."""

from __future__ import annotations

import pytest

from taskherd.worker.lease_scan import LeaseScan, range_at, spread


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
    assert [range_at(position, 8) for position in range(8)] == [0, 4, 2, 6, 1, 5, 3, 7]
