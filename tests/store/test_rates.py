"""Rates by hour in the database: pruned by their age, and written in one order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import rates
from taskherd.store.engine import transaction
from taskherd.store.rates import RateKey, TaskCounts
from tests.store.conftest import empty, ignore_indexes

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def stored(connection: AsyncConnection) -> list[tuple[int, int, int, int, int, int]]:
    """Return hour, organization, owner and counts of all rows, in the order in which they were written."""
    rows = await connection.execute(
        text("SELECT hour, organization_id, owner_id, created, completed, failed FROM task_rates ORDER BY ctid")
    )
    return [(row[0].hour, row[1].int, row[2].int, *row[3:]) for row in rows]


def key(hour: int, organization: int, owner: int) -> RateKey:
    """Return the key of an hour of the day."""
    return RateKey(NOON.replace(hour=hour), UUID(int=organization), UUID(int=owner))


async def test_counts_are_added_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    """Whatever the order in which they were counted, so that two workers do not deadlock; each to its own."""
    counts = {
        key(12, 2, 1): TaskCounts(1, 2, 3),
        key(13, 1, 1): TaskCounts(4, 5, 6),
        key(12, 1, 2): TaskCounts(7, 8, 9),
        key(12, 1, 1): TaskCounts(10, 11, 12),
    }
    letters = {(NOON + HOUR, "a"): 5, (NOON, "b"): 2, (NOON, "a"): 1}
    async with transaction(engine) as connection:
        await empty(connection, "task_rates")
        await rates.add(connection, counts)
        assert await stored(connection) == [
            (12, 1, 1, 10, 11, 12), (12, 1, 2, 7, 8, 9), (12, 2, 1, 1, 2, 3), (13, 1, 1, 4, 5, 6)
        ]  # fmt: skip
        await rates.add(connection, {key(12, 1, 2): TaskCounts(100, 200, 300)})
        assert sorted(await stored(connection))[1] == (12, 1, 2, 107, 208, 309)
        await rates.add_dead_letters(connection, letters)
        await rates.add_dead_letters(connection, {(NOON, "b"): 40})
        rows = await connection.execute(
            text("SELECT hour, reason, letters FROM dead_letter_rates ORDER BY hour, reason")
        )
        assert [tuple(row) for row in rows] == [(NOON, "a", 1), (NOON, "b", 42), (NOON + HOUR, "a", 5)]


async def test_dead_letters_are_added_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    """As the counts of tasks are."""
    async with transaction(engine) as connection:
        await empty(connection, "dead_letter_rates")
        await rates.add_dead_letters(connection, {(NOON + HOUR, "a"): 3, (NOON, "b"): 2, (NOON, "a"): 1})
        rows = await connection.execute(text("SELECT letters FROM dead_letter_rates ORDER BY ctid"))
        assert list(rows.scalars()) == [1, 2, 3]


async def test_the_oldest_hours_are_pruned(engine: AsyncEngine) -> None:
    """Up to the limit of tasks' counts, and all of dead letters; nothing of the hour itself or later ones."""
    async with transaction(engine) as connection:
        await rates.add(connection, {key(11, 1, 1): TaskCounts(1)})
        await rates.add(connection, {key(9, 1, 1): TaskCounts(2), key(9, 1, 2): TaskCounts(3)})
        await rates.add(connection, {key(12, 1, 1): TaskCounts(4), key(10, 2, 1): TaskCounts(5)})
        await rates.add_dead_letters(connection, {(NOON - hours * HOUR, "a"): 1 for hours in (-1, 0, 1, 2)})
        await ignore_indexes(connection)
        assert await rates.prune(connection, NOON, 3) == 3
        assert sorted(row[:4] for row in await stored(connection)) == [(11, 1, 1, 1), (12, 1, 1, 4)]
        rows = await connection.execute(text("SELECT hour FROM dead_letter_rates ORDER BY hour"))
        assert list(rows.scalars()) == [NOON, NOON + HOUR]
        assert await rates.prune(connection, NOON, 3) == 1
        assert await rates.prune(connection, NOON, 3) == 0
