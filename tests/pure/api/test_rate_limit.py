"""Token buckets: the requests that they admit, and the limit on their number."""

from __future__ import annotations

from taskherd.api.http.rate_limit import MAX_BUCKETS, RateLimiter


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
    for number in range(MAX_BUCKETS + 10):
        assert limiter.acquire(number) == 0
    assert len(limiter) == MAX_BUCKETS
    assert limiter.acquire(MAX_BUCKETS + 9) > 0
    assert limiter.acquire(0) == 0


def test_a_rate_of_0_means_no_limit() -> None:
    """A rate of 0 admits all requests and keeps no buckets."""
    limiter = RateLimiter(0, 1, FakeClock())
    assert [limiter.acquire("a") for _ in range(100)] == [0] * 100
    assert len(limiter) == 0


def test_reading_the_wait_takes_nothing() -> None:
    """``retry_after`` takes no request from the bucket."""
    limiter = RateLimiter(1, 1, FakeClock())
    assert [limiter.retry_after("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.acquire("a") == 0
    assert limiter.retry_after("a") == 1
