"""Token buckets: what they let through, and that there are never too many of them."""

from __future__ import annotations

from taskherd.api.http.rate_limit import BUCKETS_MOST, Rates


class Time:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_a_burst_then_a_rate() -> None:
    """A full bucket lets its burst through at once, then one request for each share of a second."""
    time = Time()
    rates = Rates(10, 3, time)
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0]
    assert 0 < rates.take("a") <= 0.1
    assert rates.take("b") == 0
    time.now = 0.1
    assert rates.take("a") == 0
    assert rates.take("a") > 0
    time.now = 100
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0]
    assert rates.take("a") > 0


def test_buckets_are_bounded() -> None:
    """However many ask, so many buckets are kept; the one unused for longest goes first."""
    rates = Rates(1, 1, Time())
    for number in range(BUCKETS_MOST + 10):
        assert rates.take(number) == 0
    assert len(rates) == BUCKETS_MOST
    assert rates.take(BUCKETS_MOST + 9) > 0
    assert rates.take(0) == 0


def test_no_rate_is_no_limit() -> None:
    """A rate of 0 lets everything through and keeps nothing."""
    rates = Rates(0, 1, Time())
    assert [rates.take("a") for _ in range(100)] == [0] * 100
    assert len(rates) == 0


def test_looking_takes_nothing() -> None:
    """Asking how long to wait costs nothing."""
    rates = Rates(1, 1, Time())
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 0]
    assert rates.take("a") == 0
    assert rates.wait("a") == 1
