"""Rate limits: a token bucket for each caller, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

MAX_BUCKETS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    refilled_at: float


class RateLimiter:
    """Buckets of ``burst`` requests that refill by ``per_second``; a rate of 0 means no limit.

    Beyond ``MAX_BUCKETS`` the least recently used bucket is evicted; its caller starts again with a full one.
    """

    def __init__(self, per_second: float, burst: int, now: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._now = now
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def acquire(self, key: Hashable) -> float:
        """Take one request from the bucket of ``key``. Return 0, or the seconds until one is available."""
        if not self._per_second:
            return 0.0
        bucket = self._refill(key)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / self._per_second

    def retry_after(self, key: Hashable) -> float:
        """Return the seconds until a request of ``key`` is accepted, without taking one."""
        if not self._per_second or key not in self._buckets:
            return 0.0
        return max(0.0, (1 - self._refill(key).tokens) / self._per_second)

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self._buckets)

    def _refill(self, key: Hashable) -> _Bucket:
        now = self._now()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(self._burst, now)
            return bucket
        self._buckets.move_to_end(key)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now - bucket.refilled_at) * self._per_second)
        bucket.refilled_at = now
        return bucket
