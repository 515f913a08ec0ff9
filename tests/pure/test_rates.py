"""In which hour a worker counts, and what becomes of counts that are made while others are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from taskherd.errors import Unavailable
from taskherd.messages.document import Ending
from taskherd.messages.events import EventKind
from taskherd.store import rates as rates_store
from taskherd.store.rates import RateKey, TaskCounts
from taskherd.worker import rates as rates_module
from taskherd.worker.batch import CommittedChange
from taskherd.worker.rates import Rates
from tests.harness.tasks import make_task

ALICE, BOB, ACME = (UUID(int=number) for number in (1, 2, 3))
TEN, ELEVEN = (datetime(2026, 11, 27, hour, tzinfo=UTC) for hour in (10, 11))
LAST = TEN.replace(minute=59, second=59, microsecond=999_999)
ENGINE: Any = "engine"


class Written:
    """The counts that were written to the database."""

    def __init__(self) -> None:
        self.tasks: list[dict[RateKey, tuple[int, int, int]]] = []
        self.letters: list[dict[tuple[datetime, str], int]] = []


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Return what is written."""
    written = Written()

    @asynccontextmanager
    async def transaction(_: object) -> AsyncIterator[None]:
        yield

    async def add(_: object, counts: Mapping[RateKey, TaskCounts]) -> None:
        written.tasks.append({key: (each.created, each.completed, each.failed) for key, each in counts.items()})

    async def add_dead_letters(_: object, counts: Mapping[tuple[datetime, str], int]) -> None:
        written.letters.append(dict(counts))

    monkeypatch.setattr(rates_module, "transaction", transaction)
    monkeypatch.setattr(rates_store, "add", add)
    monkeypatch.setattr(rates_store, "add_dead_letters", add_dead_letters)
    return written


def change(owner_id: UUID, kind: EventKind = EventKind.UPDATED, ending: Ending | None = None) -> CommittedChange:
    """Return a change of a task of this owner."""
    task = make_task(UUID(int=9), owner_id=owner_id, organization_id=ACME)
    return CommittedChange(task, kind, "{}", (), "{}", ending)


async def test_an_hour_ends_with_its_last_microsecond(written: Written) -> None:
    """What is counted after that is of the next one; what neither begins nor ends a task is not counted."""
    rates = Rates()
    for now in (TEN, LAST, ELEVEN):
        rates.count_changes([change(ALICE, EventKind.CREATED), change(BOB), change(BOB, EventKind.DELETED)], now)
        rates.count_dead_letter("invalid", now)
    await rates.write_once(ENGINE)
    assert written.tasks == [{RateKey(TEN, ACME, ALICE): (2, 0, 0), RateKey(ELEVEN, ACME, ALICE): (1, 0, 0)}]
    assert written.letters == [{(TEN, "invalid"): 2, (ELEVEN, "invalid"): 1}]


@pytest.mark.parametrize("problem", [Unavailable("gone"), asyncio.CancelledError()])
async def test_counts_made_while_others_are_written_are_kept_beside_them(
    written: Written, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    """If those cannot be written, both are the next time."""
    rates = Rates()

    def count_all() -> None:
        changes = [change(ALICE, EventKind.CREATED, Ending.COMPLETED), change(BOB, ending=Ending.FAILED)]
        rates.count_changes(changes, TEN)
        rates.count_dead_letter("invalid", TEN)

    async def fail(_: object, __: object) -> None:
        count_all()
        raise problem

    count_all()
    with monkeypatch.context() as patched:
        patched.setattr(rates_store, "add", fail)
        with pytest.raises(type(problem)):
            await rates.write_once(ENGINE)
    await rates.write_once(ENGINE)
    assert written.tasks == [{RateKey(TEN, ACME, ALICE): (2, 2, 0), RateKey(TEN, ACME, BOB): (0, 0, 2)}]
    assert written.letters == [{(TEN, "invalid"): 2}]
