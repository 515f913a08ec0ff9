"""Token buckets: what they let through, and that there are never too many of them."""

from __future__ import annotations

from taskherd.api.http.rate_limit import MAX_BUCKETS, RateLimiter


class Time:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_a_burst_then_a_rate() -> None:
    """A full bucket lets its burst through at once, then one request for each share of a second."""
    time = Time()
    rates = RateLimiter(10, 3, time)
    assert [rates.acquire("a") for _ in range(3)] == [0, 0, 0]
    assert 0 < rates.acquire("a") <= 0.1
    assert rates.acquire("b") == 0
    time.now = 0.1
    assert rates.acquire("a") == 0
    assert rates.acquire("a") > 0
    time.now = 100
    assert [rates.acquire("a") for _ in range(3)] == [0, 0, 0]
    assert rates.acquire("a") > 0


def test_buckets_are_bounded() -> None:
    """However many ask, so many buckets are kept; the one unused for longest goes first."""
    rates = RateLimiter(1, 1, Time())
    for number in range(MAX_BUCKETS + 10):
        assert rates.acquire(number) == 0
    assert len(rates) == MAX_BUCKETS
    assert rates.acquire(MAX_BUCKETS + 9) > 0
    assert rates.acquire(0) == 0


def test_no_rate_is_no_limit() -> None:
    """A rate of 0 lets everything through and keeps nothing."""
    rates = RateLimiter(0, 1, Time())
    assert [rates.acquire("a") for _ in range(100)] == [0] * 100
    assert len(rates) == 0


def test_looking_takes_nothing() -> None:
    """Asking how long to wait costs nothing."""
    rates = RateLimiter(1, 1, Time())
    assert [rates.retry_after("a") for _ in range(3)] == [0, 0, 0]
    assert rates.acquire("a") == 0
    assert rates.retry_after("a") == 1
