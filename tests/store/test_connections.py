"""Connections handed from one statement to the next: none is lost, whoever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from taskherd.store.connections import Connections


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[Connections]:
    """At most two."""
    pool = asyncpg.create_pool(database_url, min_size=0, max_size=2)
    await pool
    connections = Connections(pool, 2)
    yield connections
    await connections.close(5)


async def test_who_waits_gets_the_next(two: Connections) -> None:
    """With all taken, those who ask wait in order, and the same connections go round."""
    first, second = await two.take(5), await two.take(5)
    assert two.in_use == 2
    waiting = [asyncio.create_task(two.take(5)) for _ in range(2)]
    await asyncio.sleep(0)
    await two.give_back(second)
    await two.give_back(first)
    assert await asyncio.gather(*waiting) == [second, first]
    with pytest.raises(TimeoutError):
        await two.take(0.01)
    for each in (first, second):
        await two.give_back(each)
    assert two.in_use == 0
    assert await two.take(5) is second


async def test_what_died_is_replaced(two: Connections) -> None:
    """A connection that ended while it was free, or in use with somebody waiting, makes room for a new one."""
    first, second = await two.take(5), await two.take(5)
    await two.give_back(first)
    first.terminate()
    third = await two.take(5)
    assert await third.fetchval("SELECT 1") == 1
    waiting = asyncio.create_task(two.take(5))
    await asyncio.sleep(0)
    second.terminate()
    await two.give_back(second)
    fourth = await waiting
    assert await fourth.fetchval("SELECT 1") == 1
    assert two.in_use == 2


async def test_who_gives_up_takes_nothing_along(two: Connections) -> None:
    """A waiter cancelled at the very moment of its turn hands the connection on."""
    first, second = await two.take(5), await two.take(5)
    leaving, staying = (asyncio.create_task(two.take(5)) for _ in range(2))
    await asyncio.sleep(0)
    await two.give_back(first)
    leaving.cancel()
    assert await staying is first
    assert leaving.cancelled()
    await two.give_back(first)
    await two.give_back(second)
    assert two.in_use == 0


async def test_closing_ends_those_who_wait(two: Connections) -> None:
    """Whoever waits while it is closed is told at once; what was out is not kept when it comes back."""
    first, _second = await two.take(5), await two.take(5)
    waiting = asyncio.create_task(two.take(60))
    await asyncio.sleep(0)
    await two.close(0.1)
    with pytest.raises(asyncpg.InterfaceError):
        await waiting
    await two.give_back(first)
    assert two.in_use == 1
