"""Backoff, and retrying until success."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable


class Work:
    """An action that raises the given errors one after the other, then returns the number of calls."""

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
    """Reduce the waits to a millisecond."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0.001, 0.001))


def test_a_wait_doubles_up_to_the_maximum() -> None:
    """The wait doubles from ``first`` to ``maximum`` for any number of failures."""
    backoff = Backoff(5, 60)
    assert [backoff.longest(failures) for failures in (0, 1, 2, 3, 4, 5, 100, 10**9)] == [5, 5, 10, 20, 40, 60, 60, 60]


def test_a_wait_is_jittered_and_never_exceeds_the_maximum() -> None:
    """With full jitter a wait is between 0 and the maximum, and waits differ."""
    backoff = Backoff(0.1, 5)
    assert all(0 <= backoff.delay(failures) <= 5 for failures in range(2000))
    assert len({backoff.delay(6) for _ in range(20)}) > 1


def test_jitter_is_a_share_of_the_wait() -> None:
    """Jitter reduces a wait by at most its share; without jitter the wait is exact."""
    assert all(8 <= Backoff(10, 10, jitter=0.2).delay(1) <= 10 for _ in range(100))
    assert Backoff(10, 10, jitter=0).delay(1) == 10


async def test_work_is_retried_through_outages() -> None:
    """Work is retried until it succeeds; each outage is reported, a conflict is not."""
    reasons: list[str] = []
    work = Work(Unavailable("no broker"), Retry(), Unavailable("no database"))
    assert await retry.until_stopped(work, asyncio.Event(), reasons.append) == 4
    assert reasons == ["no broker", "no database"]


async def test_a_stopping_process_does_not_retry() -> None:
    """While the process is stopping, the first outage is raised."""
    stopping = asyncio.Event()
    stopping.set()
    work = Work(Unavailable("unavailable"), Unavailable("unavailable"))
    with pytest.raises(Unavailable):
        await retry.until_stopped(work, stopping, lambda _: None)
    assert work.calls == 1


async def test_stopping_ends_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of any length ends when the process stops; the work is tried once more."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(3600, 3600, jitter=0))
    stopping = asyncio.Event()
    work = Work(Unavailable("unavailable"))
    async with asyncio.timeout(10):
        assert await retry.until_stopped(work, stopping, lambda _: stopping.set()) == 2


async def test_conflicts_are_not_retried_forever() -> None:
    """A transaction that conflicts too often raises ``Retry``."""
    work = Work(*[Retry()] * (retry.MAX_CONFLICTS + 1))
    with pytest.raises(Retry):
        await retry.until_stopped(work, asyncio.Event(), lambda _: None)


@pytest.mark.parametrize("error", [ValueError(), KeyError()])
async def test_an_unexpected_error_is_not_retried(error: Exception) -> None:
    """A bug is raised immediately."""
    work = Work(error)
    with pytest.raises(type(error)):
        await retry.until_stopped(work, asyncio.Event(), lambda _: None)
    assert work.calls == 1
