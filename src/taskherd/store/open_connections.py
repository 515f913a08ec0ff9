"""The connections of an engine, which stay checked out of its pool between two transactions.

To check one out and in again costs SQLAlchemy two greenlets, a task, a ``Connection`` and a rollback, although no
transaction of SQLAlchemy is ever begun: a third of the CPU of a small transaction (docs/adr/0046).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.errors import Unavailable
from taskherd.store.connecting import FAILURES, Connector

LIFETIME: Final = 1800.0
"""Age in seconds after which a connection is replaced, so that neither server nor client collects garbage for ever."""


class OpenConnections:
    """Hands out up to ``size`` connections of ``engine``, the one used last first; ``connector`` makes them.

    Whoever finds all in use waits up to ``max_wait`` seconds, in turn.
    """

    def __init__(self, engine: AsyncEngine, connector: Connector, size: int, max_wait: float) -> None:
        self._engine = engine
        self.connector = connector
        self._max_wait = max_wait
        self._slots = asyncio.Semaphore(size)
        self._idle: list[AsyncConnection] = []
        self._replace_at: dict[AsyncConnection, float] = {}
        self.in_use = 0
        """Number of connections in use or being made."""

    async def acquire(self) -> AsyncConnection:
        """Return a connection, which is to be released.

        Raises:
            Unavailable: all were in use for too long.
            SQLAlchemyError, Unavailable, asyncpg's errors: as ``Connector.connect``, perhaps wrapped.
        """
        await self._acquire_slot()
        self.in_use += 1
        try:
            return await self._open()
        except BaseException:
            self._release_slot()
            raise

    async def _acquire_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            return
        try:
            async with asyncio.timeout(self._max_wait):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable(f"no connection to the database became free in {self._max_wait:g} s") from None

    async def _open(self) -> AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            self.connector.take(driver_connection(connection))
            if self._is_usable(connection):
                return connection
            await self._check_in(connection)
        connection = await self._engine.connect()
        self._replace_at[connection] = asyncio.get_running_loop().time() + LIFETIME
        return connection

    async def release(self, connection: AsyncConnection) -> None:
        """Keep a connection for the next transaction; if it is closed or too old, let the pool replace it."""
        try:
            if not connection.invalidated:
                self.connector.give_back(driver_connection(connection))
            if self._is_usable(connection):
                self._idle.append(connection)
            else:
                await self._check_in(connection)
        finally:
            self._release_slot()

    def _release_slot(self) -> None:
        self.in_use -= 1
        self._slots.release()

    async def close(self) -> None:
        """Check in the connections that are not in use."""
        while self._idle:
            await self._check_in(self._idle.pop())

    def _is_usable(self, connection: AsyncConnection) -> bool:
        if connection.invalidated or driver_connection(connection).is_closed():
            return False
        return asyncio.get_running_loop().time() < self._replace_at[connection]

    async def _check_in(self, connection: AsyncConnection) -> None:
        """Give a connection back to the pool, also if the caller is canceled meanwhile."""
        del self._replace_at[connection]
        with suppress(SQLAlchemyError, *FAILURES):
            await connection.__aexit__(None, None, None)


def driver_connection(connection: AsyncConnection) -> Any:
    """Return the ``asyncpg.Connection`` of a connection that is not invalidated."""
    assert connection.sync_connection is not None
    return connection.sync_connection.connection.driver_connection
