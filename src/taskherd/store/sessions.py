"""Open sessions with PostgreSQL, directly or through PgBouncer, in which all settings of taskherd are in force.

PostgreSQL takes the settings from the startup packet. PgBouncer does not: it rejects them, or drops them silently if
they are in its ``ignore_startup_parameters``. A server session is then without statement and lock timeouts, so every
new session reads its settings back, and one that lacks a setting is closed (docs/adr/0039).
https://www.pgbouncer.org/features.html, https://www.pgbouncer.org/config.html
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.errors import Misconfigured
from taskherd.store import patches

URL_OPTION: Final = "pgbouncer"
"""The option of a database URL that names the ``pool_mode`` of a PgBouncer at this address."""

STARTUP_PARAMETERS: Final = ("application_name", "timezone")
"""Settings that PgBouncer accepts at startup and sets in each server session that a client gets."""

STATEMENT_CACHE: Final = 100
"""Number of prepared statements that a connection keeps, as asyncpg's default."""

_PROTOCOL_VIOLATION: Final = "08P01"
"""The code of all errors of PgBouncer itself, outages among them; only their text tells them apart."""
_REJECTED: Final = "unsupported startup parameter"

_SETTINGS: Final = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({})"
_OWN_STATEMENTS: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = '{}')"


class Pooling(StrEnum):
    """What is between taskherd and PostgreSQL: nothing, or a PgBouncer with this ``pool_mode``."""

    DIRECT = "direct"
    SESSION = "session"
    TRANSACTION = "transaction"


def pooling_of(url: URL) -> tuple[URL, Pooling]:
    """Return the URL without the option ``pgbouncer``, and what that says. Raise ``Misconfigured`` for other values."""
    value = url.query.get(URL_OPTION)
    if value is None:
        return url, Pooling.DIRECT
    if value not in {Pooling.SESSION, Pooling.TRANSACTION}:
        expected = f"{URL_OPTION}=session or {URL_OPTION}=transaction, the pool_mode of PgBouncer"
        raise Misconfigured("database_url", f"expected {expected}, got {URL_OPTION}={value}")
    return url.difference_update_query([URL_OPTION]), Pooling(str(value))


@dataclass(frozen=True, slots=True)
class Deviation:
    """A setting that is not in force as required; timeouts are in milliseconds."""

    name: str
    actual: str
    required: str

    def __str__(self) -> str:
        """Return the deviation as part of a sentence."""
        return f"{self.name} is {self.actual}, not {self.required}"


def deviations(settings: Mapping[str, str], actual: Mapping[str, str]) -> tuple[Deviation, ...]:
    """Return the settings that are not in force: a timeout may be shorter than required, everything else is equal."""
    found = ((name, actual.get(name, "unknown"), value) for name, value in _checked(settings).items())
    return tuple(Deviation(*each) for each in found if not _satisfies(*each[1:]))


def _satisfies(actual: str, required: str) -> bool:
    limit = required.removesuffix("ms")
    if limit == required or not actual.isdecimal():
        return actual == required
    return 0 < int(actual) <= int(limit)


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in STARTUP_PARAMETERS}


async def settings_in_force(connection: Any, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the session's values of these settings, as ``pg_settings`` shows them, timeouts in milliseconds."""
    names = ", ".join(f"'{name}'" for name in _checked(settings))
    rows = await connection.fetch(_SETTINGS.format(names))
    return {row["name"]: row["setting"] for row in rows}


def role_statements(settings: Mapping[str, str], role: str, database: str) -> tuple[str, ...]:
    """Return the statements that give a role these settings in a database; a role may execute its own.

    https://www.postgresql.org/docs/current/sql-alterrole.html
    """
    where = f"ALTER ROLE {_quoted(role)} IN DATABASE {_quoted(database)}"
    return tuple(f"{where} SET {name} = '{value}'" for name, value in _checked(settings).items())


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


class SessionFactory:
    """Opens the connections of one pool, with these session settings in force.

    Through PgBouncer in transaction mode a client's statements run in changing server sessions. Settings must come from
    the role, and prepared statements work only if PgBouncer tracks them (1.21 or newer, ``max_prepared_statements``),
    which the first connection finds out; without that, every statement is parsed again.
    """

    def __init__(self, pooling: Pooling, settings: Mapping[str, str], *, checked: bool = True) -> None:
        """Remember the settings; unless ``checked``, sessions through PgBouncer may be without them."""
        patches.install()
        self._checked = checked
        self._pooling = pooling
        self._settings = settings
        self._tracked = True if pooling is not Pooling.TRANSACTION else None

    @property
    def prepares(self) -> bool:
        """True if prepared statements can be used again in later transactions; known after the first connection."""
        return bool(self._tracked)

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        """Connect as ``asyncpg.connect`` does.

        Raises:
            Misconfigured: PgBouncer rejects the settings, or they are not in force.
            OSError, asyncpg.PostgresError: as ``asyncpg.connect``.
        """
        direct = self._pooling is Pooling.DIRECT
        startup = (
            self._settings
            if direct
            else {name: value for name, value in self._settings.items() if name in STARTUP_PARAMETERS}
        )
        if self._tracked is None:
            connection = await self._open(*arguments, **options, server_settings=startup, statement_cache_size=0)
            self._tracked = await self._verified(connection, _tracks_statements)
            if not self._tracked:
                await self._verified(connection, self._establish)
                return connection
            await connection.close(timeout=options.get("timeout"))
        cache = STATEMENT_CACHE if self._tracked else 0
        connection = await self._open(*arguments, **options, server_settings=startup, statement_cache_size=cache)
        await self._verified(connection, self._establish)
        return connection

    async def _open(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await asyncpg.connect(*arguments, **options)
        except asyncpg.PostgresError as error:
            if getattr(error, "sqlstate", None) == _PROTOCOL_VIOLATION and _REJECTED in str(error):
                raise Misconfigured(
                    "database_url",
                    f"PgBouncer rejects the settings of sessions ({error}); expected {URL_OPTION}=session or "
                    f"{URL_OPTION}=transaction in the URL, whichever is its pool_mode",
                ) from error
            raise

    async def _verified(self, connection: Any, check: Any) -> Any:
        try:
            return await check(connection)
        except BaseException:
            connection.terminate()
            raise

    async def _establish(self, connection: Any) -> None:
        if self._pooling is Pooling.SESSION:
            if await _tracks_statements(connection):
                raise Misconfigured(
                    "database_url",
                    "PgBouncer is not in session mode, so settings would reach the sessions of others: "
                    f"expected {URL_OPTION}=transaction in the URL, or pool_mode = session in PgBouncer",
                )
            wanted = _checked(self._settings)
            await connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in wanted.items()))
        if not self._checked or not _checked(self._settings):
            return
        found = deviations(self._settings, await settings_in_force(connection, self._settings))
        if found:
            raise Misconfigured("database_url", _advice(self._pooling, found))


def _advice(pooling: Pooling, found: Sequence[Deviation]) -> str:
    missing = "; ".join(map(str, found))
    if pooling is Pooling.TRANSACTION:
        return (
            f"the sessions behind PgBouncer lack settings ({missing}): give them to the role with "
            "`taskherd db role-settings --apply`, then run RECONNECT in PgBouncer's console"
        )
    return (
        f"the settings of sessions are not in force ({missing}): if there is a PgBouncer at this address, expected "
        f"{URL_OPTION}=session or {URL_OPTION}=transaction in the URL, whichever is its pool_mode"
    )


async def _tracks_statements(connection: Any) -> bool:
    """Return whether PgBouncer tracks prepared statements: it then gives them names of its own at the server.

    It never does in session mode (https://www.pgbouncer.org/config.html#max_prepared_statements).
    """
    name = f"taskherd_{uuid.uuid4().hex}"
    async with connection.transaction():
        statement = await connection.prepare("SELECT 1", name=name)
        untracked: bool = await connection.fetchval(_OWN_STATEMENTS.format(name))
        if untracked:
            await connection.execute(f"DEALLOCATE {name}")
        del statement
    return not untracked


def disable_statement_cache(engine: AsyncEngine, sessions: SessionFactory) -> None:
    """Let the engine's connections use unnamed statements, each once, if the first session showed that it must.

    SQLAlchemy has these as options of the engine, but whether they are needed is known only after connecting.
    """

    def on_connect(connection: Any, _record: object) -> None:
        if not sessions.prepares:
            connection._prepared_statement_cache = None  # noqa: SLF001 - see above
            connection._prepared_statement_name_func = str  # noqa: SLF001 - an empty name

    event.listen(engine.sync_engine, "connect", on_connect)
