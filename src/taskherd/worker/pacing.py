"""How long a batch of reports waits for more.

A batch costs the same few milliseconds of CPU at any size, and the next one starts when it ends. So a worker is busy
for half of its time from a few hundred reports a second on, and what makes a batch faster only makes batches smaller.
While reports come so fast that waiting makes a batch much larger, it waits; otherwise not at all (docs/adr/0056).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

MAX_WAIT: Final = 0.2
"""Seconds for which a batch waits at most."""
WAITS_FROM, WAITS_LONGEST_FROM = 600.0, 900.0
"""Deliveries per second from which a batch waits, and from which it waits until it is to have enough."""
ENOUGH: Final = 200
"""The number of deliveries with which a batch does not wait."""
MAX_RATE: Final = 4 * WAITS_LONGEST_FROM
"""Higher rates count as this one, so that batches soon stop waiting after a burst."""


class Pace:
    """The rate at which deliveries come, averaged over about a second; ``now`` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rate = 0.0
        self._at = now()

    def note(self, deliveries: int) -> None:
        """Note a batch with this many deliveries."""
        self._rate = min(self._decayed() + deliveries, MAX_RATE)
        self._at = self._now()

    def wait(self, buffered: int) -> float:
        """Return the seconds for which the next batch, of which so many are there, waits for more deliveries."""
        rate = self._decayed()
        if rate <= WAITS_FROM:
            return 0.0
        share = min(1.0, (rate - WAITS_FROM) / (WAITS_LONGEST_FROM - WAITS_FROM))
        return share * min(MAX_WAIT, max(0, ENOUGH - buffered) / rate)

    def _decayed(self) -> float:
        """Return the rate by now: after a second a delivery has lost most of its weight in it."""
        return self._rate * math.exp(self._at - self._now())
