"""Token buckets: the requests that they admit, and the limit on their number."""

from __future__ import annotations

import pytest

from taskherd.api.http import rate_limit
from taskherd.api.http.rate_limit import RateLimiter, RateLimits
from taskherd.messages.limits import LOG_BURST
from taskherd.settings import Settings


class FakeClock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_bucket_admits_its_burst_then_its_rate() -> None:
    """A full bucket admits its burst immediately, then requests at its rate."""
    clock = FakeClock()
    limiter = RateLimiter(10, 3, clock)
    assert [limiter.acquire("a") for _ in range(3)] == [0, 0, 0]
    assert 0 < limiter.acquire("a") <= 0.1
    assert limiter.acquire("b") == 0
    clock.now = 0.1
    assert limiter.acquire("a") == 0
    assert limiter.acquire("a") > 0
    clock.now = 100
    assert [limiter.acquire("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.acquire("a") > 0


def test_the_number_of_buckets_is_limited() -> None:
    """Beyond the limit the least recently used bucket is evicted."""
    limiter = RateLimiter(1, 1, FakeClock())
    for number in range(10_010):
        assert limiter.acquire(number) == 0
    assert len(limiter) == 10_000
    assert limiter.acquire(10_009) > 0
    assert limiter.acquire(0) == 0


def test_the_bucket_that_was_used_least_recently_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who keeps sending requests does not start again with a full bucket."""
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 2)
    limiter = RateLimiter(1, 1, FakeClock())
    assert (limiter.acquire("busy"), limiter.acquire("quiet")) == (0, 0)
    assert limiter.acquire("busy") > 0
    assert limiter.acquire("new") == 0
    assert limiter.acquire("busy") > 0
    assert limiter.acquire("quiet") == 0


def test_the_wait_lasts_until_enough_has_been_refilled() -> None:
    """A refused request tells exactly when it would be accepted, whatever is left in the bucket."""
    clock = FakeClock()
    limiter = RateLimiter(4, 2, clock)
    assert limiter.acquire("a", 1.5) == 0
    assert limiter.acquire("a") == 0.125
    assert limiter.acquire("a", 2) == 0.375
    assert limiter.retry_after("a") == 0.125
    clock.now = 0.0625
    assert limiter.retry_after("a") == limiter.acquire("a") == 0.0625
    clock.now = 0.125
    assert limiter.retry_after("a") == limiter.acquire("a") == 0
    clock.now = 60
    assert limiter.retry_after("a") == 0


def test_what_costs_more_than_the_burst_waits_for_a_full_bucket_and_is_paid_in_full() -> None:
    """It is accepted once the bucket is full, and leaves a debt, so that the rate holds."""
    clock = FakeClock()
    limiter = RateLimiter(4, 2, clock)
    assert limiter.acquire("a", 100) == 0
    assert limiter.acquire("a", 100) == 25
    assert limiter.acquire("a") == limiter.retry_after("a") == 24.75
    clock.now = 24.5
    assert limiter.acquire("a", 0.5) == 0.125
    clock.now = 25
    assert limiter.acquire("a", 100) == 0
    accepted = 0
    for tick in range(1_000):
        clock.now = 1_000 + tick / 4
        accepted += limiter.acquire("b", 7) == 0
    assert (accepted - 1) * 7 <= 250 * 4, "the rate, and one more for the burst"
    assert accepted * 7 >= 240 * 4


def test_a_wait_takes_nothing() -> None:
    """``wait`` says what ``acquire`` would, also of what costs more than the burst."""
    limiter = RateLimiter(4, 2, FakeClock())
    assert [limiter.wait("a", cost) for cost in (1, 2, 100)] == [0, 0, 0]
    assert limiter.acquire("a", 2) == 0
    assert [limiter.wait("a", cost) for cost in (1, 2, 100)] == [0.25, 0.5, 0.5]
    assert limiter.acquire("a") == 0.25
    unlimited = RateLimiter(0, 2, FakeClock())
    assert (unlimited.wait("a", 100), unlimited.acquire("a", 100), len(unlimited)) == (0, 0, 0)


def test_a_clock_that_stands_still_or_goes_back_refills_nothing() -> None:
    """Time is what a monotonic clock says; a bucket never loses anything either."""
    clock = FakeClock()
    clock.now = 10.0
    limiter = RateLimiter(1, 2, clock)
    assert limiter.acquire("a") == 0
    clock.now = 5.0
    assert limiter.acquire("a") == 0
    assert limiter.acquire("a") == 1


def test_each_limit_has_the_rate_and_the_burst_of_its_settings() -> None:
    """Creates are set by the minute, and logs have a burst of several seconds."""
    settings = Settings(
        api_rate_limit=2, api_rate_burst=3, api_create_rate=30, api_create_burst=5, api_agent_rate=8, api_agent_burst=7,
        log_bytes_rate=2048, log_entries_rate=16,
    )  # fmt: skip
    limits = RateLimits.of(settings, FakeClock())
    for limiter, rate, burst in (
        (limits.requests, 2, 3),
        (limits.creates, 0.5, 5),
        (limits.reports, 8, 7),
        (limits.log_bytes, 2048, 2048 * LOG_BURST),
        (limits.log_entries, 16, 16 * LOG_BURST),
    ):
        assert limiter.acquire("a", burst) == 0
        assert limiter.acquire("a") == 1 / rate
        assert limiter.acquire("a", burst) == burst / rate


def test_a_rate_of_0_means_no_limit() -> None:
    """A rate of 0 admits all requests and keeps no buckets."""
    limiter = RateLimiter(0, 1, FakeClock())
    assert [limiter.acquire("a") for _ in range(100)] == [0] * 100
    assert limiter.retry_after("a") == 0
    assert len(limiter) == 0


def test_reading_the_wait_takes_nothing() -> None:
    """``retry_after`` takes no request from the bucket, and needs none: no other caller's is evicted for it."""
    limiter = RateLimiter(1, 1, FakeClock())
    assert [limiter.retry_after("a") for _ in range(3)] == [0, 0, 0]
    assert len(limiter) == 0
    assert limiter.acquire("a") == 0
    assert limiter.retry_after("a") == 1
