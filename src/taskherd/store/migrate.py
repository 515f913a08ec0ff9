"""Migrate the schema to the revision this release needs; any number of processes may start it at the same time."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.backoff import Backoff
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store.engine import StatementTimeout, dispose, open_engine, sqlstate, transaction
from taskherd.store.open_connections import driver_connection
from taskherd.store.tables import SCHEMA_VERSION_TABLE

if TYPE_CHECKING:  # only a migration needs Alembic; to import it takes a worker that starts a sixth of its time
    from alembic.config import Config

ATTEMPTS: Final = 10
"""Maximum number of attempts to lock the tables."""

COMMAND_TIMEOUT: Final = 7 * 86400.0
"""Seconds for which the connection waits for a statement: as good as without limit, which a session must have."""

KEEPALIVE_IDLE, KEEPALIVE_EVERY, KEEPALIVE_COUNT = 30, 10, 6
"""Seconds without a response after which TCP asks whether the server is there, and between two such questions; number
of those without an answer after which it counts as gone."""

LOCK_TIMEOUT: Final = 2.0
"""Seconds for which a statement of a migration waits for the lock of a table."""

CLIENT_CHECK_EVERY: Final = 10.0
"""Seconds after which the server ends the statement of a process that is gone: it would keep its locks till the end."""

BACKOFF: Final = Backoff(first=0.2, maximum=2.0)
"""Seconds between two attempts."""

NOT_ALLOWED: Final = "42501"
"""PostgreSQL's insufficient_privilege."""

HEAD: Final = "head"


class MigrationCanceled(Unavailable):
    """A migration took longer than it may, or somebody canceled its statement.

    It changed nothing, unless its commit was in progress.
    """


class SchemaStatus(StrEnum):
    """The schema in the database, compared with this release."""

    CURRENT = "current"
    MISSING = "missing"
    OLD = "old"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision in the database (None without a schema) and the one this release needs."""

    actual: str | None
    expected: str
    status: SchemaStatus

    @property
    def advice(self) -> str:
        """What the user should do, in one sentence; empty if the schema is current."""
        match self.status:
            case SchemaStatus.CURRENT:
                return ""
            case SchemaStatus.MISSING:
                return "The database has no taskherd schema: run `taskherd db upgrade`."
            case SchemaStatus.OLD:
                return f"The schema is at {self.actual}, this release needs {self.expected}: run `taskherd db upgrade`."
            case SchemaStatus.NEW:
                return (
                    f"The schema is at {self.actual}, which this release (needing {self.expected}) does not know: "
                    "install the taskherd release that made it, or a newer one."
                )


def alembic_config() -> Config:
    """Return an Alembic configuration for the revisions inside this package."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "taskherd.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


@cache
def revisions() -> list[str]:
    """Return the revisions of this release, oldest first: the numbers with which the names of their files begin."""
    files = (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*_*.py")
    return sorted(file.name.partition("_")[0] for file in files)


async def state(connection: AsyncConnection) -> SchemaState:
    """Return the state of the schema, compared with this release."""
    return await connection.run_sync(_state)


def _state(connection: Connection) -> SchemaState:
    expected = revisions()[-1]
    actual = None
    if connection.scalar(text("SELECT to_regclass(:table)"), {"table": SCHEMA_VERSION_TABLE}):
        actual = connection.scalar(text(f"SELECT version_num FROM {SCHEMA_VERSION_TABLE}"))
    if actual is None:
        return SchemaState(None, expected, SchemaStatus.MISSING)
    if actual == expected:
        return SchemaState(actual, expected, SchemaStatus.CURRENT)
    return SchemaState(actual, expected, SchemaStatus.OLD if actual in revisions() else SchemaStatus.NEW)


def upgrade(database_url: str, revision: str = HEAD, *, timeout: float | None = None) -> SchemaState:
    """Run ``upgrade_async`` and wait for it; this blocks an event loop that runs in the calling thread."""
    upgrading = upgrade_async(database_url, revision, timeout=timeout)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(upgrading)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, upgrading).result()


async def upgrade_async(
    database_url: str,
    revision: str = HEAD,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - a limit
) -> SchemaState:
    """Migrate to ``revision``, all steps in one transaction, and return the resulting state.

    One process migrates; the others wait for it, however long that takes, and find nothing to do. A step waits at most
    two seconds for the lock of a table, because all other statements queue behind a waiting ``ALTER TABLE``. Then the
    migration is retried, up to ten attempts. https://www.postgresql.org/docs/current/explicit-locking.html

    A statement may take as long as the tables are large: only ``timeout``, in seconds, limits all of it together.

    Raises:
        Misconfigured: the schema is newer than this release, or ``revision`` does not exist.
        Retry: the tables could not be locked in any attempt.
        MigrationCanceled: it took too long.
        Unavailable: the database cannot be reached.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _upgrade(database_url, revision)
    except TimeoutError as error:
        raise MigrationCanceled(
            f"the migration took longer than {timeout:g} s, `taskherd db check` says if it took effect"
        ) from error


async def _upgrade(database_url: str, revision: str) -> SchemaState:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _upgrade_once(database_url, revision)
        except Retry:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(BACKOFF.delay(attempt))
    raise AssertionError  # the last attempt returned or raised


async def ensure_async(database_url: str, *, upgrading: bool) -> SchemaState:
    """Return the state of the schema once it is current; migrate a missing or old one if ``upgrading``.

    A current schema is only read, which needs no privilege to change it.

    Raises:
        Misconfigured: the schema is newer, or it must be migrated and may not be; the message says what to run.
        Retry, Unavailable: as ``upgrade_async``.
    """
    before = await current_async(database_url)
    if before.status is SchemaStatus.CURRENT:
        return before
    if before.status is SchemaStatus.NEW or not upgrading:
        raise Misconfigured("database_url", before.advice)
    try:
        return await upgrade_async(database_url)
    except SQLAlchemyError as error:
        if sqlstate(error) == NOT_ALLOWED:
            advice = f"{before.advice[:-1]} as the user who owns the tables; this one may not change them."
            raise Misconfigured("database_url", advice) from error
        raise


async def _upgrade_once(database_url: str, revision: str) -> SchemaState:
    engine = open_engine(database_url, size=1, application_name="taskherd-db", command_timeout=COMMAND_TIMEOUT)
    try:
        async with transaction(engine) as connection:
            _keep_alive(driver_connection(connection))
            # Other statements look up a few rows; those of a migration read whole tables.
            await _set_local(connection, statement_timeout="0", lock_timeout="0", enable_seqscan="on")
            await _set_local(connection, client_connection_check_interval=_milliseconds(CLIENT_CHECK_EVERY))
            await connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd schema', 0))"))
            await _set_local(connection, lock_timeout=_milliseconds(LOCK_TIMEOUT))
            return await connection.run_sync(_run, revision)
    except StatementTimeout as error:
        raise MigrationCanceled(f"the migration was canceled, nothing was changed: {error}") from error
    finally:
        await dispose(engine)


def _keep_alive(driver: Any) -> None:
    """Have TCP notice a server that is gone, although a statement that takes an hour sends nothing meanwhile."""
    sock = driver._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has neither an option nor an accessor
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (("TCP_KEEPIDLE", KEEPALIVE_IDLE), ("TCP_KEEPINTVL", KEEPALIVE_EVERY), ("TCP_KEEPCNT", KEEPALIVE_COUNT))
    for name, value in options:
        if hasattr(socket, name):  # else the system's own times hold
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _milliseconds(seconds: float) -> str:
    return f"{int(seconds * 1000)}ms"


async def _set_local(connection: AsyncConnection, **settings: str) -> None:
    for name, value in settings.items():
        await connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})


def _run(connection: Connection, revision: str) -> SchemaState:
    from alembic import command  # noqa: PLC0415
    from alembic.util.exc import CommandError  # noqa: PLC0415

    before = _state(connection)
    if before.status is SchemaStatus.NEW:
        raise Misconfigured("database_url", before.advice)
    config = alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise Misconfigured("revision", f"{error}; expected one that `taskherd db current` could name") from error
    return _state(connection)


async def current_async(database_url: str) -> SchemaState:
    """Connect and return the state of the schema, compared with this release."""
    engine = open_engine(database_url, size=1, application_name="taskherd-db")
    try:
        async with transaction(engine) as connection:
            return await state(connection)
    finally:
        await dispose(engine)


def current(database_url: str) -> SchemaState:
    """Run ``current_async`` outside an event loop."""
    return asyncio.run(current_async(database_url))


async def check(connection: AsyncConnection) -> None:
    """Check that the schema is the one this release needs.

    Raises:
        Misconfigured: the schema is missing, older or newer; the message says what to run.
    """
    current_state = await state(connection)
    if current_state.status is not SchemaStatus.CURRENT:
        raise Misconfigured("database_url", current_state.advice)


async def lacking(engine: AsyncEngine) -> str | None:
    """Return what to do if the schema lacks something that this release needs, else None."""
    async with transaction(engine) as connection:
        current_state = await state(connection)
    return None if current_state.status is SchemaStatus.NEW else current_state.advice or None


async def newer(engine: AsyncEngine) -> str | None:
    """Return what to do if the schema is that of a later release, else None.

    A process that was started before works on with it: a migration takes nothing away that the release before uses.
    """
    async with transaction(engine) as connection:
        current_state = await state(connection)
    return current_state.advice if current_state.status is SchemaStatus.NEW else None
