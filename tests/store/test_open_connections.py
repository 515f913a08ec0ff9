"""The connections of an engine between two transactions: which one comes next, and how one is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.errors import Unavailable
from taskherd.store import engine as engines
from taskherd.store import open_connections
from taskherd.store.engine import dispose, in_use, open_engine, transaction
from tests.harness.databases import connected

NAME = "taskherd-open-connections"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine with two connections, which waits half a minute for one."""
    opened = open_engine(database_url, size=2, application_name=NAME, command_timeout=30)
    yield opened
    await dispose(opened)


async def session(engine: AsyncEngine) -> int:
    """Return the process of the server that executes a transaction."""
    async with transaction(engine) as connection:
        return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def test_the_connection_that_was_used_last_is_used_next(engine: AsyncEngine) -> None:
    """Each transaction has its own; both stay open after it, until the engine is closed."""
    async with transaction(engine), transaction(engine):
        assert in_use(engine) == 2
    assert in_use(engine) == 0
    first = await session(engine)
    async with transaction(engine):
        assert in_use(engine) == 1
        second = await session(engine)
    assert first != second
    assert [await session(engine) for _ in range(3)] == [first] * 3


async def test_whoever_finds_all_in_use_has_the_next_one_in_turn(engine: AsyncEngine) -> None:
    """Nobody who comes later overtakes, and one that gives up takes none away from the others."""
    served: list[int] = []

    async def use(number: int) -> None:
        async with transaction(engine):
            served.append(number)

    async with transaction(engine):
        async with transaction(engine):
            waiting = [asyncio.create_task(use(number)) for number in range(4)]
            await asyncio.sleep(0)
            waiting[1].cancel()
        late = asyncio.create_task(use(4))
        await asyncio.wait([*waiting, late])
        assert served == [0, 2, 3, 4]
    assert in_use(engine) == 0


async def test_who_waits_for_too_long_is_told_so(database_url: str) -> None:
    """It is an outage, as if the database did not answer; the connection is handed out again afterwards."""
    engine = open_engine(database_url, size=1, application_name=NAME, command_timeout=0.5)
    async with transaction(engine):
        with pytest.raises(Unavailable, match=r"^no connection to the database became free in 0\.5 s$"):
            await session(engine)
    assert await session(engine)
    await dispose(engine)


async def test_an_old_connection_is_replaced(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is when it would be used again, or kept."""
    first = await session(engine)
    kept = engine.sync_engine.get_execution_options()[engines._CONNECTIONS]
    kept._replace_at.update(dict.fromkeys(kept._replace_at, 0.0))
    monkeypatch.setattr(engine.pool, "_recycle", 0)
    second = await session(engine)
    assert second != first
    monkeypatch.setattr(open_connections, "LIFETIME", 0.0)
    async with transaction(engine):
        third = await session(engine)
    assert third not in {first, second}
    assert await session(engine) == second
    assert await session(engine) == second


async def test_a_connection_that_the_server_has_closed_is_replaced(engine: AsyncEngine, database_url: str) -> None:
    """The next transaction does not notice, once this side knows."""
    first = await session(engine)
    kept = engine.sync_engine.get_execution_options()[engines._CONNECTIONS]
    driver = open_connections.driver_connection(kept._idle[0])
    async with connected(database_url) as other:
        await other.execute("SELECT pg_terminate_backend($1)", first)
    async with asyncio.timeout(30):
        while not driver.is_closed():  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)
    assert await session(engine) != first
    assert in_use(engine) == 0


async def test_one_that_is_lost_before_its_transaction_begins_takes_no_place(database_url: str) -> None:
    """It is an outage; the next transaction has another connection."""
    engine = open_engine(database_url, size=1, application_name=NAME, command_timeout=30)
    first = await session(engine)
    kept = engine.sync_engine.get_execution_options()[engines._CONNECTIONS]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept, "_is_usable", lambda _: True)  # nothing of it is known yet
        open_connections.driver_connection(kept._idle[0]).terminate()
        with pytest.raises(Unavailable, match="connection is closed"):
            await session(engine)
    assert in_use(engine) == 0
    assert await session(engine) != first
    await dispose(engine)


async def test_no_session_is_left_after_the_engine(engine: AsyncEngine, database_url: str) -> None:
    """Nor does one that is closed twice fail."""
    async with transaction(engine):
        await session(engine)
    await dispose(engine)
    async with connected(database_url) as other:
        assert await until_none(other)
    await dispose(engine)


async def until_none(database: asyncpg.Connection) -> bool:
    """Wait until the engine has no session."""
    async with asyncio.timeout(30):
        while await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", NAME):  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)
    return True
