"""How fast one agent may add to its task's log: a follower stops reading while there is no budget.

So an agent that prints without end fills neither the runner's outbox nor the queue of reports; its output waits in the
segments on disk, which are bounded too, or in its own pipe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskherd.messages.limits import LOG_BURST

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_SHARE: Final = 16
"""Number of bytes of events and messages of an agent that count as one of its log, whatever they show."""
LINE_COST: Final = 64
"""Number of bytes that each line of events counts for, however short: it takes time."""
READ_COST: Final = 512
"""Number of bytes that each read of an agent's output counts for at least: it takes time, however little it finds."""


@dataclass(frozen=True, slots=True)
class LogRates:
    """Bytes and entries per second of one task's log."""

    bytes: float
    entries: float


class LogBudget:
    """Two token buckets, of bytes and of entries, which hold ``LOG_BURST`` seconds of their rate."""

    def __init__(self, rates: LogRates, now: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._now = now
        self._bytes, self._entries = rates.bytes * LOG_BURST, rates.entries * LOG_BURST
        self._refilled_at = now()

    @property
    def has_room(self) -> bool:
        """True if more entries may be added now; ``spend`` accepts them in any case."""
        now = self._now()
        passed, self._refilled_at = max(0.0, now - self._refilled_at), now
        self._bytes = min(self._rates.bytes * LOG_BURST, self._bytes + passed * self._rates.bytes)
        self._entries = min(self._rates.entries * LOG_BURST, self._entries + passed * self._rates.entries)
        return self._bytes > 0 and self._entries > 0

    def spend(self, entries: int, size: int) -> None:
        """Count entries that were added, with ``size`` bytes in all."""
        self._entries -= entries
        self._bytes -= size
