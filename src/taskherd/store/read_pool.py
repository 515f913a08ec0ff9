"""Single reading statements directly through asyncpg, for the API, which executes thousands of them a second.

Each statement runs alone, without a transaction to begin and commit: a third of the round trips and a fraction of the
CPU of the same statement through an engine (docs/adr/0015). Writes, and reads that need several statements in one
snapshot, use ``engine.transaction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import asyncpg

from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store.connecting import FAILURES, Connector
from taskherd.store.connection_pool import ConnectionPool
from taskherd.store.engine import CLOSE_TIMEOUT, COMMAND_TIMEOUT, READ_ONLY, classify, session_settings, sqlstate

Row: TypeAlias = Any
"""An ``asyncpg.Record``: values by index or by name."""

_NO_TABLE: Final = "42P01"
_NOT_ALLOWED: Final = "42501"


class Reader(Protocol):
    """What executes single reading statements: a pool, or a choice between several."""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows. Raise ``Unavailable``, or ``DataError`` if PostgreSQL rejects a value."""
        ...

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Return the first row, or None if there is none. Raise the same errors as ``fetch``."""
        ...


class ReadPool:
    """Up to ``size`` connections for reading; it connects when first used."""

    def __init__(
        self,
        database_url: str,
        *,
        size: int,
        application_name: str,
        command_timeout: float = COMMAND_TIMEOUT,
        of_standby: bool = False,
    ) -> None:
        """Create the pool, unconnected, for a primary unless ``of_standby``; ``Misconfigured`` names the URL's setting.

        ``command_timeout`` is in seconds.
        """
        self._command_timeout = command_timeout
        self._of_standby = of_standby
        self._setting = "database_read_url" if of_standby else "database_url"
        # The same settings whatever the time limit, because behind PgBouncer the role has them, for all pools.
        # A statement that takes longer than ``command_timeout`` is canceled from here.
        settings = session_settings(application_name)
        try:
            self._connector = Connector(database_url, command_timeout=command_timeout, server_settings=settings)
        except Misconfigured as error:
            raise Misconfigured(self._setting, error.expected) from error
        self._size = size
        self._pool = self._new_pool()

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows.

        Raises:
            Unavailable: the database cannot be reached, or has no schema.
            DataError: PostgreSQL rejects a value.
            Misconfigured: the session's settings are not in force, or the user lacks a privilege.
        """
        try:
            try:
                return await self._fetch(statement, values)
            except Retry:  # the statement was prepared before a migration
                return await self._fetch(statement, values)
        except Misconfigured as error:
            raise Misconfigured(self._setting, error.expected) from error

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Return the first row, or None if there is none. Raise the same errors as ``fetch``."""
        rows = await self.fetch(statement, *values)
        return rows[0] if rows else None

    @property
    def in_use(self) -> int:
        """Number of connections in use."""
        return self._pool.in_use

    async def close(self) -> None:
        """Close the connections within ``CLOSE_TIMEOUT`` seconds; the next use connects again."""
        pool, self._pool = self._pool, self._new_pool()
        await pool.close(CLOSE_TIMEOUT)

    def _new_pool(self) -> ConnectionPool:
        return ConnectionPool(self._connector.connect, self._size)

    async def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Row]:
        try:
            pool = self._pool
            connection = await pool.acquire(self._command_timeout)
            self._connector.take(connection)
            try:
                rows: Sequence[Row] = await connection.fetch(statement, *values)
                if not self._of_standby:
                    self._connector.leave_demoted(connection)
            except asyncpg.PostgresError as error:
                if sqlstate(error) == READ_ONLY:
                    self._connector.avoid(connection)
                raise  # the server responded, so the connection can be reused
            except BaseException as error:
                if isinstance(error, TimeoutError):
                    self._connector.avoid(connection)
                connection.terminate()  # the response is missing or incomplete, so the connection cannot be reused
                raise
            finally:
                self._connector.give_back(connection)
                pool.release(connection)
        except FAILURES as error:
            if sqlstate(error) == _NO_TABLE:
                raise Unavailable("the database has no taskherd schema, or an older one") from error
            if sqlstate(error) == _NOT_ALLOWED:
                expected = f"{error}; expected a user with the privileges of deploy/postgres/grants.sql"
                raise Misconfigured(self._setting, expected) from error
            classified = classify(error)
            if classified is None:
                raise
            raise classified from error
        return rows
