"""How much of its time the indexer takes, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import task_index
from taskherd.store.engine import DataError
from taskherd.store.task_index import FIRST
from taskherd.worker import indexer
from taskherd.worker.indexer import BEHIND_AFTER, INDEX_TIME, Indexer
from tests.harness.contexts import partial_context

SECONDS = 0.1
"""What each transaction takes, unless a test says otherwise."""


class CountingIndexer(Indexer):
    """An indexer of tasks with the ids 1, 2, 3, ... that takes up to two in each transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waiting: int = 0, limit: int = 2) -> None:
        monkeypatch.setattr(indexer, "MAX_INDEXED", limit)
        self.seconds = 0.0
        self.took = SECONDS
        self.limits: list[int] = []
        self.metrics = Metrics()
        super().__init__(partial_context(metrics=self.metrics), lambda: self.seconds)
        self.waiting = {UUID(int=number) for number in range(1, waiting + 1)}
        self.taken: list[int] = []
        self.starts: list[int] = []
        self.rests: list[float] = []
        self.arriving: list[int] = []
        self.problem: Exception | None = None
        self.failed = asyncio.Event()

    async def _rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.seconds += seconds

    async def _apply(self, after: UUID, limit: int) -> list[UUID]:
        self.starts.append(after.int)
        self.limits.append(limit)
        if self.problem is not None:
            problem, self.problem = self.problem, None
            self.failed.set()
            raise problem
        ids = sorted(each for each in self.waiting if each > after)[:limit]
        self.waiting -= set(ids)
        self.taken += [each.int for each in ids]
        self.seconds += self.took
        if self.arriving:
            self.waiting.add(UUID(int=self.arriving.pop(0)))
        return ids

    @property
    def lag(self) -> float | None:
        """What the metric says."""
        return self.metrics.registry.get_sample_value("taskherd_index_lag_seconds")


async def test_one_transaction_is_enough_for_few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it was not full and began with the first task, nothing waits."""
    few = CountingIndexer(monkeypatch, waiting=1)
    assert await few.update() == 1
    assert (few.starts, few.lag) == ([0], 0)


async def test_each_update_continues_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the first transaction after its time; what came meanwhile before its place is not forgotten."""
    many = CountingIndexer(monkeypatch, waiting=10)
    many.arriving = [1, 2]
    assert await many.update() == 6
    assert many.seconds == pytest.approx(3 * SECONDS)
    assert 2 * SECONDS < INDEX_TIME < 3 * SECONDS
    assert many.lag == 0
    many.seconds += 1
    assert await many.update() == 4
    assert many.lag == pytest.approx(1 + 3 * SECONDS)
    assert many.starts == [0, 2, 4, 6, 8, 10]
    assert await many.update() == 2
    assert many.taken == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]
    assert (many.starts[6:], many.lag) == ([0, 2, 0], 0)


async def test_an_index_that_is_behind_gets_nearly_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once changes have waited for a while, the indexer goes on until hardly any waits, and rests a quarter as long."""
    behind = CountingIndexer(monkeypatch, waiting=100)
    while behind.seconds < BEHIND_AFTER:
        assert await behind.update() == 6
        behind.seconds += 1
    assert behind.rests == []
    remaining = len(behind.waiting)
    behind.arriving = [7]
    with capture_logs() as logged:
        assert await behind.update() == remaining + 1
    assert behind.waiting == set()
    assert behind.rests == [pytest.approx(SECONDS / 4)] * (len(behind.rests))
    assert len(behind.rests) >= remaining // 2
    assert [each["event"] for each in logged] == ["the index of the tasks has caught up"]
    assert behind.lag == 0
    behind.waiting = {UUID(int=number) for number in range(1, 101)}
    assert await behind.update() == 6


async def test_transactions_that_take_long_get_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports about their tasks wait for them; fast ones get larger again, up to the limit."""
    slow = CountingIndexer(monkeypatch, waiting=1000, limit=250)
    for slow.took in (0.2, 0.21, 0.3, 0.4, 0.5, 0.6, 0.7, 0.1, 0.09, 0.09, 0.09, 0.09, 0.09, 0.09, 0.2):
        slow._waiting_since = None
        monkeypatch.setattr(indexer, "INDEX_TIME", 0.0)
        await slow.update()
    assert slow.limits == [250, 250, 125, 62, 31, 15, 8, 8, 8, 16, 32, 64, 128, 250, 250]
    assert slow.taken == sorted(slow.taken)


@pytest.mark.parametrize("problem", [Unavailable("no database"), Retry("a conflict"), DataError("no value")])
async def test_a_failure_is_logged_and_the_next_request_tries_again(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted as a failed step of the maintenance. Fewer tasks are tried next, in case it was the time limit."""
    failing = CountingIndexer(monkeypatch, waiting=1, limit=250)
    failing.problem = problem
    running = asyncio.create_task(failing.run())
    with capture_logs() as logged:
        failing.request()
        await failing.failed.wait()
    failing.request()
    while failing.waiting:
        await asyncio.wait([running], timeout=0.001)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert [each["reason"] for each in logged] == [str(problem)]
    failures = failing.metrics.registry.get_sample_value
    assert failures("taskherd_maintenance_failures_total", {"step": "index"}) == 1
    assert failing.starts == [FIRST.int, FIRST.int]
    assert failing.limits == [250, 125]


async def test_an_index_that_cannot_be_updated_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric rises with each failure, until it succeeds or another worker sweeps."""
    failing = CountingIndexer(monkeypatch, waiting=1)
    running = asyncio.create_task(failing.run())
    lags = []
    for failing.seconds in (10.0, 110.0):
        failing.problem = Unavailable("no database")
        failing.failed.clear()
        failing.request()
        await failing.failed.wait()
        await asyncio.wait([running], timeout=0.01)
        lags.append(failing.lag)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert lags == [0, 100]
    failing.hand_over()
    assert failing.lag == 0


async def test_others_go_on_while_the_indexer_rests() -> None:
    """Resting lets other tasks run."""
    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "went on")
    await Indexer(partial_context())._rest(0)
    assert others == ["went on"]


async def test_at_most_250_tasks_are_indexed_in_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast that is."""
    limits: list[int] = []

    @asynccontextmanager
    async def transaction(_: object) -> AsyncIterator[None]:
        yield

    async def apply(_: object, limit: int, __: UUID) -> list[UUID]:
        limits.append(limit)
        return []

    monkeypatch.setattr(indexer, "transaction", transaction)
    monkeypatch.setattr(task_index, "apply", apply)
    quick = Indexer(partial_context(metrics=Metrics()), lambda: 0.0)
    for _ in range(2):
        assert await quick.update() == 0
    assert limits == [250, 250]
