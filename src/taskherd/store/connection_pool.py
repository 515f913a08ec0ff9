"""A pool whose connections are passed directly from one statement to the next.

With asyncpg's own pool, each statement would cost a task and two futures, a third of a small read's CPU.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import asyncpg

from taskherd.errors import Unavailable

LIFETIME: Final = 1800.0
"""Age in seconds after which a connection is replaced, so that neither server nor client collects garbage for ever."""

_CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the server may take to close a connection; then it is aborted."""


class ConnectionPool:
    """Up to ``size`` connections of asyncpg, each made by ``connect`` when it is needed."""

    def __init__(self, connect: Callable[[], Awaitable[Any]], size: int) -> None:
        self._connect_once = connect
        self._size = size
        self._open: dict[Any, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._connecting = 0
        self._idle: list[Any] = []
        self._waiters: deque[asyncio.Future[Any]] = deque()
        self._closed = False

    @property
    def in_use(self) -> int:
        """Number of connections in use or being made."""
        return len(self._open) + self._connecting - len(self._idle)

    async def acquire(self, max_wait: float) -> Any:
        """Return the connection used last, a new one, or the next one released.

        Raises:
            TimeoutError: none was available within ``max_wait`` seconds.
            Unavailable: the pool is closed.
            OSError, asyncpg.PostgresError, Unavailable: connecting failed.
        """
        while not self._closed:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
                self._discard(connection)
            if len(self._open) + self._connecting < self._size:
                return await self._connect(max_wait)
            connection = await self._wait_for_release(max_wait)
            if connection is None:
                continue
            if not connection.is_closed():
                return connection
            self._open.pop(connection, None)  # closed since it was passed on: this caller replaces it
        raise Unavailable("the connection pool is closed")

    def release(self, connection: Any) -> None:
        """Pass the connection to the longest waiter, or keep it; discard it if it is closed or too old."""
        if self._closed or connection.is_closed() or self._is_old(connection):
            self._discard(connection)
        elif not self._pass_to_waiter(connection):
            self._idle.append(connection)

    async def close(self, max_wait: float) -> None:
        """Close all connections, including those in use, within ``max_wait`` seconds."""
        self._closed = True
        self._idle.clear()
        for connection in tuple(self._open):
            self._discard(connection)
        while self._pass_to_waiter(None):
            continue
        if self._closing:
            await asyncio.wait(self._closing, timeout=max_wait)

    async def _connect(self, max_wait: float) -> Any:
        self._connecting += 1
        try:
            async with asyncio.timeout(max_wait):
                connection = await self._connect_once()
        except BaseException:
            self._connecting -= 1
            self._pass_to_waiter(None)
            raise
        self._connecting -= 1
        self._open[connection] = asyncio.get_running_loop().time()
        return connection

    def _is_old(self, connection: Any) -> bool:
        return asyncio.get_running_loop().time() - self._open.get(connection, 0.0) > LIFETIME

    def _discard(self, connection: Any) -> None:
        """Close the connection in the background, and make room for another one."""
        self._open.pop(connection, None)
        if not connection.is_closed():
            closing = asyncio.create_task(_close(connection), name="closing a database connection")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._pass_to_waiter(None)

    async def _wait_for_release(self, max_wait: float) -> Any:
        """Return the next released connection, or None if there is room for a new one."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(max_wait, _time_out, waiter)  # `asyncio.timeout` costs three times as much
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:  # the connection arrived at the same time
                connection = waiter.result()
                if connection is None:
                    self._pass_to_waiter(None)
                else:
                    self.release(connection)
            raise
        finally:
            timer.cancel()

    def _pass_to_waiter(self, connection: Any) -> bool:
        """Wake the longest waiter with a connection, or with None if it may open one; return whether one waited."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False


def _time_out(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


async def _close(connection: Any) -> None:
    """Close a connection, or abort it; a ``TimeoutError`` is an ``OSError``."""
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        await connection.close(timeout=_CLOSE_TIMEOUT)
