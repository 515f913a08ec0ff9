"""Connections to PostgreSQL with a timeout on every wait, and its errors classified by what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import asyncpg
import orjson
from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from taskherd.errors import Misconfigured, Retry, TaskherdError, Unavailable
from taskherd.store.connecting import FAILURES, Connector, sqlalchemy_url
from taskherd.store.open_connections import LIFETIME, OpenConnections, driver_connection
from taskherd.store.sessions import disable_statement_cache

COMMAND_TIMEOUT: Final = 5.0
"""Seconds until a statement is canceled."""

LOCK_TIMEOUT: Final = 3.0
"""Seconds for which a statement waits for a lock."""

IDLE_IN_TRANSACTION: Final = 15.0
"""Seconds after which the server ends a session that is idle within a transaction."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds in which connections must close; then they are terminated."""

ROLLBACK_TIMEOUT: Final = 2.0
"""Seconds in which a transaction must be rolled back; then its connection is closed."""

READ_ONLY: Final = "25006"
"""PostgreSQL's read_only_sql_transaction."""

RETRYABLE: Final = frozenset({"40P01", "40001"})
"""Deadlock, serialization failure: the same transaction may succeed immediately."""

LOCK_NOT_AVAILABLE: Final = "55P03"
"""PostgreSQL's lock_not_available: the time to wait for a lock has ended."""

QUERY_CANCELED: Final = "57014"
"""PostgreSQL's query_canceled: the statement's time has ended."""

UNAVAILABLE_ERRORS: Final = ("08", "28", "53", "57", "58")
"""Classes: connection, authorization (a rotated password), resources, operator intervention, system error."""

UNAVAILABLE_CODES: Final = frozenset({READ_ONLY, "25P03", "3D000"})
"""A server that became a standby, a transaction that was idle too long, a database that does not exist yet."""


_TRANSACTION_READ_ONLY: Final = text("SHOW transaction_read_only")

_CONNECTIONS: Final = "taskherd_connections"
"""The execution option of an engine that holds its ``OpenConnections``."""

STATEMENT_ERRORS: Final = frozenset({"26000", "42P05"})
"""A prepared statement that does not exist, or already does: statements run in changing server sessions, as behind a
PgBouncer in transaction mode."""


STATEMENT_BUGS: Final = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What ``transaction`` raises as it is, because it is none of its errors: a mistake in a statement or in the schema."""

_CLOSED: Final = "connection is closed"
"""Part of each ``InterfaceError`` of a lost connection (asyncpg 0.32); the others are about a wrong use of asyncpg."""


class DataError(TaskherdError):
    """PostgreSQL rejects a value (invalid or duplicate); retrying cannot help."""


class PromptSizeError(TaskherdError):
    """The prompts of several tasks are too large to be in memory together; lock fewer."""


class StatementTimeout(Unavailable):
    """The server canceled a statement because its time had ended."""


class LockTimeout(Retry):
    """A statement waited too long for a lock that another transaction keeps."""


class ReadOnly(Unavailable):
    """The server rejects writes, like a standby after a failover; its connections were dropped to find another."""


_OWN_CLASSES: Final[dict[str, type[Unavailable | Retry]]] = {
    READ_ONLY: ReadOnly,
    QUERY_CANCELED: StatementTimeout,
    LOCK_NOT_AVAILABLE: LockTimeout,
}


def open_engine(
    database_url: str,
    *,
    size: int,
    application_name: str,
    command_timeout: float = COMMAND_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
) -> AsyncEngine:
    """Return an engine of up to ``size`` connections; it connects when first used, as ``Connector`` does.

    Timeouts are in seconds. The server cancels a statement just before the client would, so that the connection
    survives. A ping before use would not detect a frozen connection any better than the statement's own timeout.
    """
    settings = session_settings(application_name, command_timeout, lock_timeout)
    connector = Connector(database_url, command_timeout=command_timeout, server_settings=settings)

    async def connect(**_: Any) -> Any:
        return await connector.connect()

    engine = create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=size,
        max_overflow=-1,  # ``OpenConnections`` limits how many are open
        pool_recycle=LIFETIME,
        json_serializer=_encode,
        json_deserializer=orjson.loads,
        connect_args={"async_creator_fn": connect},
        isolation_level="AUTOCOMMIT",  # SQLAlchemy begins no transaction: ``transaction`` does
    )
    connections = OpenConnections(engine, connector, size, command_timeout)
    engine.sync_engine.update_execution_options(**{_CONNECTIONS: connections})
    _track_use(engine, connector)
    disable_statement_cache(engine, connector.sessions)
    return engine


def _track_use(engine: AsyncEngine, connector: Connector) -> None:
    """Tell the connector which connections are in use or do not answer, and replace those that it has closed."""

    def on_checkout(dbapi_connection: Any, *_: Any) -> None:
        connector.take(dbapi_connection.driver_connection)
        if dbapi_connection.driver_connection.is_closed():
            raise DisconnectionError

    def on_checkin(dbapi_connection: Any, *_: Any) -> None:
        if dbapi_connection is not None:
            connector.give_back(dbapi_connection.driver_connection)

    def on_error(context: ExceptionContext) -> None:
        """Abort a connection whose response is missing: SQLAlchemy would wait 2 s for the server to close it."""
        connection = context.connection
        if isinstance(context.original_exception, TimeoutError) and connection is not None:
            driver: Any = connection.connection.driver_connection
            driver.terminate()
            connector.avoid(driver)

    event.listen(engine.sync_engine, "handle_error", on_error)
    event.listen(engine.sync_engine, "checkout", on_checkout)
    event.listen(engine.sync_engine, "checkin", on_checkin)


def session_settings(
    application_name: str, command_timeout: float = COMMAND_TIMEOUT, lock_timeout: float = LOCK_TIMEOUT
) -> dict[str, str]:
    """Return the server settings of each session; timeouts are in seconds."""
    return {
        "application_name": application_name,
        "statement_timeout": f"{int(command_timeout * 900)}ms",
        "lock_timeout": f"{int(lock_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{int(IDLE_IN_TRANSACTION * 1000)}ms",
        "timezone": "UTC",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",  # a plan made while a table was empty would scan it when it has grown, until ANALYZE
    }


def _encode(value: Any) -> str:
    return orjson.dumps(value).decode()


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(8):  # SQLAlchemy wraps twice; the limit stops cycles
        if cause is None:
            return
        yield cause
        cause = getattr(cause, "orig", None) or cause.__cause__


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's five-character error code, from whichever wrapped exception has it."""
    codes = (getattr(cause, "sqlstate", None) for cause in _causes(error))
    return next((code for code in codes if isinstance(code, str)), None)


async def check_writable(connection: AsyncConnection) -> None:
    """Raise ``ReadOnly`` if the server is a standby or its transactions are read-only by default."""
    if (await connection.execute(_TRANSACTION_READ_ONLY)).scalar_one() == "on":
        raise ReadOnly("the database is read-only: a standby, or default_transaction_read_only is on")


def classify(error: BaseException) -> Unavailable | DataError | Retry | Misconfigured | None:
    """Return the error to raise for an error of the database, or None for a bug, which should surface.

    The codes are listed at https://www.postgresql.org/docs/current/errcodes-appendix.html.
    """
    code = sqlstate(error)
    message = f"{_root_cause(error)} [{code}]" if code else _root_cause(error)
    if _is_stale_plan(error, code) or code in RETRYABLE:
        return Retry(message)
    if code in _OWN_CLASSES:
        return _OWN_CLASSES[code](message)
    if code in STATEMENT_ERRORS:
        return Misconfigured("database_url", f"{message}; expected pgbouncer=transaction in the URL of a PgBouncer")
    return _classify_by_class(error, code, message)


def _classify_by_class(error: BaseException, code: str | None, message: str) -> Unavailable | DataError | None:
    if code is not None and (code.startswith(UNAVAILABLE_ERRORS) or code in UNAVAILABLE_CODES):
        return Unavailable(message)
    if code is not None and (code.startswith(("22", "23")) or code == "54001"):
        return DataError(message)
    if code is None and _is_lost_connection(error):
        return Unavailable(message)
    return None


def _root_cause(error: BaseException) -> str:
    """Return the root cause in one line, without SQL and parameters, which may contain secrets."""
    last = [cause for cause in _causes(error) if cause is error or not isinstance(cause, asyncio.CancelledError)][-1]
    lines = str(last).splitlines()
    if not lines and isinstance(last, TimeoutError):  # of a time limit here, which cancels what it waits for
        return "no answer in time"
    return f"{type(last).__name__}: {(lines or [''])[0][:200]}"


def _is_stale_plan(error: BaseException, code: str | None) -> bool:
    by_type = any(type(cause).__name__ == "InvalidCachedStatementError" for cause in _causes(error))
    return by_type or (code == "0A000" and "cached" in str(error))


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    kinds = (OSError, TimeoutError, PoolTimeoutError, asyncpg.InternalClientError)
    return any(isinstance(cause, kinds) or _is_closed(cause) for cause in _causes(error))


def _is_closed(error: BaseException) -> bool:
    return isinstance(error, asyncpg.InterfaceError) and _CLOSED in str(error)


def transaction(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncConnection]:
    """Run the body in one transaction, which is committed at its end and rolled back by an exception.

    Raises:
        Unavailable: wait and run it again; if the COMMIT was in flight, it may or may not have taken effect.
        Retry: it conflicted with another transaction; run it again, after a short backoff.
        DataError: a value cannot be stored; split the batch to find it.
    """
    return _Transaction(_connections(engine))


class _Transaction:
    """What ``transaction`` returns; not a generator, because asyncio has hooks in Python for the life of each."""

    __slots__ = ("_begun", "_connection", "_connections", "_driver")

    def __init__(self, connections: OpenConnections) -> None:
        self._connections = connections
        self._driver: Any = None
        self._begun: Any = None

    async def __aenter__(self) -> AsyncConnection:
        try:
            self._connection = await self._connections.acquire()
            try:
                self._driver = driver_connection(self._connection)
                self._begun = self._driver.transaction()
                await self._begun.start()
            except BaseException as error:
                await self._undo(error)
                raise
        except BaseException as error:
            self._raise_classified(error)
            raise
        return self._connection

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            try:
                await self._begun.commit()
            except BaseException as failure:
                await self._undo(failure)
                self._raise_classified(failure)
                raise
            await self._connections.release(self._connection)
        else:
            await self._undo(error)
            self._raise_classified(error)

    async def _undo(self, error: BaseException) -> None:
        """Roll back after an error, and release the connection.

        It is closed if a response is missing: a rollback would wait for it, and so would closing it gracefully.
        """
        try:
            if isinstance(error, TimeoutError):
                self._driver.terminate()
                self._connections.connector.avoid(self._driver)
                await _discard(self._connection)
            elif self._begun is not None:
                await _roll_back(self._begun, self._driver)
        finally:
            await self._connections.release(self._connection)

    def _raise_classified(self, error: BaseException) -> None:
        """Raise the error that says what to do after one of the database, and leave a server that rejects writes."""
        classified = classify(error) if isinstance(error, (SQLAlchemyError, *FAILURES)) else None
        if isinstance(classified or error, ReadOnly) and self._driver is not None:
            self._connections.connector.avoid(self._driver)
        if classified is not None:
            raise classified from error


async def _roll_back(begun: Any, driver_connection: Any) -> None:
    """Roll back, or close a connection that cannot soon, such as one whose server hangs while a task is canceled."""
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT):
            await begun.rollback()
    except FAILURES:
        driver_connection.terminate()
    except BaseException:  # canceled again: it may still be in the transaction
        driver_connection.terminate()
        raise


async def _discard(connection: AsyncConnection) -> None:
    """Take a closed connection out of the pool."""
    with suppress(SQLAlchemyError, *FAILURES):
        await asyncio.wait_for(connection.invalidate(), CLOSE_TIMEOUT)


def in_use(engine: AsyncEngine) -> int:
    """Return the number of the engine's connections in use."""
    return _connections(engine).in_use


async def dispose(engine: AsyncEngine) -> None:
    """Close the idle connections within ``CLOSE_TIMEOUT`` seconds, at the end of the engine's use.

    After a server that hangs, the pool may count a connection that is gone.
    """
    with suppress(SQLAlchemyError, *FAILURES):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await _connections(engine).close()
            await engine.dispose()


def _connections(engine: AsyncEngine) -> OpenConnections:
    connections: OpenConnections = engine.sync_engine.get_execution_options()[_CONNECTIONS]
    return connections
