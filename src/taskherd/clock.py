"""The one clock: the database's time, carried on by this machine's monotonic clock between two looks at it.

So all workers share a time, whatever their own clocks say, and a wall clock that jumps moves nothing.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

JUMP = timedelta(seconds=5)
"""A correction greater than this is a jump of the database's clock: every silence is timed anew."""


class Clock:
    """Tells the time. Before the first correction it goes by this machine's wall clock."""

    def __init__(self) -> None:
        """Start from this machine's wall clock."""
        self._base = datetime.now(UTC)
        self._mark = time.monotonic()

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        return self._base + timedelta(seconds=time.monotonic() - self._mark)

    def correct(self, told: datetime) -> bool:
        """Go by what the database told just now; whether that was a jump."""
        jumped = abs(told - self.now()) > JUMP
        self._base, self._mark = told.astimezone(UTC), time.monotonic()
        return jumped
