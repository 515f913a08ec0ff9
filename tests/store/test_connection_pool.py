"""The connection pool: connections are passed on in order, and none is lost when one closes or a waiter gives up."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import asyncpg
import pytest

from taskherd.errors import Unavailable
from taskherd.store import connection_pool as pools
from taskherd.store.connection_pool import ConnectionPool
from tests.harness.tcp_proxy import TcpProxy, through


@pytest.fixture
async def connection_pool(database_url: str) -> AsyncIterator[ConnectionPool]:
    """Yield a pool of two connections."""
    pool = ConnectionPool(lambda: asyncpg.connect(database_url, timeout=30), 2)
    yield pool
    await pool.close(5)


async def test_waiters_get_released_connections_in_order(connection_pool: ConnectionPool) -> None:
    """If all connections are in use, callers wait in order and get the connections that are released."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    assert connection_pool.in_use == 2
    waiting = [asyncio.create_task(connection_pool.acquire(5)) for _ in range(2)]
    await asyncio.sleep(0)
    connection_pool.release(second)
    connection_pool.release(first)
    assert await asyncio.gather(*waiting) == [second, first]
    with pytest.raises(TimeoutError):
        await connection_pool.acquire(0.01)
    for each in (first, second):
        connection_pool.release(each)
    assert connection_pool.in_use == 0
    assert await connection_pool.acquire(5) is second


async def test_a_closed_connection_is_replaced(connection_pool: ConnectionPool) -> None:
    """A connection that closes while idle, or in use while a caller waits, makes room for a new one."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    connection_pool.release(first)
    first.terminate()
    third = await connection_pool.acquire(5)
    assert await third.fetchval("SELECT 1") == 1
    waiting = asyncio.create_task(connection_pool.acquire(5))
    await asyncio.sleep(0)
    second.terminate()
    connection_pool.release(second)
    fourth = await waiting
    assert await fourth.fetchval("SELECT 1") == 1
    assert connection_pool.in_use == 2


async def test_a_connection_that_closes_while_it_is_passed_on_is_replaced(connection_pool: ConnectionPool) -> None:
    """Who waits gets a new one in its place, as when its server is left just then; the next one goes on waiting."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    waiting, next_one = (asyncio.create_task(connection_pool.acquire(30)) for _ in range(2))
    await asyncio.sleep(0)
    connection_pool.release(first)
    first.terminate()
    third = await waiting
    assert await third.fetchval("SELECT 1") == 1
    assert connection_pool.in_use == 2
    assert not next_one.done()
    connection_pool.release(second)
    assert await next_one is second
    for each in (second, third):
        connection_pool.release(each)
    assert connection_pool.in_use == 0


async def test_an_old_connection_is_replaced(connection_pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has lived long enough is closed when it is released, and the next caller gets a new one."""
    first = await connection_pool.acquire(5)
    monkeypatch.setattr(pools, "LIFETIME", -1.0)
    connection_pool.release(first)
    assert connection_pool.in_use == 0
    second = await connection_pool.acquire(5)
    assert second is not first
    assert await second.fetchval("SELECT 1") == 1


async def test_a_cancelled_waiter_loses_no_connection(connection_pool: ConnectionPool) -> None:
    """A waiter that is cancelled just as it gets a connection passes it to the next waiter."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    cancelled, waiting = (asyncio.create_task(connection_pool.acquire(5)) for _ in range(2))
    await asyncio.sleep(0)
    connection_pool.release(first)
    cancelled.cancel()
    assert await waiting is first
    assert cancelled.cancelled()
    connection_pool.release(first)
    connection_pool.release(second)
    assert connection_pool.in_use == 0


async def test_closing_closes_idle_connections_too(connection_pool: ConnectionPool) -> None:
    """Nothing stays open, whether it is in use or not, and nothing is in use afterwards."""
    idle, used = await connection_pool.acquire(5), await connection_pool.acquire(5)
    connection_pool.release(idle)
    await connection_pool.close(5)
    assert (idle.is_closed(), used.is_closed(), connection_pool.in_use) == (True, True, 0)


async def test_a_server_that_does_not_close_a_connection_is_not_waited_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the connection is aborted, which is no error."""
    monkeypatch.setattr(pools, "_CLOSE_TIMEOUT", 0.05)
    proxy = await TcpProxy.before(database_url)
    connection = await asyncpg.connect(through(database_url, proxy), timeout=30)
    proxy.freeze()
    async with asyncio.timeout(30):
        await pools._close(connection)
    assert connection.is_closed()
    await proxy.stop()


async def test_closing_wakes_all_waiters(connection_pool: ConnectionPool) -> None:
    """Waiters fail at once when the pool is closed; a connection released later is not kept."""
    first, _second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    waiting = asyncio.create_task(connection_pool.acquire(60))
    await asyncio.sleep(0)
    await connection_pool.close(0.1)
    with pytest.raises(Unavailable):
        await waiting
    connection_pool.release(first)
    assert connection_pool.in_use == 0


async def test_connections_that_are_being_made_count(database_url: str) -> None:
    """No more than the size are ever open, and one that cannot be made makes room for who waits."""
    gates = [asyncio.Event() for _ in range(3)]
    calls: list[int] = []
    is_full = asyncio.Event()

    async def connect() -> asyncpg.Connection:
        number = len(calls)
        calls.append(number)
        if number == 1:
            is_full.set()
        await gates[number].wait()
        if number == 0:
            raise OSError("refused")
        return await asyncpg.connect(database_url, timeout=30)

    pool = ConnectionPool(connect, 2)
    first, second, third = (asyncio.create_task(pool.acquire(30)) for _ in range(3))
    await asyncio.wait_for(is_full.wait(), 30)
    assert (calls, pool.in_use) == ([0, 1], 2)
    gates[0].set()
    with pytest.raises(OSError, match="refused"):
        await first
    gates[1].set()
    gates[2].set()
    assert await second is not await third
    assert (calls, pool.in_use) == ([0, 1, 2], 2)
    await pool.close(5)
    assert pool.in_use == 0


async def test_connecting_takes_no_longer_than_the_caller_waits() -> None:
    """Afterwards there is room for another attempt."""

    async def connect() -> asyncpg.Connection:
        await asyncio.Event().wait()
        raise AssertionError

    pool = ConnectionPool(connect, 1)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await pool.acquire(0.01)
    assert pool.in_use == 0


async def test_a_cancelled_waiter_passes_on_that_there_is_room(connection_pool: ConnectionPool) -> None:
    """The next one that waits connects, and who waits no more gets nothing."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    cancelled, waiting, late = (asyncio.create_task(connection_pool.acquire(each)) for each in (60, 60, 0.01))
    with pytest.raises(TimeoutError):
        await late
    first.terminate()
    connection_pool.release(first)
    cancelled.cancel()
    third = await waiting
    assert await third.fetchval("SELECT 3") == 3
    assert connection_pool.in_use == 2
    connection_pool.release(third)
    connection_pool.release(second)
    assert (await connection_pool.acquire(5), connection_pool.in_use) == (second, 1)


async def test_a_waiter_that_is_cancelled_as_its_time_ends_is_cancelled(connection_pool: ConnectionPool) -> None:
    """Its caller does not go on with the error of the time, and no connection is lost."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    waiting = asyncio.create_task(connection_pool.acquire(0))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    connection_pool.release(first)
    connection_pool.release(second)
    assert (connection_pool.in_use, await connection_pool.acquire(5)) == (0, second)


async def test_who_has_waited_keeps_nothing_in_memory(connection_pool: ConnectionPool) -> None:
    """A connection that was passed on can be collected once it is closed, however long its waiter would wait."""
    first, second = await connection_pool.acquire(5), await connection_pool.acquire(5)
    waiting = asyncio.create_task(connection_pool.acquire(3600))
    await asyncio.sleep(0)
    connection_pool.release(first)
    assert await waiting is first
    kept = weakref.ref(first)
    await first.close(timeout=30)
    connection_pool.release(first)
    del first, waiting
    for _ in range(100):  # the loop may still hold a callback of it
        gc.collect()
        if kept() is None:
            break
        await asyncio.sleep(0)
    assert kept() is None
    connection_pool.release(second)


class _Closing:
    """A connection whose closing fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def close(self, **_: float) -> None:
        """Fail."""
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        OSError("reset"), TimeoutError(), asyncpg.PostgresError("shutdown"), asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError("confused"),
    ],
)  # fmt: skip
async def test_a_connection_that_fails_to_close_is_gone(error: Exception) -> None:
    """Whatever the reason: nobody could do anything about it. A mistake of ours surfaces."""
    await pools._close(_Closing(error))
    with pytest.raises(ZeroDivisionError):
        await pools._close(_Closing(ZeroDivisionError()))
