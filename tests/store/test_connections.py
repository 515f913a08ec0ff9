"""Connections handed from one statement to the next: none is lost, whoever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from taskherd.store.connections import ConnectionPool


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[ConnectionPool]:
    """At most two."""
    pool = asyncpg.create_pool(database_url, min_size=0, max_size=2)
    await pool
    connections = ConnectionPool(pool, 2)
    yield connections
    await connections.close(5)


async def test_who_waits_gets_the_next(two: ConnectionPool) -> None:
    """With all taken, those who ask wait in order, and the same connections go round."""
    first, second = await two.acquire(5), await two.acquire(5)
    assert two.in_use == 2
    waiting = [asyncio.create_task(two.acquire(5)) for _ in range(2)]
    await asyncio.sleep(0)
    await two.release(second)
    await two.release(first)
    assert await asyncio.gather(*waiting) == [second, first]
    with pytest.raises(TimeoutError):
        await two.acquire(0.01)
    for each in (first, second):
        await two.release(each)
    assert two.in_use == 0
    assert await two.acquire(5) is second


async def test_what_died_is_replaced(two: ConnectionPool) -> None:
    """A connection that ended while it was free, or in use with somebody waiting, makes room for a new one."""
    first, second = await two.acquire(5), await two.acquire(5)
    await two.release(first)
    first.terminate()
    third = await two.acquire(5)
    assert await third.fetchval("SELECT 1") == 1
    waiting = asyncio.create_task(two.acquire(5))
    await asyncio.sleep(0)
    second.terminate()
    await two.release(second)
    fourth = await waiting
    assert await fourth.fetchval("SELECT 1") == 1
    assert two.in_use == 2


async def test_who_gives_up_takes_nothing_along(two: ConnectionPool) -> None:
    """A waiter cancelled at the very moment of its turn hands the connection on."""
    first, second = await two.acquire(5), await two.acquire(5)
    leaving, staying = (asyncio.create_task(two.acquire(5)) for _ in range(2))
    await asyncio.sleep(0)
    await two.release(first)
    leaving.cancel()
    assert await staying is first
    assert leaving.cancelled()
    await two.release(first)
    await two.release(second)
    assert two.in_use == 0


async def test_closing_ends_those_who_wait(two: ConnectionPool) -> None:
    """Whoever waits while it is closed is told at once; what was out is not kept when it comes back."""
    first, _second = await two.acquire(5), await two.acquire(5)
    waiting = asyncio.create_task(two.acquire(60))
    await asyncio.sleep(0)
    await two.close(0.1)
    with pytest.raises(asyncpg.InterfaceError):
        await waiting
    await two.release(first)
    assert two.in_use == 1
