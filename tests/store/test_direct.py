"""Statements without SQLAlchemy: the same transaction, and the same errors, as those with it."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.errors import Unavailable
from taskherd.store.direct import DirectStatement
from taskherd.store.engine import DataError, transaction

NOTE = DirectStatement("INSERT INTO notes (id, words) VALUES (CAST(:id AS integer), :words) RETURNING id, :words")
COUNT = text("SELECT count(*) FROM notes")


@pytest.fixture
async def notes(engine: AsyncEngine) -> None:
    """Create a table."""
    async with transaction(engine) as connection:
        await connection.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, words text)"))


async def write(engine: AsyncEngine, *ids: int, then: str = "SELECT 1") -> None:
    """Write notes without SQLAlchemy and execute another such statement, in one transaction."""
    async with transaction(engine) as connection:
        for identity in ids:
            rows = await NOTE.fetch(connection, {"words": f"note {identity}", "id": identity})
            assert [tuple(row) for row in rows] == [(identity, f"note {identity}")]
        await DirectStatement(then).fetch(connection, {})


async def count(engine: AsyncEngine) -> int:
    """Return the number of notes."""
    async with transaction(engine) as connection:
        return int((await connection.execute(COUNT)).scalar_one())


@pytest.mark.usefixtures("notes")
async def test_it_belongs_to_the_transaction(engine: AsyncEngine) -> None:
    """As its first statement too: what it wrote is committed with the rest, or rolled back by an error."""
    await write(engine, 1, 2)
    assert await count(engine) == 2
    with pytest.raises(DataError):
        await write(engine, 3, then="SELECT 1 / 0")
    with pytest.raises(DataError):
        await write(engine, 4, 1)
    assert await count(engine) == 2


@pytest.mark.usefixtures("notes")
async def test_a_lost_connection_is_an_outage(engine: AsyncEngine) -> None:
    """It is not used again, so the next transaction works."""
    for _ in range(3):
        with pytest.raises(Unavailable):
            await write(engine, 1, then="SELECT pg_terminate_backend(pg_backend_pid())")
    assert await count(engine) == 0
