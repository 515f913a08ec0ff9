"""A pool whose connections are passed directly from one statement to the next.

With asyncpg's own ``acquire`` and ``release`` each statement would cost a task and two futures, a third of a small
read's CPU.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import asyncpg


class ConnectionPool:
    """Up to ``size`` connections of an asyncpg pool of that size, which nothing else may use."""

    def __init__(self, pool: Any, size: int) -> None:
        self._pool = pool
        self._size = size
        self._open = 0
        self._idle: list[Any] = []
        self._waiters: deque[asyncio.Future[Any]] = deque()
        self._closed = False

    @property
    def in_use(self) -> int:
        """Number of connections in use."""
        return self._open - len(self._idle)

    async def acquire(self, max_wait: float) -> Any:
        """Return the connection used last, a new one, or the next one released.

        Raises:
            TimeoutError: none was available within ``max_wait`` seconds.
            asyncpg.InterfaceError: the pool is closed.
            OSError, asyncpg.PostgresError: connecting failed.
        """
        while not self._closed:
            while self._idle:
                connection = self._idle.pop()
                if not _is_closed(connection):
                    return connection
                await self._discard(connection)
            if self._open < self._size:
                return await self._connect(max_wait)
            connection = await self._wait_for_release(max_wait)
            if connection is not None:
                return connection
        raise asyncpg.InterfaceError("the connection pool is closed")

    async def release(self, connection: Any) -> None:
        """Pass the connection to the longest waiter, or keep it; discard it if it is closed."""
        if self._closed or _is_closed(connection):
            await self._discard(connection)
        elif not self._pass_to_waiter(connection):
            self._idle.append(connection)

    async def close(self, max_wait: float) -> None:
        """Close all connections, including those in use, within ``max_wait`` seconds."""
        self._closed = True
        with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with asyncio.timeout(max_wait):
                while self._idle:
                    await self._discard(self._idle.pop())
                await self._pool.close()
        self._pool.terminate()
        while self._pass_to_waiter(None):
            continue

    async def _connect(self, max_wait: float) -> Any:
        self._open += 1
        try:
            return await self._pool.acquire(timeout=max_wait)
        except BaseException:
            self._open -= 1
            self._pass_to_waiter(None)
            raise

    async def _discard(self, connection: Any) -> None:
        self._open -= 1
        self._pass_to_waiter(None)
        await self._pool.release(connection)

    async def _wait_for_release(self, max_wait: float) -> Any:
        """Return the next released connection, or None if there is room for a new one."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(max_wait):
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # the connection arrived together with the exception
                connection = waiter.result()
                if connection is None:
                    self._pass_to_waiter(None)
                else:
                    await self.release(connection)
            raise

    def _pass_to_waiter(self, connection: Any) -> bool:
        """Wake the longest waiter with a connection, or with None if it may open one; return whether one waited."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it was terminated, and the asyncpg pool has already taken it back
        return True
