"""Check the database server, its clock, the schema, privileges and content."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from taskherd.cli.diagnostics import clocks
from taskherd.cli.diagnostics.findings import Finding, error, ok, problems
from taskherd.cli.diagnostics.hosts import check_hosts
from taskherd.cli.diagnostics.roles import Role
from taskherd.errors import Misconfigured, TaskherdError
from taskherd.settings import database_hosts, with_host
from taskherd.store import diagnostics as database
from taskherd.store import replication
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.migrate import SchemaStatus
from taskherd.store.read_pool import ReadPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from taskherd.endpoints import Host
    from taskherd.settings import Settings

MIN_POSTGRES: Final = 15
MAX_UNPUBLISHED: Final = 60.0
"""Maximum age of an unpublished event, in seconds."""
_SET_READ_URL: Final = "set TASKHERD_DATABASE_READ_URL to a standby of the database"


async def check_database(
    settings: Settings, roles: Collection[Role] = (Role.WORKER,), now: clocks.Now = clocks.utc_now
) -> AsyncIterator[Finding]:
    """Check all that workers and APIs need from the database; ``now`` is this machine's clock."""
    for finding in await check_hosts("database host", database_hosts(settings.database_url), partial(_host, settings)):
        yield finding
    engine = open_engine(settings.database_url, size=1, application_name="taskherd-doctor")
    try:
        before = now()
        async with transaction(engine) as conn:
            server = await database.server_info(conn)
            yield _server(server)
            yield _sessions(await database.session_settings_in_force(conn))
            yield clocks.compare("the database", (server.now, server.now), (before, now()))
            schema = await database.schema_state(conn)
            is_current = schema.status is SchemaStatus.CURRENT
            found = schema.actual or "none"
            yield ok("database schema", found) if is_current else error("database schema", found, schema.advice)
            missing = await (
                database.missing_privileges(conn) if Role.WORKER in roles else database.missing_privileges_of_api(conn)
            )
            advice = "grant them to this user, or use the owner of the tables"
            yield problems("database privileges", missing, "sufficient", advice)
            if is_current and not missing:
                for finding in _content(await database.content_counts(conn)):
                    yield finding
    except Misconfigured as problem:
        yield error("database sessions", problem.expected, "correct TASKHERD_DATABASE_URL, or the settings of its role")
    except TaskherdError as problem:
        yield error("database", str(problem), "start PostgreSQL, or correct TASKHERD_DATABASE_URL")
    finally:
        await dispose(engine)


async def _host(settings: Settings, host: Host) -> str:
    """Connect to one of several hosts and return what it is."""
    engine = open_engine(with_host(settings.database_url, host), size=1, application_name="taskherd-doctor")
    try:
        async with transaction(engine) as conn:
            server = await database.server_info(conn)
            return f"PostgreSQL {server.version}{', read-only' if server.read_only else ''}"
    finally:
        await dispose(engine)


def _server(server: database.ServerInfo) -> Finding:
    found = f"PostgreSQL {server.version}"
    if server.major < MIN_POSTGRES:
        return error("database", found, f"install PostgreSQL {MIN_POSTGRES} or newer")
    if server.read_only:
        return error("database", f"{found}, read-only", "set TASKHERD_DATABASE_URL to the primary server")
    return ok("database", found)


async def check_standby(settings: Settings) -> AsyncIterator[Finding]:
    """Check the standby from which APIs read."""
    pool = ReadPool(settings.database_read_url, size=1, application_name="taskherd-doctor", of_standby=True)
    try:
        replayed = await replication.replayed(pool)
        written = await _written(settings)
        if replayed is None:
            yield error("standby", "not a standby", _SET_READ_URL)
        elif written is not None and replayed.database != written.database:
            yield error("standby", "of another database", _SET_READ_URL)
        elif written is not None and replayed.timeline != written.timeline:
            found = f"on timeline {replayed.timeline}, the primary on {written.timeline}"
            yield error("standby", found, "let it follow the primary; it may show so some minutes after a failover")
        else:
            yield ok("standby", "in recovery")
    except TaskherdError as problem:
        yield error("standby", str(problem), "start it, or correct TASKHERD_DATABASE_READ_URL")
    finally:
        await pool.close()


async def _written(settings: Settings) -> replication.WalPosition | None:
    """Return how far the primary has written, None if it does not answer, which another check reports."""
    if not settings.database_url:
        return None
    pool = ReadPool(settings.database_url, size=1, application_name="taskherd-doctor")
    try:
        return await replication.written(pool)
    except TaskherdError:
        return None
    finally:
        await pool.close()


def _sessions(settings: Mapping[str, str]) -> Finding:
    """Return the settings in force; a session that lacks one cannot be opened at all."""
    shown = (
        f"{name} {value} ms" if name.endswith("_timeout") else f"{name} {value}" for name, value in settings.items()
    )
    return ok("database sessions", ", ".join(shown))


def _content(content: database.ContentCounts) -> list[Finding]:
    found = f"{content.users} users, {content.templates} templates"
    unpublished = f"{content.unpublished}, the oldest for {content.oldest:.0f} s" if content.unpublished else "none"
    return [
        ok("directory", found)
        if content.users and content.templates
        else error("directory", found, "run `taskherd directory apply FILE.yaml`"),
        error("unpublished events", unpublished, "check that a worker is running and reaches the broker")
        if content.oldest > MAX_UNPUBLISHED
        else ok("unpublished events", unpublished),
    ]
