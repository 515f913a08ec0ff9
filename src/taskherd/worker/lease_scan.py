"""Read the leases in parts: each sweep takes the next ranges of blocks, for as long as its time lasts.

The ranges are taken in an order that spreads those of any sweep evenly over the table, so that the share of silent
agents among them stands for all. A table that is small enough is read completely by each sweep.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from taskherd.domain.liveness import MAX_SKEW
from taskherd.domain.value import value
from taskherd.store import leases
from taskherd.store.engine import StatementTimeout, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.store import AsyncEngine

log = structlog.get_logger(__name__)

RANGE_BLOCKS = 4
"""Blocks of a range, which is read completely or not at all: 32 KiB, about 180 leases."""

MAX_RANGES = 256
"""Maximum number of ranges that one statement reads."""

STATEMENT_TIME = timedelta(seconds=2)
"""Maximum time of one statement; after a longer one the next reads half as many ranges."""

SCAN_TIME = 0.5
"""Seconds after which a sweep starts no further statement."""

MAX_SILENT = 20_000
"""Number of silent agents after which a sweep reads no further."""


@value(frozen=True, slots=True)
class SilentRange:
    """The silent tasks of a range, and the position in the order from which a scan continues after it."""

    silent: Sequence[UUID]
    next_position: int


@value(frozen=True, slots=True)
class LeaseSample:
    """What one sweep read: the number of leases, the number of silent ones, and the silent tasks, range by range."""

    connected: int
    lost: int
    ranges: Sequence[SilentRange]


def spread(ranges: int) -> int:
    """Return the number of positions in the order of so many ranges: the next power of two."""
    return 1 << max(0, ranges - 1).bit_length()


def range_at(position: int, positions: int) -> int:
    """Return the range at a position of the order: the position with its bits reversed (van der Corput's sequence).

    Positions whose range does not exist are skipped. The ranges of consecutive positions are spread evenly, and a table
    that grows keeps its order until the number of its ranges reaches the next power of two.
    """
    return int(f"{position:0{positions.bit_length() - 1}b}"[::-1], 2) if positions > 1 else 0


class LeaseScan:
    """A position in the leases, from which each sweep continues."""

    def __init__(self) -> None:
        """Start at the first range."""
        self._position = 0
        self._at_once = MAX_RANGES

    def continue_at(self, position: int) -> None:
        """Have the next ``read`` start at ``position``."""
        self._position = position

    async def read(self, engine: AsyncEngine, now: datetime, lost_after: timedelta) -> LeaseSample:
        """Read leases from the current position until all are read, or ``SCAN_TIME`` is over; keep the position.

        If a statement takes too long, return what was read before it.
        """
        async with transaction(engine) as connection:
            ranges = -(-await leases.count_blocks(connection) // RANGE_BLOCKS)
        remaining = self._order(ranges)
        connected = lost = 0
        found: list[SilentRange] = []
        until = monotonic() + SCAN_TIME
        while chunk := [each for _, each in zip(range(self._at_once), remaining, strict=False)]:
            began = monotonic()
            try:
                async with transaction(engine) as connection:
                    read = await leases.scan(
                        connection,
                        [first * RANGE_BLOCKS for first, _ in chunk],
                        RANGE_BLOCKS,
                        before=now - lost_after,
                        until=now + MAX_SKEW,
                        time_limit=STATEMENT_TIME,
                    )
            except StatementTimeout as error:
                # Not an interruption: whether heartbeats arrive is what the probes tell, not this statement.
                log.warning("reading leases took too long, reading fewer at once", ranges=len(chunk), reason=str(error))
                if not found and self._at_once == 1:
                    found.append(SilentRange((), chunk[0][1]))  # one range must not keep the others from being read
                self._at_once = max(1, self._at_once // 2)
                break
            connected += sum(each.connected for each in read)
            lost += sum(len(each.silent) for each in read)
            found += [SilentRange(each.silent, after) for each, (_, after) in zip(read, chunk, strict=True)]
            if monotonic() - began < STATEMENT_TIME.total_seconds() / 8:
                self._at_once = min(MAX_RANGES, 2 * self._at_once)
            if monotonic() > until or lost >= MAX_SILENT:
                break
        return LeaseSample(connected, lost, found)

    def _order(self, ranges: int) -> Iterator[tuple[int, int]]:
        """Yield each range once, from the current position on, with the position after it."""
        positions = spread(ranges)
        for offset in range(positions):
            position = (self._position + offset) % positions
            if (number := range_at(position, positions)) < ranges:
                yield number, position + 1
