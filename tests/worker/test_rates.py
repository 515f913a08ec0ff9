"""Rates: how many tasks and dead letters a worker counts in each hour, and what becomes of what cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.errors import Retry, Unavailable
from taskherd.messages.document import Ending
from taskherd.messages.events import EventKind
from taskherd.store import rates as rates_store
from taskherd.store.engine import dispose, open_engine
from taskherd.store.rates import RateKey, TaskCounts
from taskherd.worker import rates
from taskherd.worker.batch import CommittedChange
from taskherd.worker.rates import Rates
from tests.harness.tasks import make_task

ALICE, BOB, ACME = (UUID(int=number) for number in (1, 2, 3))
TEN, ELEVEN = (datetime(2026, 11, 27, hour, tzinfo=UTC) for hour in (10, 11))
LAST = TEN.replace(minute=59, second=59, microsecond=999_999)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of one connection."""
    opened = open_engine(database_url, size=1, application_name="taskherd-tests")
    yield opened
    await dispose(opened)


def change(owner_id: UUID, kind: EventKind = EventKind.UPDATED, ending: Ending | None = None) -> CommittedChange:
    """Return a change of a task of this owner."""
    task = make_task(UUID(int=9), owner_id=owner_id, organization_id=ACME)
    return CommittedChange(task, kind, "{}", (), "{}", ending)


async def stored(engine: AsyncEngine, table: str, *columns: str) -> list[tuple[Any, ...]]:
    """Return all rows of a table."""
    async with engine.connect() as connection:
        rows = await connection.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2"))
        return [tuple(row) for row in rows]


async def test_changes_and_dead_letters_are_added_to_their_hour(engine: AsyncEngine) -> None:
    """Two workers count creates, completions and failures of each owner, and dead letters, within the same hours."""
    one, other = Rates(), Rates()
    created = change(ALICE, EventKind.CREATED)
    one.count_changes([created, created, change(ALICE), change(BOB, ending=Ending.COMPLETED)], TEN)
    one.count_changes([change(ALICE, ending=Ending.FAILED)], LAST)
    other.count_changes([change(ALICE, EventKind.CREATED, Ending.FAILED)], LAST)
    other.count_changes([created], ELEVEN)
    for worker, at in ((one, TEN), (one, LAST), (other, LAST), (other, ELEVEN)):
        worker.count_dead_letter("invalid", at)
    other.count_dead_letter("fault", ELEVEN)
    for worker in (one, other, one):  # nothing is written twice
        await worker.write_once(engine)
    assert await stored(
        engine, "task_rates", "hour", "owner_id", "organization_id", "created", "completed", "failed"
    ) == [
        (TEN, ALICE, ACME, 3, 0, 2),
        (TEN, BOB, ACME, 0, 1, 0),
        (ELEVEN, ALICE, ACME, 1, 0, 0),
    ]
    assert await stored(engine, "dead_letter_rates", "hour", "reason", "letters") == [
        (TEN, "invalid", 3),
        (ELEVEN, "fault", 1),
        (ELEVEN, "invalid", 1),
    ]


async def test_counts_that_cannot_be_written_are_kept(engine: AsyncEngine) -> None:
    """While there is no database, counts wait, and are written together with those that were made meanwhile."""
    away = open_engine("postgresql://taskherd@127.0.0.1:1/none", size=1, application_name="taskherd-tests")
    counted = Rates()
    for database in (away, engine):
        counted.count_changes(
            [change(ALICE, EventKind.CREATED, Ending.COMPLETED), change(BOB, ending=Ending.FAILED)], TEN
        )
        counted.count_dead_letter("invalid", TEN)
        if database is away:
            with pytest.raises(Unavailable):
                await counted.write_once(database)
        else:
            await counted.write_once(database)
    await dispose(away)
    assert await stored(engine, "task_rates", "hour", "owner_id", "created", "completed", "failed") == [
        (TEN, ALICE, 2, 2, 0),
        (TEN, BOB, 0, 0, 2),
    ]
    assert await stored(engine, "dead_letter_rates", "hour", "letters") == [(TEN, 2)]


async def test_what_waits_for_the_database_is_bounded(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many counts wait, those of further owners are left out, and those of known ones go on."""
    monkeypatch.setattr(rates, "MAX_KEYS", 1)
    counted = Rates()
    for owner in (ALICE, BOB, ALICE):
        counted.count_changes([change(owner, EventKind.CREATED)], TEN)
    await counted.write_once(engine)
    assert await stored(engine, "task_rates", "hour", "owner_id", "created") == [(TEN, ALICE, 2)]


async def test_counts_are_written_every_few_seconds(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written, because of an outage or a conflict, is written the next time."""
    monkeypatch.setattr(rates, "INTERVAL", 0.01)
    counted, errors, add = Rates(), [Unavailable("no database"), Retry("a conflict")], rates_store.add

    async def add_or_fail(connection: AsyncConnection, counts: Mapping[RateKey, TaskCounts]) -> None:
        if errors:
            raise errors.pop(0)
        await add(connection, counts)

    monkeypatch.setattr(rates_store, "add", add_or_fail)
    running = asyncio.create_task(counted.run(engine))
    try:
        for count in (1, 2):
            counted.count_changes([change(ALICE, EventKind.CREATED)], TEN)
            async with asyncio.timeout(20):
                while await stored(engine, "task_rates", "hour", "created") != [(TEN, count)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert errors == []
