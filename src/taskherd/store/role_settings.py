"""The settings of sessions as defaults of a role: behind PgBouncer in transaction mode they come from nowhere else."""

from __future__ import annotations

from taskherd.errors import Unavailable
from taskherd.store import sessions
from taskherd.store.connecting import CONNECT_TIMEOUT, FAILURES, Connector
from taskherd.store.engine import COMMAND_TIMEOUT, classify, session_settings

_WHO = "SELECT current_user AS role, current_database() AS database"


async def statements(database_url: str) -> tuple[str, ...]:
    """Return the statements that give the URL's user the settings in the URL's database.

    Raises:
        Unavailable, Misconfigured: the database cannot be reached, or rejects the user.
    """
    return await _run(database_url, applying=False)


async def apply(database_url: str) -> tuple[str, ...]:
    """Execute the statements, and return them. They count for sessions that begin from now on. Raise as above."""
    return await _run(database_url, applying=True)


async def _run(database_url: str, *, applying: bool) -> tuple[str, ...]:
    settings = session_settings("taskherd db")
    connector = Connector(database_url, command_timeout=COMMAND_TIMEOUT, server_settings=settings, checked=False)
    try:
        connection = await connector.connect()
        try:
            who = await connection.fetchrow(_WHO)
            found = sessions.role_statements(settings, who["role"], who["database"])
            if applying:
                await connection.execute("; ".join(found))
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)
    except FAILURES as error:
        raise classify(error) or Unavailable(str(error)) from error
    return found
