"""Statements that asyncpg executes without SQLAlchemy, in a transaction of ``engine.transaction``.

For each statement SQLAlchemy takes three times as much CPU as asyncpg. That is worth a second way of executing only
for those that every small batch of reports or commands executes (docs/adr/0046).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

_PARAMETER: Final = re.compile(r"(?<!:):(\w+)")


class DirectStatement:
    """A statement with parameters such as ``:name``, as ``str`` returns it; ``sql`` has PostgreSQL's: ``$1``."""

    def __init__(self, text: str) -> None:
        """Number the parameters in the order in which they come first."""
        self._text = text
        self._names = list(dict.fromkeys(_PARAMETER.findall(text)))
        positions = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        self.sql = _PARAMETER.sub(lambda found: positions[found[1]], text)

    def __str__(self) -> str:
        return self._text

    async def fetch(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Execute the statement in the connection's transaction, and return its rows as tuples.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError: as
                ``asyncpg.Connection.fetch``; ``transaction`` classifies them.
        """
        pooled = connection.sync_connection
        assert pooled is not None
        driver: Any = pooled.connection.driver_connection
        rows: Sequence[Any] = await driver.fetch(self.sql, *[values[name] for name in self._names])
        return rows
