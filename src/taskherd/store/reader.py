"""Single reading statements straight through asyncpg, for who answers thousands of them a second.

Each runs by itself, so there is no transaction to begin and to end, and nothing between the statement and the driver:
a third of the round trips and a fraction of the CPU of the same through an engine (docs/adr/0015). What writes, or
needs several statements to agree, uses `engine.transaction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import asyncpg

from taskherd.errors import Retry, Unavailable
from taskherd.store.connections import ConnectionPool
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
"""An `asyncpg.Record`: its values by place or by name."""

_NO_TABLE: Final = "42P01"
_FAILURES: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class _Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection that is given back as it is: single statements leave nothing behind that must be reset."""

    def get_reset_query(self) -> str:
        """No statement, where asyncpg would spend a round trip after each use."""
        return ""


class Reader:
    """Up to `size` connections that read; it connects when first used."""

    def __init__(self, database_url: str, *, size: int, application_name: str) -> None:
        url = sqlalchemy_url(database_url)
        self._where = url.get_dialect()().create_connect_args(url)[1]
        self._size = size
        self._settings = session_settings(application_name)
        self._connections: ConnectionPool | None = None

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows. Raises `Unavailable`, or `DataError` for a value that PostgreSQL can't take."""
        try:
            return await self._fetch(statement, values)
        except Retry:  # prepared before a migration
            return await self._fetch(statement, values)

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Return the first row, or None. Raises as `fetch`."""
        rows = await self.fetch(statement, *values)
        return rows[0] if rows else None

    @property
    def in_use(self) -> int:
        """How many connections are taken."""
        return 0 if self._connections is None else self._connections.in_use

    async def close(self) -> None:
        """Close the connections within a bounded time."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close(CLOSE_TIMEOUT)

    async def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Row]:
        try:
            connections = self._connections or await self._open()
            connection = await connections.acquire(COMMAND_TIMEOUT)
            try:
                rows: Sequence[Row] = await connection.fetch(statement, *values)
            except asyncpg.PostgresError:
                raise  # the server answered
            except BaseException:
                connection.terminate()  # its answer never came, or not whole: nobody is to wait for it again
                raise
            finally:
                await connections.release(connection)
        except _FAILURES as error:
            if sqlstate(error) == _NO_TABLE:
                raise Unavailable("the database has no taskherd schema, or an older one") from error
            verdict = classify(error)
            if verdict is None:
                raise
            if isinstance(verdict, ReadOnly):
                await self.close()
            raise verdict from error
        return rows

    async def _open(self) -> ConnectionPool:
        pool = asyncpg.create_pool(
            **self._where,
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=0,
            connection_class=_Connection,
            timeout=CONNECT_TIMEOUT,
            command_timeout=COMMAND_TIMEOUT,
            server_settings=self._settings,
        )
        self._connections = connections = ConnectionPool(pool, self._size)
        await pool  # connects to nothing yet
        return connections
