"""Which timer checks are done together, and what becomes of those that fail or take too long; without a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import cast
from uuid import UUID

import pytest

from taskherd.domain.updates import TimerCheck
from taskherd.errors import Retry, TaskherdError
from taskherd.observability.metrics import Metrics
from taskherd.store import tasks as tasks_store
from taskherd.store.engine import DataError, LockTimeout, PromptSizeError, StatementTimeout
from taskherd.worker import timer_checks
from taskherd.worker.relay import Relay
from taskherd.worker.timer_checks import GROW_AFTER, LOCKED_RETRY_AFTER, MAX_CONFLICTS, RETRY_AFTER, TimerChecks
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

pytestmark = pytest.mark.usefixtures("postponed")


class DamagedChecks(TimerChecks):
    """Timer checks of which those of some tasks fail, by the seconds of a clock that does not move by itself."""

    def __init__(self, damaged: Iterable[int], **parts: object) -> None:
        self.metrics = Metrics()
        super().__init__(partial_context(metrics=self.metrics, now=lambda: NOON, **parts), cast("Relay", None))
        self.damaged = {UUID(int=number) for number in damaged}
        self.parts: list[list[int]] = []
        self.most, self.too_many = 1000, TaskherdError()
        self.slow: set[UUID] = set()
        self.locked: set[UUID] = set()
        self.is_deadlocked = False

    async def _reconcile(self, checks: Mapping[UUID, TimerCheck]) -> None:
        self.parts.append([task_id.int for task_id in checks])
        if not self.damaged.isdisjoint(checks):
            raise DataError("its state is damaged")
        if len(checks) > self.most:
            raise self.too_many
        if not self.slow.isdisjoint(checks):
            raise StatementTimeout("too slow")
        if self.is_deadlocked:
            raise Retry("a deadlock")
        if not self.locked.isdisjoint(checks):
            raise LockTimeout("a lock is not available")

    async def run_for(self, *numbers: int) -> int:
        """Check these tasks, and return how many checks succeeded."""
        return await self.run(dict.fromkeys(map(UUID, [f"{number:032x}" for number in numbers]), TimerCheck(None)))

    def count(self, name: str, **labels: str) -> float:
        """Return a counter."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}_total", labels) or 0


@pytest.fixture
def postponed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, datetime]]:
    """Return a list of the tasks that were postponed, each with the time until which it was."""
    tasks: list[tuple[int, datetime]] = []

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[str]:
        assert engine == "engine"
        yield "connection"

    async def postpone(connection: object, ids: Iterable[UUID], until: datetime) -> None:
        assert connection == "connection"
        tasks.extend((task_id.int, until) for task_id in sorted(ids))

    monkeypatch.setattr(timer_checks, "transaction", transaction)
    monkeypatch.setattr(tasks_store, "postpone", postpone)
    return tasks


@pytest.fixture
def damaged_checks() -> Callable[..., DamagedChecks]:
    """Return a function that returns timer checks of which those of the tasks with these numbers fail."""
    return lambda *damaged: DamagedChecks(damaged, engine="engine")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of one number: what the monotonic clock shows."""
    now = [1000.0]
    monkeypatch.setattr(timer_checks, "monotonic", lambda: now[0])
    return now


async def test_the_tasks_whose_check_fails_are_found(
    damaged_checks: Callable[..., DamagedChecks], seconds: list[float]
) -> None:
    """By halving; they are left out until their time has come, whatever else asks for a check, and all others count."""
    checks = damaged_checks(3)
    assert await checks.run_for(1, 2, 3, 4, 5) == 4
    assert checks.parts == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]
    assert (checks.count("batch_failures", reason="bisected"), checks.count("timer_checks_failed")) == (2, 1)
    checks.parts.clear()
    seconds[0] += RETRY_AFTER.total_seconds() - 1
    assert await checks.run_for(3, 6) == 1
    assert await checks.run_for(3) == 0
    assert checks.parts == [[6]]
    seconds[0] += 1
    assert await checks.run_for(3, 6) == 1
    assert checks.parts == [[6], [3, 6], [3], [6]]
    seconds[0] += RETRY_AFTER.total_seconds()
    checks.damaged.clear()
    assert await checks.run_for(3) == 1


async def test_the_failed_checks_that_are_remembered_are_bounded(
    damaged_checks: Callable[..., DamagedChecks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that failed the longest time ago is forgotten first, and may be checked earlier."""
    monkeypatch.setattr(timer_checks, "MAX_FAILED", 2)
    checks = damaged_checks(1, 2, 3)
    assert [await checks.run_for(number) for number in (1, 2, 3)] == [0, 0, 0]
    checks.parts.clear()
    assert await checks.run_for(2, 3) == 0
    assert checks.parts == []
    checks.damaged.clear()
    assert await checks.run_for(1, 2, 3) == 1
    assert checks.parts == [[1]]


async def test_more_checks_than_fit_into_memory_are_done_in_parts(
    damaged_checks: Callable[..., DamagedChecks],
) -> None:
    """Each is done at once, and none is postponed."""
    checks = damaged_checks()
    checks.most, checks.too_many = 2, PromptSizeError("together")
    assert await checks.run_for(1, 2, 3, 4) == 4
    assert checks.parts == [[1, 2, 3, 4], [1, 2], [3, 4]]
    assert (checks.count("batch_failures", reason="bisected"), checks.count("timer_checks_failed")) == (1, 0)


async def test_checks_that_take_too_long_together_are_fewer_the_next_time(
    damaged_checks: Callable[..., DamagedChecks], seconds: list[float]
) -> None:
    """One timeout for each run, because all may take as long; a minute later they are more again."""
    checks = damaged_checks()
    checks.most, checks.too_many = 2, StatementTimeout("too slow")
    for tried in ([[1, 2, 3, 4, 5, 6, 7, 8]], [[1, 2, 3, 4]]):
        with pytest.raises(StatementTimeout):
            await checks.run_for(*range(1, 9))
        assert checks.parts == tried
        checks.parts.clear()
    checks.most = 1000
    for passed, tried in (
        (0, [[1, 2], [3, 4], [5]]),
        (GROW_AFTER - 1, [[1, 2], [3, 4], [5]]),
        (1, [[1, 2], [3, 4], [5]]),
        (GROW_AFTER - 1, [[1, 2, 3, 4], [5]]),
        (1, [[1, 2, 3, 4], [5]]),
        (0, [[1, 2, 3, 4, 5]]),
    ):
        seconds[0] += passed
        assert await checks.run_for(*range(1, 6)) == 5
        assert checks.parts == tried
        checks.parts.clear()
    assert checks.count("timer_checks_failed") == 0


async def test_a_check_that_alone_takes_too_long_keeps_no_other_waiting(
    damaged_checks: Callable[..., DamagedChecks],
) -> None:
    """The others come first the next time; if they succeed it is not the database that is slow."""
    checks = damaged_checks()
    checks.slow = {UUID(int=1)}
    for tried in ([[1, 2, 3, 4]], [[1, 2]], [[1]]):
        with pytest.raises(StatementTimeout):
            await checks.run_for(1, 2, 3, 4)
        assert checks.parts == tried
        checks.parts.clear()
    assert await checks.run_for(1, 2, 3, 4) == 3
    assert checks.parts == [[2], [3], [4], [1]]
    assert checks.count("timer_checks_failed") == 1
    checks.parts.clear()
    assert await checks.run_for(1, 2) == 1
    assert checks.parts == [[2]]


async def test_checks_that_alone_take_too_long_keep_no_other_waiting(
    damaged_checks: Callable[..., DamagedChecks],
) -> None:
    """However many they are."""
    checks = damaged_checks()
    checks.slow = {UUID(int=1), UUID(int=2), UUID(int=4)}
    for _ in range(8):
        with suppress(StatementTimeout):
            await checks.run_for(1, 2, 3, 4, 5)
    assert checks.count("timer_checks_failed") == 3
    checks.parts.clear()
    assert await checks.run_for(1, 2, 3, 4, 5) == 2
    assert [number for part in checks.parts for number in part] == [3, 5]


async def test_a_check_that_alone_takes_too_long_is_postponed_in_the_end(
    damaged_checks: Callable[..., DamagedChecks],
) -> None:
    """The third time in a row, if there are no others; a success begins anew."""
    checks = damaged_checks()
    for ends in (False, True):
        checks.slow = {UUID(int=1)}
        for _ in range(2):
            with pytest.raises(StatementTimeout):
                await checks.run_for(1)
        if not ends:
            checks.slow = set()
        assert await checks.run_for(1) == (0 if ends else 1)
    assert checks.count("timer_checks_failed") == 1


async def test_the_checks_that_took_too_long_and_are_remembered_are_bounded(
    damaged_checks: Callable[..., DamagedChecks],
    monkeypatch: pytest.MonkeyPatch,
    postponed: list[tuple[int, datetime]],
) -> None:
    """The one that took too long the longest time ago is forgotten first, and has three times anew."""
    monkeypatch.setattr(timer_checks, "MAX_FAILED", 2)
    checks = damaged_checks()
    checks.slow = {UUID(int=number) for number in (1, 2, 3)}
    for number in (1, 2, 3, 2):
        with pytest.raises(StatementTimeout):
            await checks.run_for(number)
    assert await checks.run_for(2) == 0
    assert postponed == [(2, NOON + RETRY_AFTER)]
    for _ in range(2):
        with pytest.raises(StatementTimeout):
            await checks.run_for(1)
    assert await checks.run_for(1) == 0
    assert postponed[1:] == [(1, NOON + RETRY_AFTER)]


async def test_a_thousand_tasks_are_checked_together(damaged_checks: Callable[..., DamagedChecks]) -> None:
    """The rest follows at once."""
    checks = damaged_checks()
    assert await checks.run_for(*range(1, 2_002)) == 2_001
    assert [len(part) for part in checks.parts] == [1_000, 1_000, 1]


async def test_no_more_than_a_thousand_tasks_are_checked_together_again(
    damaged_checks: Callable[..., DamagedChecks], seconds: list[float]
) -> None:
    """However often the number was doubled."""
    checks = damaged_checks()
    checks.most, checks.too_many = 600, StatementTimeout("too slow")
    with pytest.raises(StatementTimeout):
        await checks.run_for(*range(1, 702))
    checks.most = 1_000
    for expected in ([350, 350, 350, 350, 1], [700, 700, 1], [1_000, 401], [1_000, 401]):
        checks.parts.clear()
        seconds[0] += GROW_AFTER
        assert await checks.run_for(*range(1, 1_402)) == 1_401
        assert [len(part) for part in checks.parts] == expected


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> set[UUID]:
    """Return a set of tasks that other transactions have locked."""
    tasks: set[UUID] = set()

    async def find_locked(_: object, ids: Iterable[UUID]) -> set[UUID]:
        return set(ids) & tasks

    monkeypatch.setattr(tasks_store, "find_locked", find_locked)
    return tasks


async def test_locked_tasks_are_left_out_for_a_while(
    damaged_checks: Callable[..., DamagedChecks],
    seconds: list[float],
    locked: set[UUID],
    postponed: list[tuple[int, datetime]],
) -> None:
    """And checked again then; what is damaged beside them is found as ever."""
    checks = damaged_checks(4)
    checks.locked = locked
    locked |= {UUID(int=2), UUID(int=3)}
    assert await checks.run_for(1, 2, 3, 5) == 2
    assert await checks.run_for(2, 3) == 0
    assert checks.parts == [[1, 2, 3, 5], [1, 5]]
    assert postponed == [(2, NOON + LOCKED_RETRY_AFTER), (3, NOON + LOCKED_RETRY_AFTER)]
    seconds[0] += LOCKED_RETRY_AFTER.total_seconds() - 1
    assert await checks.run_for(2, 1) == 1
    seconds[0] += 1
    locked.remove(UUID(int=2))
    checks.parts.clear()
    assert await checks.run_for(2, 3, 4, 5) == 2
    assert checks.parts == [[2, 3, 4, 5], [2, 3], [2], [4, 5], [4], [5]]
    seconds[0] += LOCKED_RETRY_AFTER.total_seconds()
    checks.parts.clear()
    assert await checks.run_for(3) == 0
    assert (checks.parts, checks.count("timer_checks_failed")) == ([[3]], 1)


async def test_a_conflict_of_tasks_that_nobody_has_locked_ends_the_run(
    damaged_checks: Callable[..., DamagedChecks], locked: set[UUID]
) -> None:
    """The next one may succeed with all of them; so it is of a conflict without those that were locked."""
    checks = damaged_checks()
    checks.is_deadlocked = True
    with pytest.raises(Retry):
        await checks.run_for(1, 2)
    locked.add(UUID(int=2))
    with pytest.raises(Retry):
        await checks.run_for(1, 2)
    assert checks.parts == [[1, 2], [1, 2], [1]]


async def test_a_task_that_waits_for_another_lock_is_found_by_halving(
    damaged_checks: Callable[..., DamagedChecks],
    seconds: list[float],
    locked: set[UUID],
    postponed: list[tuple[int, datetime]],
) -> None:
    """None of its own rows is locked. It waits a while, is then checked alone, after the others, and waits longer."""
    checks = damaged_checks()
    checks.locked = {UUID(int=3)}
    assert await checks.run_for(1, 2, 3, 4, 5) == 4
    assert checks.parts == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]
    assert await checks.run_for(3) == 0
    assert (postponed, checks.count("timer_checks_failed")) == ([], 0)
    seconds[0] += LOCKED_RETRY_AFTER.total_seconds()
    checks.parts.clear()
    assert await checks.run_for(1, 2, 3, 4, 5) == 4
    assert checks.parts == [[1, 2, 4, 5], [3]]
    assert (postponed, checks.count("timer_checks_failed")) == ([(3, NOON + RETRY_AFTER)], 1)
    assert locked == set()


async def test_a_run_that_always_waits_for_locks_ends(
    damaged_checks: Callable[..., DamagedChecks], seconds: list[float], locked: set[UUID]
) -> None:
    """Each time takes seconds. The tasks that were found wait, and the next run goes on with the others."""
    checks = damaged_checks()
    checks.locked = {UUID(int=number) for number in range(1, 101)}
    with pytest.raises(LockTimeout):
        await checks.run_for(*range(1, 101))
    assert len(checks.parts) == MAX_CONFLICTS + 1
    found = {part[0] for part in checks.parts if len(part) == 1}
    assert found
    checks.parts.clear()
    checks.locked.clear()
    assert await checks.run_for(*range(1, 101)) == 100 - len(found)
    seconds[0] += LOCKED_RETRY_AFTER.total_seconds()
    assert await checks.run_for(*range(1, 101)) == 100
    assert locked == set()


async def test_a_lock_that_is_gone_meanwhile_delays_no_task(
    damaged_checks: Callable[..., DamagedChecks], locked: set[UUID], postponed: list[tuple[int, datetime]]
) -> None:
    """Somebody gave it back when this looked for it."""
    checks = damaged_checks()
    checks.most, checks.too_many = 2, LockTimeout("a lock is not available")
    assert await checks.run_for(1, 2, 3, 4) == 4
    assert checks.parts == [[1, 2, 3, 4], [1, 2], [3, 4]]
    assert (postponed, locked) == ([], set())
