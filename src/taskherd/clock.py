"""The database's clock, extrapolated with the local monotonic clock between two reads.

All workers therefore share one time, independent of their own wall clocks and of jumps of these.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

JUMP = timedelta(seconds=5)
"""A larger correction is a jump of the database's clock, after which every silence is measured from the start."""


class Clock:
    """The current time; before the first correction, that of the local wall clock."""

    def __init__(self) -> None:
        """Start with the local wall clock."""
        self._base = datetime.now(UTC)
        self._base_monotonic = time.monotonic()

    def now(self) -> datetime:
        """Return the current time, timezone-aware, in UTC."""
        return self._base + timedelta(seconds=time.monotonic() - self._base_monotonic)

    def correct(self, database_time: datetime) -> bool:
        """Set the clock to the time that was just read from the database; return whether that was a jump."""
        jumped = abs(database_time - self.now()) > JUMP
        self._base, self._base_monotonic = database_time.astimezone(UTC), time.monotonic()
        return jumped
