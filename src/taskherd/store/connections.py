"""Connections of a pool, handed from one statement to the next.

Through the pool each statement would cost a task and two futures, a third of a small read's CPU.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import asyncpg


class ConnectionPool:
    """Up to `size` connections of an asyncpg pool of that size, which nobody else takes any of."""

    def __init__(self, pool: Any, size: int) -> None:
        self._pool = pool
        self._size = size
        self._out = 0
        self._free: list[Any] = []
        self._waiters: deque[asyncio.Future[Any]] = deque()
        self._closed = False

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self._out - len(self._free)

    async def acquire(self, within: float) -> Any:
        """A connection: the one used last, a new one, or the next that is given back.

        Raises TimeoutError when there is none within so many seconds, InterfaceError once they are closed, or what
        connecting raises.
        """
        while not self._closed:
            while self._free:
                connection = self._free.pop()
                if not _is_closed(connection):
                    return connection
                await self._drop(connection)
            if self._out < self._size:
                return await self._connect(within)
            connection = await self._next(within)
            if connection is not None:
                return connection
        raise asyncpg.InterfaceError("the connections are closed")

    async def release(self, connection: Any) -> None:
        """Hand it to whoever has waited for longest, or keep it; one that is no longer any good is forgotten."""
        if self._closed or _is_closed(connection):
            await self._drop(connection)
        elif not self._hand(connection):
            self._free.append(connection)

    async def close(self, within: float) -> None:
        """Close them all, also those in use, within so many seconds."""
        self._closed = True
        with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with asyncio.timeout(within):
                while self._free:
                    await self._drop(self._free.pop())
                await self._pool.close()
        self._pool.terminate()
        while self._hand(None):
            continue

    async def _connect(self, within: float) -> Any:
        self._out += 1
        try:
            return await self._pool.acquire(timeout=within)
        except BaseException:
            self._out -= 1
            self._hand(None)
            raise

    async def _drop(self, connection: Any) -> None:
        self._out -= 1
        self._hand(None)
        await self._pool.release(connection)

    async def _next(self, within: float) -> Any:
        """The next connection that is given back; None: look again, since there is room for a new one."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(within):
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # it came as we were about to go
                connection = waiter.result()
                if connection is None:
                    self._hand(None)
                else:
                    await self.release(connection)
            raise

    def _hand(self, connection: Any) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it ended, and the pool has taken it back by itself
        return True
