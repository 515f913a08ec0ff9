"""Which messages are halved, tried again or given up, by the errors of their transactions; without a database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain, repeat

import pytest
from sqlalchemy.exc import SQLAlchemyError

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store.engine import DataError, PromptSizeError, StatementTimeout
from taskherd.worker import bisection
from taskherd.worker.batch import BatchResult
from taskherd.worker.bisection import MAX_TIMEOUTS, Bisection
from tests.harness.contexts import Waits, partial_context

BUGS = bisection.BUGS
RESULT = BatchResult(datetime(2026, 1, 1, tzinfo=UTC), [])


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0, 0))
    monkeypatch.setattr(bisection, "BUGS", Backoff(0, 0))


class Messages:
    """Messages of which ``error_of`` returns the error with which a part of them fails, or None."""

    def __init__(self, error_of: Callable[[range], Exception | None]) -> None:
        self._error_of = error_of
        self.metrics, self.stopping = Metrics(), asyncio.Event()
        self.told: list[str] = []
        self.attempts: list[range] = []
        context = partial_context(metrics=self.metrics, stopping=self.stopping, on_error=self.told.append)
        self._bisection = Bisection(context)

    async def run(self, first: int, count: int) -> list[str]:
        """Reconcile messages, and return what becomes of each."""
        return await self._bisection.run(range(first, first + count), self._attempt, self._accept, self._reject)

    async def _attempt(self, part: range) -> BatchResult:
        self.attempts.append(part)
        if error := self._error_of(part):
            raise error
        return RESULT

    async def _accept(self, part: range, result: BatchResult) -> list[str]:
        assert result is RESULT
        return [f"{index} saved" for index in part]

    async def _reject(self, index: int, error: Exception) -> str:
        return f"{index} {type(error).__name__}"

    def count(self, reason: str) -> float:
        """Return how often a batch has failed for this reason."""
        return self.metrics.registry.get_sample_value("taskherd_batch_failures_total", {"reason": reason}) or 0


async def test_the_message_that_fails_is_found() -> None:
    """The batch is halved until it is alone; the results of all are in their order."""
    messages = Messages(lambda part: DataError("no value") if 7 in part else None)
    assert await messages.run(5, 5) == ["5 saved", "6 saved", "7 DataError", "8 saved", "9 saved"]
    assert messages.attempts == [
        range(5, 10), range(5, 7), range(7, 10), range(7, 8), range(8, 10)
    ]  # fmt: skip
    assert (messages.count("bisected"), messages.told) == (2, [])


async def test_several_messages_that_take_too_long_are_halved() -> None:
    """After a second try of all; one alone is tried until it is done, because the database may just be slow."""
    alone = chain(repeat(StatementTimeout("slow"), 2 * MAX_TIMEOUTS), repeat(None))
    messages = Messages(lambda part: StatementTimeout("slow") if len(part) > 1 else next(alone))
    assert await messages.run(0, 2) == ["0 saved", "1 saved"]
    assert messages.attempts == [range(2)] * MAX_TIMEOUTS + [range(1)] * (2 * MAX_TIMEOUTS + 1) + [range(1, 2)]
    assert messages.count("bisected") == 1


async def test_several_messages_whose_tasks_need_too_much_memory_are_halved_at_once() -> None:
    """Nothing is gained by trying them again together."""
    messages = Messages(lambda part: PromptSizeError("together") if len(part) > 2 else None)
    assert await messages.run(0, 4) == ["0 saved", "1 saved", "2 saved", "3 saved"]
    assert messages.attempts == [range(4), range(2), range(2, 4)]
    assert messages.count("bisected") == 1


async def test_several_messages_that_always_conflict_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many conflicts as are usual; one alone is tried until it is done."""
    monkeypatch.setattr(retry, "MAX_CONFLICTS", 3)
    alone = chain(repeat(Retry("conflict"), 9), repeat(None))
    messages = Messages(lambda part: Retry("conflict") if len(part) > 1 else next(alone))
    assert await messages.run(0, 2) == ["0 saved", "1 saved"]
    assert messages.attempts == [range(2)] * 4 + [range(1)] * 10 + [range(1, 2)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Return the waits before messages that fail by a bug."""
    noted = Waits()
    monkeypatch.setattr(bisection, "BUGS", noted)
    return noted


async def test_a_bug_in_a_statement_is_tried_again_after_a_longer_wait_each_time(waits: Waits) -> None:
    """Several messages are halved at once. One that succeeds shows that not all fail, and the wait is short again."""
    messages = Messages(lambda part: SQLAlchemyError("a bug") if len(part) > 1 or part.start != 2 else None)
    expected = ["0 SQLAlchemyError", "1 SQLAlchemyError", "2 saved", "3 SQLAlchemyError"]
    assert await messages.run(0, 4) == expected
    assert waits.after == [0, 1, 0]
    assert messages.attempts.count(range(4)) == messages.attempts.count(range(2)) == 1
    assert messages.attempts.count(range(1)) == 2
    assert messages.told == ["a bug in a statement: SQLAlchemyError"] * 3


async def test_a_bug_that_is_gone_after_the_wait_costs_no_message(waits: Waits) -> None:
    """As when a missing column has been added meanwhile; an outage at that moment is waited out."""
    errors = iter([SQLAlchemyError("a bug"), Unavailable("restarts"), None])
    messages = Messages(lambda _: next(errors))
    assert await messages.run(4, 1) == ["4 saved"]
    assert (waits.after, messages.count("database")) == ([0], 1)


async def test_a_worker_that_stops_gives_up_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that waits after a bug when the worker stops is left to the next worker."""
    monkeypatch.setattr(bisection, "BUGS", Backoff(3600, 3600, jitter=0))
    messages = Messages(lambda _: SQLAlchemyError("a bug"))
    asyncio.get_running_loop().call_soon(messages.stopping.set)
    with pytest.raises(Unavailable, match="stopping"):
        await messages.run(0, 1)
    assert messages.attempts == [range(1)]


async def test_how_long_a_message_that_fails_by_a_bug_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a tenth of a second at first, and up to half a minute at last."""
    waits: list[float] = []

    async def wait(_: asyncio.Event, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(retry, "wait", wait)
    monkeypatch.setattr(bisection, "BUGS", BUGS)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    messages = Messages(lambda _: SQLAlchemyError("a bug"))
    await messages.run(0, 1)
    messages._bisection._bugs_in_a_row = 100
    await messages.run(0, 1)
    assert waits == [0.1, 30.0]
