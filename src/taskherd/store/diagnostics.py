"""Queries of ``taskherd doctor``: they only read, and work with any schema or none, unless they say otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import migrate
from taskherd.store.engine import session_settings
from taskherd.store.sessions import settings_in_force
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
     UNION ALL
    SELECT split_part(functions.name, '(', 1) || ' (EXECUTE)'
      FROM unnest(CAST(:functions AS text[])) AS functions(name)
     WHERE to_regprocedure(functions.name) IS NOT NULL
       AND NOT has_function_privilege(to_regprocedure(functions.name), 'EXECUTE')
     ORDER BY 1
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

_MISSING_FOR_API: Final = text(
    """
    SELECT tables.name || ' (SELECT)' AS missing FROM unnest(CAST(:tables AS text[])) AS tables(name)
     WHERE to_regclass(tables.name) IS NOT NULL AND NOT has_table_privilege(to_regclass(tables.name), 'SELECT')
     UNION ALL
    SELECT 'api_tokens (UPDATE of last_used_at)'
     WHERE to_regclass('api_tokens') IS NOT NULL
       AND NOT has_column_privilege(to_regclass('api_tokens'), 'last_used_at', 'UPDATE')
     UNION ALL
    SELECT tables.name || ' (' || string_agg(privilege, ', ' ORDER BY privilege) || ')'
      FROM unnest(CAST(:written AS text[])) AS tables(name)
     CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE']) AS privileges(privilege)
     WHERE to_regclass(tables.name) IS NOT NULL AND NOT has_table_privilege(to_regclass(tables.name), privilege)
     GROUP BY tables.name
     ORDER BY missing
    """
)

_POOL: Final = "COALESCE(NULLIF(v.run->>'pool', ''), :default_pool)"

_OPEN_REQUESTS: Final = text(
    f"""
    SELECT {_POOL} AS pool, r.target_runner AS runner,
           r.type = ANY (CAST(:pool_fallback AS text[])) AS may_use_pool,
           count(DISTINCT r.task_id) AS tasks, min(r.created_at) AS since
      FROM work_requests AS r
      JOIN tasks AS t ON t.id = r.task_id
      JOIN template_versions AS v ON v.id = t.template_version_id
     GROUP BY 1, 2, 3 ORDER BY since LIMIT :limit
    """
)

_TEMPLATE_POOLS: Final = text(
    f"""
    SELECT {_POOL} AS pool, array_agg(t.name ORDER BY t.name) AS templates
      FROM templates AS t
      JOIN template_versions AS v ON v.id = t.active_version_id
     WHERE t.active AND v.active
     GROUP BY 1 ORDER BY 1 LIMIT :limit
    """
)

READ_ONLY: Final = (
    "organizations", "users", "memberships", "templates", "template_versions", "presets", "runners",
    "directory_revision",
)  # fmt: skip
"""Tables that a worker only reads: the directory, which ``taskherd directory apply`` writes."""

NOT_FOR_WORKERS: Final = ("api_tokens",)
"""Tables that a worker may not use but by ``FUNCTIONS``: the API reads them and ``taskherd token`` writes them."""

FUNCTIONS: Final = (
    "taskherd_add_partition(text, date)", "taskherd_drop_partitions(text, date)",
    "taskherd_prune_tokens(timestamptz, integer)",
)  # fmt: skip
"""Functions that a worker calls, which have the rights of their owner."""

WRITTEN_BY_API: Final = ("task_actions", "task_action_tasks")
"""Tables in which the API stores its jobs."""


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


@dataclass(frozen=True, slots=True)
class OpenRequests:
    """Unanswered work requests for one target: ``runner``, or ``pool`` if that is None.

    ``may_use_pool`` is true if the pool gets these requests too after the runner left them unanswered. ``tasks`` is the
    number of tasks, ``since`` when the oldest request was made.
    """

    pool: str
    runner: str | None
    may_use_pool: bool
    tasks: int
    since: datetime


@dataclass(frozen=True, slots=True)
class PoolTemplates:
    """A pool, and the names of the active templates whose tasks it runs."""

    pool: str
    templates: tuple[str, ...]


async def server_info(connection: AsyncConnection) -> ServerInfo:
    """Return the server's version and time, and whether it only accepts reads."""
    row = (await connection.execute(_SERVER)).one()
    return ServerInfo(row.major, row.version, row.now, row.read_only)


async def session_settings_in_force(connection: AsyncConnection) -> dict[str, str]:
    """Return the settings that each session of taskherd must have, with their values here, timeouts in milliseconds."""
    session = (await connection.get_raw_connection()).driver_connection
    return await settings_in_force(session, session_settings(""))


async def schema_state(connection: AsyncConnection) -> migrate.SchemaState:
    """Return the state of the schema, compared with this release."""
    return await migrate.state(connection)


async def missing_privileges(connection: AsyncConnection) -> tuple[str, ...]:
    """Return tables and functions on which this user lacks privileges that a worker needs, with the missing ones."""
    tables = [table.name for table in METADATA.sorted_tables if table.name not in NOT_FOR_WORKERS]
    values = {"tables": tables, "read_only": READ_ONLY, "functions": FUNCTIONS}
    return tuple((await connection.execute(_MISSING_PRIVILEGES, values)).scalars())


async def missing_privileges_of_api(connection: AsyncConnection) -> tuple[str, ...]:
    """Return the tables on which this user lacks privileges that an API needs, each with the missing privilege."""
    tables = [table.name for table in METADATA.sorted_tables]
    return tuple((await connection.execute(_MISSING_FOR_API, {"tables": tables, "written": WRITTEN_BY_API})).scalars())


async def open_requests(
    connection: AsyncConnection, default_pool: str, pool_fallback: Iterable[str], limit: int
) -> list[OpenRequests]:
    """Return the unanswered work requests of up to ``limit`` targets, the oldest first; requires the schema.

    ``pool_fallback`` are the types of requests that the pool gets too if the runner does not answer.
    """
    values = {"default_pool": default_pool, "pool_fallback": sorted(pool_fallback), "limit": limit}
    return [OpenRequests(*row) for row in await connection.execute(_OPEN_REQUESTS, values)]


async def template_pools(connection: AsyncConnection, default_pool: str, limit: int) -> list[PoolTemplates]:
    """Return up to ``limit`` pools that active templates name, by name; requires the schema."""
    rows = await connection.execute(_TEMPLATE_POOLS, {"default_pool": default_pool, "limit": limit})
    return [PoolTemplates(row.pool, tuple(row.templates)) for row in rows]


async def content_counts(connection: AsyncConnection) -> ContentCounts:
    """Return the numbers of users, templates and unpublished events; requires the schema."""
    row = (await connection.execute(_CONTENT)).one()
    return ContentCounts(row.users, row.templates, row.unpublished, float(row.oldest or 0))
