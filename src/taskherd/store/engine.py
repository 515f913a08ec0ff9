"""Connections to PostgreSQL with a bound on every wait, and its errors sorted by what to do next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg
import orjson
from sqlalchemy import AsyncAdaptedQueuePool
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from taskherd.errors import Misconfigured, Retry, TaskherdError, Unavailable

CONNECT_TIMEOUT: Final = 3.0
COMMAND_TIMEOUT: Final = 5.0
LOCK_TIMEOUT: Final = 3.0
IDLE_IN_TRANSACTION: Final = 15.0
RECYCLE: Final = 1800
CLOSE_TIMEOUT: Final = 5.0

READ_ONLY: Final = "25006"
RETRYABLE: Final = frozenset({"40P01", "40001", "55P03"})
"""Deadlock, serialisation failure, lock not available: the same transaction may well succeed at once."""

UNAVAILABLE_ERRORS: Final = ("08", "28", "53", "57", "58")
"""Classes: connection, authorisation (a rotated password), resources, operator intervention, system error."""

UNAVAILABLE_CODES: Final = frozenset({READ_ONLY, "25P03", "3D000"})
"""A server that became a standby, a transaction idle too long, a database not yet there."""


class DataError(TaskherdError):
    """A value that PostgreSQL can't take, or not twice; the same transaction fails for ever, so leave the value out."""


class ReadOnly(Unavailable):
    """The server takes no writes, as a standby after a failover; the pool was dropped, to connect anew."""


def sqlalchemy_url(database_url: str) -> URL:
    """Return a `postgresql://` URL for asyncpg, libpq's `sslmode` taken as asyncpg's `ssl`."""
    try:
        url = make_url(database_url)
    except SQLAlchemyError:
        raise Misconfigured("database_url", "expected a URL like postgresql://user:password@host/database") from None
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise Misconfigured("database_url", f"expected a postgresql:// URL, got the scheme {url.drivername!r}")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def open_engine(
    database_url: str,
    *,
    size: int,
    application_name: str,
    command_timeout: float = COMMAND_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
) -> AsyncEngine:
    """Return an engine of at most `size` connections; it connects when first used.

    Timeouts are seconds. The server gives up a statement just before the client does, so that the connection is kept.
    A ping before use would not help against a frozen connection: only the timeout of the statement itself does.
    """
    settings = session_settings(application_name, command_timeout, lock_timeout)
    return create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=size,
        max_overflow=0,
        pool_timeout=command_timeout,
        pool_recycle=RECYCLE,
        pool_use_lifo=True,
        json_serializer=_encode,
        json_deserializer=orjson.loads,
        connect_args={"timeout": CONNECT_TIMEOUT, "command_timeout": command_timeout, "server_settings": settings},
    )


def session_settings(
    application_name: str, command_timeout: float = COMMAND_TIMEOUT, lock_timeout: float = LOCK_TIMEOUT
) -> dict[str, str]:
    """Return what every session of ours sets in PostgreSQL; timeouts are seconds."""
    return {
        "application_name": application_name,
        "statement_timeout": f"{int(command_timeout * 900)}ms",
        "lock_timeout": f"{int(lock_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{int(IDLE_IN_TRANSACTION * 1000)}ms",
        "timezone": "UTC",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",  # a plan made while a table was empty reads all of it when it is not, until ANALYZE
    }


def _encode(value: Any) -> str:
    return orjson.dumps(value).decode()


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = 0
    following: BaseException | None = error
    while following is not None and seen < 8:  # noqa: PLR2004 - SQLAlchemy wraps twice; the bound is only a bound
        yield following
        seen += 1
        following = getattr(following, "orig", None) or following.__cause__


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's five-letter code, wherever the layers between have put it."""
    codes = (getattr(cause, "sqlstate", None) for cause in _causes(error))
    return next((code for code in codes if isinstance(code, str)), None)


def classify(error: BaseException) -> Unavailable | DataError | Retry | None:
    """Say what to do about an error of the database; None is a mistake of ours and should surface.

    The codes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html.
    """
    code = sqlstate(error)
    said = f"{_headline(error)} [{code}]" if code else _headline(error)
    if _is_stale_plan(error, code) or code in RETRYABLE:
        return Retry(said)
    if code == READ_ONLY:
        return ReadOnly(said)
    if code is not None and (code.startswith(UNAVAILABLE_ERRORS) or code in UNAVAILABLE_CODES):
        return Unavailable(said)
    if code is not None and (code.startswith(("22", "23")) or code == "54001"):
        return DataError(said)
    if code is None and _is_lost_connection(error):
        return Unavailable(said)
    return None


def _headline(error: BaseException) -> str:
    """The last cause in one line: without SQL and parameters, which may hold what belongs in no log."""
    last = list(_causes(error))[-1]
    return f"{type(last).__name__}: {(str(last).splitlines() or [''])[0][:200]}"


def _is_stale_plan(error: BaseException, code: str | None) -> bool:
    named = any(type(cause).__name__ == "InvalidCachedStatementError" for cause in _causes(error))
    return named or (code == "0A000" and "cached" in str(error))


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    kinds = (OSError, TimeoutError, PoolTimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    return any(isinstance(cause, kinds) for cause in _causes(error))


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Run the body in one transaction: committed at its end, rolled back by an exception.

    Raises:
        Unavailable: hold what is in hand, wait and run it again; whether a COMMIT in flight took effect is unknown.
        Retry: run it again at once.
        DataError: some value can't be stored; split the batch to find it.
    """
    try:
        async with engine.begin() as conn:
            try:
                yield conn
            except TimeoutError:
                await _discard(conn)
                raise
    except (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        verdict = classify(error)
        if verdict is None:
            raise
        if isinstance(verdict, ReadOnly):
            await dispose(engine)
        raise verdict from error


async def _discard(conn: AsyncConnection) -> None:
    """Drop a connection whose answer never came, so that no one waits for it again."""
    with suppress(SQLAlchemyError, OSError, asyncpg.InterfaceError):
        await asyncio.wait_for(conn.invalidate(), CLOSE_TIMEOUT)


def in_use(engine: AsyncEngine) -> int:
    """How many of the engine's connections are taken."""
    pool = engine.pool
    return pool.checkedout() if isinstance(pool, AsyncAdaptedQueuePool) else 0


async def dispose(engine: AsyncEngine) -> None:
    """Close the idle connections within a bounded time; the next use connects anew."""
    with suppress(SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await asyncio.wait_for(engine.dispose(), CLOSE_TIMEOUT)
