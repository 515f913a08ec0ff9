"""Databases for tests: copies of a migrated one; a copy whose schema a test left alone is emptied and used again.

To copy a database costs a tenth to half of a second of CPU, to empty one a tenth of that.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from taskherd.store import migrate

# What says that a test changed more than rows: each relation, column, constraint, index, trigger and function, grants,
# settings of the database, and what VACUUM and ANALYZE left, which plans depend on. New partitions count as well.
_FINGERPRINT: Final = """
WITH ours AS (
    SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace AND nspname !~ '^(pg_|information_schema)'
)
SELECT md5(string_agg(item, ',' ORDER BY item)) FROM (
    SELECT concat_ws(' ', 'relation', oid::regclass, relkind, relpersistence, relowner, relacl, reloptions,
                     relkind = 'r' AND reltuples >= 0) AS item
    FROM ours
    UNION ALL
    SELECT concat_ws(' ', 'column', attrelid::regclass, attname, atttypid, attnotnull, atthasdef, attisdropped, attacl)
    FROM pg_attribute JOIN ours ON ours.oid = attrelid
    UNION ALL
    SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, convalidated, conbin)
    FROM pg_constraint JOIN ours ON ours.oid = conrelid
    UNION ALL
    SELECT concat_ws(' ', 'index', indexrelid::regclass, indisvalid, indkey, indpred)
    FROM pg_index JOIN ours ON ours.oid = indrelid
    UNION ALL
    SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
    UNION ALL
    SELECT concat_ws(' ', 'function', oid::regprocedure, proacl, md5(prosrc)) FROM pg_proc WHERE oid >= 16384
    UNION ALL
    SELECT concat_ws(' ', 'schema', nspname, nspowner, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_.*temp'
    UNION ALL
    SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
    UNION ALL
    SELECT concat_ws(' ', 'database', datdba, datallowconn, datconnlimit, datacl, setrole, setconfig)
    FROM pg_database d LEFT JOIN pg_db_role_setting ON setdatabase = d.oid WHERE datname = current_database()
    UNION ALL
    SELECT concat_ws(' ', 'statistics', tablename, attname) FROM pg_stats WHERE schemaname = 'public'
) AS items
"""
_DISCONNECT: Final = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_WRITTEN: Final = """
SELECT relname, pg_relation_size(oid) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_relation_size(oid) > 0 ORDER BY 1
"""
_LARGE: Final = 256 * 1024
"""Bytes from which to truncate a table, which makes files for it and its indexes, is faster than to delete its rows."""
_READ_BY_BLOCKS: Final = {"leases"}
"""Tables of which tests count the blocks, so that no deleted rows may be left in them."""
_COUNTED: Final = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect until the end of the block."""
    connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
    try:
        yield connection
    finally:
        await connection.close(timeout=30)


class Databases:
    """The databases of one test run, on the server at ``server_url``."""

    def __init__(self, server_url: str, template: str, fingerprint: str, seeds: dict[str, str]) -> None:
        self._server_url = server_url
        self._template = template
        self._fingerprint = fingerprint
        self._seeds = seeds  # the rows of the migrated database by table, as a literal of JSON
        self.empty: list[str] = []
        """The names of those that can be lent."""

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[str]:
        """Yield the URL of a migrated database that nobody else uses; its name has never been used before."""
        name = f"taskherd_test_{uuid.uuid4().hex[:8]}"
        if not (self.empty and await self._renamed(self.empty.pop(), name)):
            await execute(self._server_url, f'CREATE DATABASE "{name}" TEMPLATE "{self._template}" STRATEGY FILE_COPY')
        try:
            yield with_database(self._server_url, name)
        finally:
            if await self._emptied(name):
                self.empty.append(name)
            else:
                await execute(self._server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _renamed(self, name: str, to: str) -> bool:
        """Rename an empty database, so that nothing which an earlier test left running finds it.

        If something has connected again meanwhile, remove it and return False.
        """
        try:
            await execute(self._server_url, f'ALTER DATABASE "{name}" RENAME TO "{to}"')
        except asyncpg.ObjectInUseError:
            await execute(self._server_url, f'DROP DATABASE "{name}" WITH (FORCE)')
            return False
        return True

    async def _emptied(self, name: str) -> bool:
        """Empty the database; return False if it cannot be used again."""
        try:
            connection = await asyncpg.connect(with_database(self._server_url, name), timeout=30, command_timeout=30)
        except (OSError, asyncpg.PostgresError):
            return False  # the test removed it, or admits nobody
        try:
            if await connection.fetchval(_FINGERPRINT) != self._fingerprint:
                return False
            await connection.fetchval(_DISCONNECT)
            tables = dict(await connection.fetch(_WRITTEN))
            sequences = [name for (name,) in await connection.fetch(_COUNTED)]
            await connection.execute(self._emptying(tables, sequences))
        except asyncpg.InsufficientPrivilegeError:
            return False  # a server that was given to the tests may allow less
        else:
            return True
        finally:
            await connection.close(timeout=30)

    def _emptying(self, tables: dict[str, int], sequences: list[str]) -> str:
        truncated = [table for table, size in tables.items() if size > _LARGE or table in _READ_BY_BLOCKS]
        statements = ["SET session_replication_role = replica"]  # no foreign keys are checked
        statements += [f"TRUNCATE {', '.join(truncated)} CASCADE"] if truncated else []
        statements += [f"DELETE FROM {table}" for table in tables]
        statements += [f"ALTER SEQUENCE {name} RESTART" for name in sequences]
        statements += [
            f"INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, {rows})"
            for table, rows in self._seeds.items()
        ]
        return "; ".join([*statements, "SELECT pg_stat_reset()"])


@asynccontextmanager
async def open_databases(server_url: str) -> AsyncIterator[Databases]:
    """Migrate a database that is copied for each test; drop it at the end."""
    name = f"taskherd_template_{uuid.uuid4().hex[:8]}"
    await execute(server_url, f'CREATE DATABASE "{name}"')
    url = with_database(server_url, name)
    await asyncio.to_thread(migrate.upgrade, url)
    connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
    try:
        fingerprint = await connection.fetchval(_FINGERPRINT)
        seeds = {
            table: await connection.fetchval(f"SELECT quote_literal(json_agg(t)) FROM {table} t")
            for table, _ in await connection.fetch(_WRITTEN)
        }
    finally:
        await connection.close(timeout=30)
    databases = Databases(server_url, name, fingerprint, seeds)
    yield databases
    for unused in (name, *databases.empty):
        await execute(server_url, f'DROP DATABASE "{unused}" WITH (FORCE)')


def with_database(url: str, name: str) -> str:
    """Return the URL with another database in it."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=30)
