"""Rate limits: token buckets for each caller, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskherd.messages.limits import LOG_BURST

if TYPE_CHECKING:
    from taskherd.settings import Settings

MAX_BUCKETS: Final = 10_000
_MINUTE: Final = 60


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

    def acquire(self, key: Hashable, cost: float = 1) -> float:
        """Take ``cost`` from the bucket of ``key``. Return 0, or the seconds until it is accepted; that takes nothing.

        What costs more than ``burst`` is accepted once the bucket is full. It is charged in full, so the bucket is in
        debt then, and the rate holds whatever the requests cost.
        """
        wait = self.wait(key, cost)
        if not wait and self._per_second:
            self._buckets[key].tokens -= cost
        return wait

    def wait(self, key: Hashable, cost: float = 1) -> float:
        """Return the seconds until ``acquire`` accepts this cost, without taking it."""
        if not self._per_second:
            return 0.0
        return max(0.0, (min(cost, self._burst) - self._refill(key).tokens) / self._per_second)

    def retry_after(self, key: Hashable) -> float:
        """Return the seconds until a request of ``key`` is accepted, without taking one."""
        if key not in self._buckets:
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


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The rate limits of a process.

    Attributes:
        requests: requests by user, and failed sign-ins by client address.
        creates: created tasks by user.
        reports: requests of agents, by task and build.
        log_bytes: bytes of log entries, by task.
        log_entries: log entries, by task.
    """

    requests: RateLimiter
    creates: RateLimiter
    reports: RateLimiter
    log_bytes: RateLimiter
    log_entries: RateLimiter

    @classmethod
    def of(cls, settings: Settings, now: Callable[[], float]) -> RateLimits:
        """Return the limits of these settings; ``now`` is a monotonic clock in seconds."""
        bytes_rate, entries_rate = settings.log_bytes_rate, settings.log_entries_rate
        return cls(
            requests=RateLimiter(settings.api_rate_limit, settings.api_rate_burst, now),
            creates=RateLimiter(settings.api_create_rate / _MINUTE, settings.api_create_burst, now),
            reports=RateLimiter(settings.api_agent_rate, settings.api_agent_burst, now),
            log_bytes=RateLimiter(bytes_rate, bytes_rate * LOG_BURST, now),
            log_entries=RateLimiter(entries_rate, entries_rate * LOG_BURST, now),
        )
