"""What a worker counts in each hour, and what becomes of counts that cannot be written; without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from taskherd.errors import Retry, Unavailable
from taskherd.messages.document import Ending
from taskherd.messages.events import EventKind
from taskherd.store import rates as rates_store
from taskherd.store.rates import RateKey, TaskCounts
from taskherd.worker import rates as rates_module
from taskherd.worker.batch import CommittedChange
from taskherd.worker.rates import Rates
from tests.harness.buffers import until
from tests.harness.tasks import make_task

ALICE, BOB, ACME = (UUID(int=number) for number in (1, 2, 3))
TEN, ELEVEN = (datetime(2026, 11, 27, hour, tzinfo=UTC) for hour in (10, 11))
LAST = TEN.replace(minute=59, second=59, microsecond=999_999)
FIRST_COUNTS = {RateKey(TEN, ACME, ALICE): (1, 1, 0), RateKey(TEN, ACME, BOB): (0, 0, 1)}


class Tables:
    """The tables of rates, which fail so often before they are written."""

    def __init__(self) -> None:
        self.tasks: list[dict[RateKey, tuple[int, int, int]]] = []
        self.letters: list[dict[tuple[datetime, str], int]] = []
        self.problems: list[Exception] = []
        self.transactions = 0
        self.engine: Any = "engine"

    @asynccontextmanager
    async def transaction(self, engine: object) -> AsyncIterator[str]:
        """Begin a transaction, or fail."""
        assert engine == self.engine
        self.transactions += 1
        if self.problems:
            raise self.problems.pop(0)
        yield "connection"

    async def add(self, connection: object, counts: Mapping[RateKey, TaskCounts]) -> None:
        """Add counts of tasks."""
        assert connection == "connection"
        self.tasks.append({key: (each.created, each.completed, each.failed) for key, each in counts.items()})

    async def add_dead_letters(self, connection: object, counts: Mapping[tuple[datetime, str], int]) -> None:
        """Add counts of dead letters."""
        assert connection == "connection"
        self.letters.append(dict(counts))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Return the tables of rates."""
    tables = Tables()
    monkeypatch.setattr(rates_module, "transaction", tables.transaction)
    monkeypatch.setattr(rates_store, "add", tables.add)
    monkeypatch.setattr(rates_store, "add_dead_letters", tables.add_dead_letters)
    return tables


def change(owner_id: UUID, kind: EventKind = EventKind.UPDATED, ending: Ending | None = None) -> CommittedChange:
    """Return a change of a task of this owner."""
    task = make_task(UUID(int=9), owner_id=owner_id, organization_id=ACME)
    return CommittedChange(task, kind, "{}", (), "{}", ending)


def count_both(rates: Rates, now: datetime = TEN) -> None:
    """Count a task that was created completed, one that failed, and a dead letter."""
    rates.count_changes([change(ALICE, EventKind.CREATED, Ending.COMPLETED), change(BOB, ending=Ending.FAILED)], now)
    rates.count_dead_letter("invalid", now)


async def test_what_begins_or_ends_is_counted_in_its_hour(tables: Tables) -> None:
    """By owner and organization; other changes are not. Nothing is written twice."""
    rates = Rates()
    rates.count_changes(
        [
            change(ALICE, EventKind.CREATED), change(ALICE, EventKind.CREATED, Ending.FAILED), change(ALICE),
            change(BOB, ending=Ending.COMPLETED), change(UUID(int=4)), change(BOB, EventKind.DELETED),
        ],
        LAST,
    )  # fmt: skip
    rates.count_changes([change(BOB, ending=Ending.FAILED)], ELEVEN)
    for reason, now in (("invalid", TEN), ("fault", ELEVEN), ("invalid", LAST)):
        rates.count_dead_letter(reason, now)
    for _ in range(2):
        await rates.write_once(tables.engine)
    assert tables.tasks == [
        {
            RateKey(TEN, ACME, ALICE): (2, 0, 1),
            RateKey(TEN, ACME, BOB): (0, 1, 0),
            RateKey(ELEVEN, ACME, BOB): (0, 0, 1),
        }
    ]
    assert tables.letters == [{(TEN, "invalid"): 2, (ELEVEN, "fault"): 1}]
    assert tables.transactions == 1


@pytest.mark.parametrize("counted", ["tasks", "letters"])
async def test_only_tables_for_which_there_are_counts_are_written(tables: Tables, counted: str) -> None:
    """The other one is left alone."""
    rates = Rates()
    if counted == "tasks":
        rates.count_changes([change(ALICE, EventKind.CREATED)], TEN)
    else:
        rates.count_dead_letter("invalid", TEN)
    await rates.write_once(tables.engine)
    assert (len(tables.tasks), len(tables.letters)) == ((1, 0) if counted == "tasks" else (0, 1))


@pytest.mark.parametrize("problem", [Unavailable("no database"), Retry("a conflict"), asyncio.CancelledError()])
async def test_counts_that_cannot_be_written_are_added_to_later_ones(tables: Tables, problem: Exception) -> None:
    """Whatever the reason is."""
    rates = Rates()
    count_both(rates)
    tables.problems = [problem]
    with pytest.raises(type(problem)):
        await rates.write_once(tables.engine)
    count_both(rates, LAST)
    await rates.write_once(tables.engine)
    assert tables.tasks == [{key: (2 * a, 2 * b, 2 * c) for key, (a, b, c) in FIRST_COUNTS.items()}]
    assert tables.letters == [{(TEN, "invalid"): 2}]


async def test_counts_made_while_others_are_written_are_kept_beside_them(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If those cannot be written, both are the next time."""
    rates = Rates()
    count_both(rates)

    async def fail(_: object, __: object) -> None:
        count_both(rates)
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(rates_store, "add", fail)
        with pytest.raises(Unavailable):
            await rates.write_once(tables.engine)
    await rates.write_once(tables.engine)
    assert tables.tasks == [{key: (2 * a, 2 * b, 2 * c) for key, (a, b, c) in FIRST_COUNTS.items()}]
    assert tables.letters == [{(TEN, "invalid"): 2}]


async def test_20_000_counts_of_tasks_wait_for_the_database(tables: Tables) -> None:
    """Those of further owners are left out, and those of known ones go on."""
    rates = Rates()
    owners = [UUID(int=number) for number in range(1, 20_002)]
    rates._tasks.update({RateKey(TEN, ACME, owner): TaskCounts() for owner in owners[:19_999]})
    rates.count_changes([change(owner, EventKind.CREATED) for owner in (owners[-2], owners[-1], owners[0])], TEN)
    rates.count_changes([change(owners[-2], ending=Ending.FAILED)], TEN)
    await rates.write_once(tables.engine)
    (written,) = tables.tasks
    assert len(written) == 20_000
    assert {key.owner_id: counts for key, counts in written.items() if any(counts)} == {
        owners[0]: (1, 0, 0), owners[-2]: (1, 0, 1)
    }  # fmt: skip


async def test_counts_are_written_again_and_again(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an outage or a conflict keeps from that is written the next time; each time comes after a wait."""
    waits: list[float] = []

    class Time:
        """Time that passes at once, but for others."""

        @staticmethod
        async def sleep(seconds: float) -> None:
            """Wait."""
            waits.append(seconds)
            await asyncio.sleep(0)

    monkeypatch.setattr(rates_module, "asyncio", Time)
    rates = Rates()
    tables.problems = [Unavailable("no database"), Retry("a conflict")]
    count_both(rates)
    running = asyncio.create_task(rates.run(tables.engine))
    await until(lambda: len(waits) > 3)
    assert tables.tasks == [FIRST_COUNTS]
    assert tables.transactions == 3
    count_both(rates)
    await until(lambda: len(tables.tasks) == 2)
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
    assert tables.tasks == [FIRST_COUNTS, FIRST_COUNTS]
