"""What `taskherd doctor` asks the database: read only, and true for any schema, present or not."""

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
    SELECT needed.name || ' (' || string_agg(privilege, ', ' ORDER BY privilege) || ')'
      FROM unnest(CAST(:tables AS text[])) AS needed(name)
     CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted(privilege)
     WHERE to_regclass(needed.name) IS NOT NULL
       AND (privilege = 'SELECT' OR needed.name <> ALL (CAST(:only_read AS text[])))
       AND NOT has_table_privilege(to_regclass(needed.name), privilege)
     GROUP BY needed.name
     ORDER BY needed.name
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

ONLY_READ: Final = (
    "organizations", "users", "memberships", "templates", "template_versions", "presets", "directory_revision",
)  # fmt: skip
"""The directory, which only `taskherd directory apply` writes."""

NOT_FOR_WORKERS: Final = ("api_tokens",)
"""What only the api reads and `taskherd token` writes."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server found; `now` is its clock."""

    major: int
    version: str
    now: datetime
    read_only: bool


@dataclass(frozen=True, slots=True)
class ContentCounts:
    """How much the tables hold; `oldest` is the age in seconds of the oldest unpublished event."""

    users: int
    templates: int
    unpublished: int
    oldest: float


async def server(conn: AsyncConnection) -> ServerInfo:
    """Return which server this is and what its clock says."""
    row = (await conn.execute(_SERVER)).one()
    return ServerInfo(row.major, row.version, row.now, row.read_only)


async def schema(conn: AsyncConnection) -> migrate.SchemaState:
    """Return how the schema fits this release."""
    return await migrate.state(conn)


async def missing_privileges(conn: AsyncConnection) -> tuple[str, ...]:
    """Return the tables that are there and that this user may not use as a worker must, each with what is missing."""
    tables = [table.name for table in METADATA.sorted_tables if table.name not in NOT_FOR_WORKERS]
    return tuple((await conn.execute(_MISSING_PRIVILEGES, {"tables": tables, "only_read": ONLY_READ})).scalars())


async def content(conn: AsyncConnection) -> ContentCounts:
    """Return how much the tables hold; the schema must be there."""
    row = (await conn.execute(_CONTENT)).one()
    return ContentCounts(row.users, row.templates, row.unpublished, float(row.oldest or 0))
