"""Execute a script of ``GRANT`` and ``REVOKE`` after a migration, such as ``deploy/postgres/grants.sql``."""

from __future__ import annotations

from taskherd.errors import Misconfigured, Unavailable
from taskherd.store.connecting import CONNECT_TIMEOUT, FAILURES, Connector
from taskherd.store.engine import COMMAND_TIMEOUT, classify, session_settings, sqlstate

NO_SUCH_ROLE = "42704"
"""PostgreSQL's undefined_object."""


async def apply(database_url: str, script: str) -> None:
    """Execute the script as the URL's user, in one transaction.

    Raises:
        Misconfigured: a role that the script names does not exist, or the database rejects the user.
        Unavailable: the database cannot be reached, or a statement failed.
    """
    settings = session_settings("taskherd db")
    connector = Connector(database_url, command_timeout=COMMAND_TIMEOUT, server_settings=settings, checked=False)
    try:
        connection = await connector.connect()
        try:
            await connection.execute(script)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)
    except FAILURES as error:
        if sqlstate(error) == NO_SUCH_ROLE:
            raise Misconfigured("database_url", f"{error}; create the roles with deploy/postgres/roles.sql") from error
        raise classify(error) or Unavailable(str(error)) from error
