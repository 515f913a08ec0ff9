"""Which messages are halved, tried again or given up, by the errors of their transactions; without a database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from uuid import UUID

import pytest
from sqlalchemy.exc import SQLAlchemyError

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store.engine import DataError, LockTimeout, PromptSizeError, StatementTimeout
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

    def __init__(self, error_of: Callable[[Sequence[int]], Exception | None]) -> None:
        self._error_of = error_of
        self.metrics, self.stopping = Metrics(), asyncio.Event()
        self.told: list[str] = []
        self.attempts: list[list[int]] = []
        context = partial_context(metrics=self.metrics, stopping=self.stopping, on_error=self.told.append)
        self._bisection = Bisection(context)

    async def run(self, count: int, tasks: Sequence[int] = (), *, takes_back: bool = False) -> list[str]:
        """Reconcile messages for these tasks, or one for each task, and return what becomes of each."""
        ids = [UUID(int=number) for number in tasks or range(count)]
        set_aside = self._set_aside if takes_back else None
        return await self._bisection.run(ids, self._attempt, self._accept, self._reject, set_aside)

    async def _attempt(self, part: Sequence[int]) -> BatchResult:
        self.attempts.append([*part])
        if error := self._error_of(part):
            raise error
        return RESULT

    async def _accept(self, part: Sequence[int], result: BatchResult) -> list[str]:
        assert result is RESULT
        return [f"{index} saved" for index in part]

    async def _reject(self, index: int, error: Exception) -> str:
        return f"{index} {type(error).__name__}"

    def _set_aside(self, part: Sequence[int]) -> list[str]:
        return [f"{index} set aside" for index in part]

    def count(self, reason: str) -> float:
        """Return how often a batch has failed for this reason."""
        return self.metrics.registry.get_sample_value("taskherd_batch_failures_total", {"reason": reason}) or 0


async def test_the_message_that_fails_is_found() -> None:
    """The batch is halved until it is alone; the results of all are in their order."""
    messages = Messages(lambda part: DataError("no value") if 2 in part else None)
    assert await messages.run(5) == ["0 saved", "1 saved", "2 DataError", "3 saved", "4 saved"]
    assert messages.attempts == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]
    assert (messages.count("bisected"), messages.told) == (2, [])


async def test_several_messages_that_take_too_long_are_halved() -> None:
    """After a second try of all; one alone is tried after all others until it is done: the database may be slow."""
    alone = chain(repeat(StatementTimeout("slow"), 2 * MAX_TIMEOUTS), repeat(None))
    messages = Messages(lambda part: StatementTimeout("slow") if len(part) > 1 else None if 1 in part else next(alone))
    assert await messages.run(2) == ["0 saved", "1 saved"]
    assert messages.attempts == [
        *[[0, 1]] * MAX_TIMEOUTS, *[[0]] * MAX_TIMEOUTS, [1], *[[0]] * (MAX_TIMEOUTS + 1)
    ]  # fmt: skip
    assert messages.count("bisected") == 1


async def test_several_messages_whose_tasks_need_too_much_memory_are_halved_at_once() -> None:
    """Nothing is gained by trying them again together."""
    messages = Messages(lambda part: PromptSizeError("together") if len(part) > 2 else None)
    assert await messages.run(4) == ["0 saved", "1 saved", "2 saved", "3 saved"]
    assert messages.attempts == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert messages.count("bisected") == 1


async def test_several_messages_that_always_conflict_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many conflicts as are usual; one alone is tried after all others until it is done."""
    monkeypatch.setattr(retry, "MAX_CONFLICTS", 3)
    alone = chain(repeat(Retry("conflict"), 9), repeat(None))
    messages = Messages(lambda part: Retry("conflict") if len(part) > 1 else None if 1 in part else next(alone))
    assert await messages.run(2) == ["0 saved", "1 saved"]
    assert messages.attempts == [*[[0, 1]] * 4, *[[0]] * 4, [1], *[[0]] * 6]


@pytest.fixture(autouse=True)
def locked(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return a set of tasks that other transactions have locked."""
    tasks: set[int] = set()

    async def find_locked(_: object, ids: Collection[UUID]) -> frozenset[UUID]:
        return frozenset(each for each in ids if each.int in tasks)

    monkeypatch.setattr(bisection, "find_locked", find_locked)
    return tasks


async def test_messages_for_locked_tasks_come_last(locked: set[int]) -> None:
    """Together, and as often as it takes; those of their tasks that are free meanwhile are taken out of them."""
    tasks = [1, 2, 3, 2, 4, 5]
    locked |= {2, 4}

    def error_of(part: Sequence[int]) -> Exception | None:
        if len(messages.attempts) == 60:
            locked.remove(4)
        if len(messages.attempts) == 70:
            locked.clear()
        return LockTimeout("locked") if locked & {tasks[index] for index in part} else None

    messages = Messages(error_of)
    assert await messages.run(6, tasks) == [f"{index} saved" for index in range(6)]
    assert messages.attempts == [[*range(6)], [0, 2, 5], *[[1, 3, 4]] * 58, [4], *[[1, 3]] * 9]
    assert messages.count("bisected") == 0


async def test_messages_for_locked_tasks_are_given_back_to_whom_takes_them(locked: set[int]) -> None:
    """After the others."""
    tasks = [1, 2, 3, 2]
    locked.add(2)
    messages = Messages(lambda part: LockTimeout("locked") if locked & {tasks[index] for index in part} else None)
    assert await messages.run(4, tasks, takes_back=True) == ["0 saved", "1 set aside", "2 saved", "3 set aside"]
    assert messages.attempts == [[0, 1, 2, 3], [0, 2]]


async def test_all_messages_for_a_locked_task_are_given_back_together(locked: set[int]) -> None:
    """Also if the batch has been halved before: a later one must not come first."""
    locked.add(1)
    messages = Messages(lambda part: PromptSizeError("together") if len(part) > 1 else StatementTimeout("slow"))
    assert await messages.run(2, [1, 1], takes_back=True) == ["0 set aside", "1 set aside"]
    assert messages.attempts == [[0, 1], [0]]


async def test_messages_for_a_locked_task_keep_their_order(locked: set[int]) -> None:
    """Also if the batch has been halved before, between them."""
    tasks = [1, 2, 3, 1]

    def error_of(part: Sequence[int]) -> Exception | None:
        if len(part) > 2:
            return PromptSizeError("together")
        locked.update([1] if len(messages.attempts) == 2 else [])
        if len(messages.attempts) == 5:
            locked.clear()
        return LockTimeout("locked") if locked & {tasks[index] for index in part} else None

    messages = Messages(error_of)
    assert await messages.run(4, tasks) == ["0 saved", "1 saved", "2 saved", "3 saved"]
    assert messages.attempts == [[0, 1, 2, 3], [0, 1], [1], [2], [0, 3]]


async def test_a_message_for_the_task_of_one_that_comes_last_comes_after_it() -> None:
    """It is tried until it is done, too."""
    tasks = [1, 1, 2]
    errors = chain(repeat(StatementTimeout("slow"), MAX_TIMEOUTS), repeat(None))
    messages = Messages(lambda part: StatementTimeout("slow") if len(part) > 1 else None if 2 in part else next(errors))
    assert await messages.run(3, tasks) == ["0 saved", "1 saved", "2 saved"]
    assert messages.attempts[-4:] == [[0], [2], [0], [1]]


async def test_a_lock_on_something_else_is_a_conflict(locked: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the tasks is locked: it may be the table, or an owner."""
    monkeypatch.setattr(retry, "MAX_CONFLICTS", 3)
    messages = Messages(lambda part: LockTimeout("locked") if len(part) > 1 else None)
    assert await messages.run(2) == ["0 saved", "1 saved"]
    assert (messages.attempts, locked) == ([*[[0, 1]] * 4, [0], [1]], set())


async def test_a_worker_that_stops_does_not_wait_for_locked_tasks(locked: set[int]) -> None:
    """Their messages are left to the next worker."""
    locked.add(0)
    messages = Messages(lambda _: LockTimeout("locked"))
    messages.stopping.set()
    with pytest.raises(Unavailable, match="stopping"):
        await messages.run(1)
    assert messages.attempts == [[0]]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Return the waits before messages that fail by a bug."""
    noted = Waits()
    monkeypatch.setattr(bisection, "BUGS", noted)
    return noted


async def test_bugs_in_statements_are_tried_again_after_a_longer_wait_each_time(waits: Waits) -> None:
    """Several messages are halved at once, and all are tried once before any waits. A success ends that."""
    messages = Messages(lambda part: SQLAlchemyError("a bug") if len(messages.attempts) < 8 or part != [2] else None)
    expected = ["0 SQLAlchemyError", "1 SQLAlchemyError", "2 saved", "3 SQLAlchemyError"]
    assert await messages.run(4) == expected
    assert waits.after == [0, 1, 2, 0]
    assert messages.attempts == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3], [0], [1], [2], [3]]
    assert messages.told == ["a bug in a statement: SQLAlchemyError"] * 4
    messages.attempts = [[]] * 8
    assert await messages.run(2) == ["0 SQLAlchemyError", "1 SQLAlchemyError"]
    assert waits.after == [0, 1, 2, 0, 1, 2]


async def test_messages_that_fail_by_a_bug_hold_up_no_others(waits: Waits) -> None:
    """What does not fail is saved first. It ends the row of those that fail, as if it had been saved between them."""
    messages = Messages(lambda part: SQLAlchemyError("a bug") if {0, 1, 3} & {*part} else None)
    expected = ["0 SQLAlchemyError", "1 SQLAlchemyError", "2 saved", "3 SQLAlchemyError"]
    assert await messages.run(4) == expected
    assert waits.after == [0, 1, 0]
    assert messages.attempts[-5:] == [[2], [3], [0], [1], [3]]


async def test_a_message_that_takes_too_long_and_then_fails_by_a_bug_is_tried_again(waits: Waits) -> None:
    """As any other that fails by a bug."""
    errors = chain(repeat(StatementTimeout("slow"), MAX_TIMEOUTS + 1), repeat(SQLAlchemyError("a bug"), 2))
    messages = Messages(lambda _: next(errors))
    assert await messages.run(1) == ["0 SQLAlchemyError"]
    assert (waits.after, len(messages.attempts)) == ([0], MAX_TIMEOUTS + 3)


async def test_a_bug_that_is_gone_after_the_wait_costs_no_message(waits: Waits) -> None:
    """As when a missing column has been added meanwhile; an outage at that moment is waited out."""
    errors = iter([SQLAlchemyError("a bug"), Unavailable("restarts"), None])
    messages = Messages(lambda _: next(errors))
    assert await messages.run(1) == ["0 saved"]
    assert (waits.after, messages.count("database")) == ([0], 1)


async def test_a_worker_that_stops_gives_up_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that waits after a bug when the worker stops is left to the next worker."""
    monkeypatch.setattr(bisection, "BUGS", Backoff(3600, 3600, jitter=0))
    messages = Messages(lambda _: SQLAlchemyError("a bug"))
    asyncio.get_running_loop().call_soon(messages.stopping.set)
    with pytest.raises(Unavailable, match="stopping"):
        await messages.run(1)
    assert messages.attempts == [[0]]


async def test_how_long_a_message_that_fails_by_a_bug_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a tenth of a second at first, and up to half a minute at last."""
    waits: list[float] = []

    async def wait(_: asyncio.Event, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(retry, "wait", wait)
    monkeypatch.setattr(bisection, "BUGS", BUGS)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    messages = Messages(lambda _: SQLAlchemyError("a bug"))
    await messages.run(1)
    messages._bisection._bugs_in_a_row = 100
    await messages.run(1)
    assert waits == [0.1, 30.0]
