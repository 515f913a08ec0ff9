"""Waits between attempts, and work that is repeated until it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable


class Work:
    """Raises the given errors one after the other, then returns how often it was called."""

    def __init__(self, *errors: Exception) -> None:
        self._errors: Iterator[Exception] = iter(errors)
        self.calls = 0

    async def __call__(self) -> int:
        """Fail, or return the number of calls."""
        self.calls += 1
        for error in self._errors:
            raise error
        return self.calls


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop wait hardly at all."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0.001, 0.001))


def test_a_wait_doubles_up_to_the_maximum() -> None:
    """It doubles from the first to the maximum, however many failures there were."""
    backoff = Backoff(5, 60)
    assert [backoff.longest(failures) for failures in (0, 1, 2, 3, 4, 5, 100, 10**9)] == [5, 5, 10, 20, 40, 60, 60, 60]


def test_a_wait_is_jittered_and_never_exceeds_the_maximum() -> None:
    """With full jitter it lies between 0 and the maximum, and two clients seldom wait alike."""
    backoff = Backoff(0.1, 5)
    assert all(0 <= backoff.delay(failures) <= 5 for failures in range(2000))
    assert len({backoff.delay(6) for _ in range(20)}) > 1


def test_jitter_is_a_share_of_the_wait() -> None:
    """With some jitter a wait keeps the rest of its length; with none it is exact."""
    assert all(8 <= Backoff(10, 10, jitter=0.2).delay(1) <= 10 for _ in range(100))
    assert Backoff(10, 10, jitter=0).delay(1) == 10


async def test_outages_are_reported_and_waited_out() -> None:
    """Work is repeated until it succeeds; each outage is reported, a lost race is not."""
    reasons: list[str] = []
    work = Work(Unavailable("no broker"), Retry(), Unavailable("no database"))
    assert await retry.until_stopped(work, asyncio.Event(), reasons.append) == 4
    assert reasons == ["no broker", "no database"]


async def test_a_process_that_stops_waits_for_nothing() -> None:
    """Once stopping, the first outage ends the loop, and a wait that has begun ends at once."""
    stopping = asyncio.Event()
    stopping.set()
    work = Work(Unavailable("away"), Unavailable("away"))
    with pytest.raises(Unavailable):
        await retry.until_stopped(work, stopping, lambda _: None)
    assert work.calls == 1


async def test_stopping_ends_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a wait would be, it ends when the process stops; the work gets one more chance."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(3600, 3600, jitter=0))
    stopping = asyncio.Event()
    work = Work(Unavailable("away"))
    async with asyncio.timeout(10):
        assert await retry.until_stopped(work, stopping, lambda _: stopping.set()) == 2


async def test_races_are_not_lost_for_ever() -> None:
    """A transaction that loses race after race is given up."""
    work = Work(*[Retry()] * (retry.MAX_RACES + 1))
    with pytest.raises(Retry):
        await retry.until_stopped(work, asyncio.Event(), lambda _: None)


@pytest.mark.parametrize("error", [ValueError(), KeyError()])
async def test_an_unexpected_error_is_not_retried(error: Exception) -> None:
    """A bug is raised at once."""
    work = Work(error)
    with pytest.raises(type(error)):
        await retry.until_stopped(work, asyncio.Event(), lambda _: None)
    assert work.calls == 1
