"""Queries of ``taskherd doctor``: they only read, and work with any schema or none, unless they say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import migrate
from taskherd.store.tables import METADATA

_SERVER: Final = text(
    """
    SELECT current_setting('server_version_num')::int / 10000 AS major,
           current_setting('server_version') AS version,
           clock_timestamp() AS now,
           pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS read_only
    """
)

_MISSING_PRIVILEGES: Final = text(
    """
    SELECT tables.name || ' (' || string_agg(privilege, ', ' ORDER BY privilege) || ')'
      FROM unnest(CAST(:tables AS text[])) AS tables(name)
     CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privileges(privilege)
     WHERE to_regclass(tables.name) IS NOT NULL
       AND (privilege = 'SELECT' OR tables.name <> ALL (CAST(:read_only AS text[])))
       AND NOT has_table_privilege(to_regclass(tables.name), privilege)
     GROUP BY tables.name
     ORDER BY tables.name
    """
)

_CONTENT: Final = text(
    """
    SELECT (SELECT count(*) FROM users WHERE active) AS users,
           (SELECT count(*) FROM templates WHERE active) AS templates,
           (SELECT count(*) FROM outbox) AS unpublished,
           (SELECT extract(epoch FROM clock_timestamp() - min(occurred_at)) FROM outbox) AS oldest
    """
)

READ_ONLY: Final = (
    "organizations", "users", "memberships", "templates", "template_versions", "presets", "directory_revision",
)  # fmt: skip
"""Tables that a worker only reads: the directory, which ``taskherd directory apply`` writes."""

NOT_FOR_WORKERS: Final = ("api_tokens",)
"""Tables that a worker does not use: the API reads them and ``taskherd token`` writes them."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The database server; ``now`` is the time of its clock."""

    major: int
    version: str
    now: datetime
    read_only: bool


@dataclass(frozen=True, slots=True)
class ContentCounts:
    """Numbers of rows; ``oldest`` is the age in seconds of the oldest unpublished event."""

    users: int
    templates: int
    unpublished: int
    oldest: float


async def server_info(connection: AsyncConnection) -> ServerInfo:
    """Return the server's version and time, and whether it only accepts reads."""
    row = (await connection.execute(_SERVER)).one()
    return ServerInfo(row.major, row.version, row.now, row.read_only)


async def schema_state(connection: AsyncConnection) -> migrate.SchemaState:
    """Return the state of the schema, compared with this release."""
    return await migrate.state(connection)


async def missing_privileges(connection: AsyncConnection) -> tuple[str, ...]:
    """Return the tables on which this user lacks privileges that a worker needs, each with the missing privileges."""
    tables = [table.name for table in METADATA.sorted_tables if table.name not in NOT_FOR_WORKERS]
    return tuple((await connection.execute(_MISSING_PRIVILEGES, {"tables": tables, "read_only": READ_ONLY})).scalars())


async def content_counts(connection: AsyncConnection) -> ContentCounts:
    """Return the numbers of users, templates and unpublished events; requires the schema."""
    row = (await connection.execute(_CONTENT)).one()
    return ContentCounts(row.users, row.templates, row.unpublished, float(row.oldest or 0))
