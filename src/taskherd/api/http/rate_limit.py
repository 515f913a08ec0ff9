"""How often somebody may ask: a token bucket for each, bounded in number, kept in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

MAX_BUCKETS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """Buckets of `burst` requests that fill by `per_second`; 0 a second: no limit at all.

    Beyond 10,000 the bucket unused for longest is forgotten; whoever comes back to it finds it full.
    """

    def __init__(self, per_second: float, burst: int, now: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._now = now
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def acquire(self, who: Hashable) -> float:
        """Take one request from the bucket of `who`; 0 if it was there, else the seconds until it will be."""
        if not self._per_second:
            return 0.0
        bucket = self._refilled(who)
        if bucket.left >= 1:
            bucket.left -= 1
            return 0.0
        return (1 - bucket.left) / self._per_second

    def retry_after(self, who: Hashable) -> float:
        """The seconds until `who` may ask again, without taking anything."""
        if not self._per_second or who not in self._buckets:
            return 0.0
        return max(0.0, (1 - self._refilled(who).left) / self._per_second)

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)

    def _refilled(self, who: Hashable) -> _Bucket:
        now = self._now()
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[who] = _Bucket(self._burst, now)
            return bucket
        self._buckets.move_to_end(who)
        bucket.left = min(self._burst, bucket.left + max(0.0, now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket
