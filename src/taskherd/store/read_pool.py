"""Single reading statements directly through asyncpg, for the API, which executes thousands of them a second.

Each statement runs alone, without a transaction to begin and commit: a third of the round trips and a fraction of the
CPU of the same statement through an engine (docs/adr/0015). Writes, and reads that need several statements in one
snapshot, use ``engine.transaction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import asyncpg

from taskherd.errors import Retry, Unavailable
from taskherd.store.connection_pool import ConnectionPool
from taskherd.store.engine import (
    CLOSE_TIMEOUT,
    COMMAND_TIMEOUT,
    CONNECT_TIMEOUT,
    ReadOnly,
    classify,
    session_settings,
    sqlalchemy_url,
    sqlstate,
)

Row: TypeAlias = Any
"""An ``asyncpg.Record``: values by index or by name."""

_NO_TABLE: Final = "42P01"
_FAILURES: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class _Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection that is released without a reset: single statements leave no session state."""

    def get_reset_query(self) -> str:
        """Return no statement; asyncpg would spend a round trip on it after each use."""
        return ""


class ReadPool:
    """Up to ``size`` connections for reading; it connects when first used."""

    def __init__(self, database_url: str, *, size: int, application_name: str) -> None:
        url = sqlalchemy_url(database_url)
        self._connect_args = url.get_dialect()().create_connect_args(url)[1]
        self._size = size
        self._settings = session_settings(application_name)
        self._pool: ConnectionPool | None = None

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows. Raise ``Unavailable``, or ``DataError`` if PostgreSQL rejects a value."""
        try:
            return await self._fetch(statement, values)
        except Retry:  # the statement was prepared before a migration
            return await self._fetch(statement, values)

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Return the first row, or None if there is none. Raise the same errors as ``fetch``."""
        rows = await self.fetch(statement, *values)
        return rows[0] if rows else None

    @property
    def in_use(self) -> int:
        """Number of connections in use."""
        return 0 if self._pool is None else self._pool.in_use

    async def close(self) -> None:
        """Close the connections within ``CLOSE_TIMEOUT`` seconds."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(CLOSE_TIMEOUT)

    async def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Row]:
        try:
            pool = self._pool or await self._open()
            connection = await pool.acquire(COMMAND_TIMEOUT)
            try:
                rows: Sequence[Row] = await connection.fetch(statement, *values)
            except asyncpg.PostgresError:
                raise  # the server responded, so the connection can be reused
            except BaseException:
                connection.terminate()  # the response is missing or incomplete, so the connection cannot be reused
                raise
            finally:
                await pool.release(connection)
        except _FAILURES as error:
            if sqlstate(error) == _NO_TABLE:
                raise Unavailable("the database has no taskherd schema, or an older one") from error
            classified = classify(error)
            if classified is None:
                raise
            if isinstance(classified, ReadOnly):
                await self.close()
            raise classified from error
        return rows

    async def _open(self) -> ConnectionPool:
        asyncpg_pool = asyncpg.create_pool(
            **self._connect_args,
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=0,
            connection_class=_Connection,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings=self._settings,
        )
        self._pool = pool = ConnectionPool(asyncpg_pool, self._size)
        await asyncpg_pool  # with min_size 0 this opens no connection
        return pool
