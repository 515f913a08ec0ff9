"""Statements that asyncpg executes without SQLAlchemy, within a transaction of SQLAlchemy's.

For each statement SQLAlchemy takes three times as much CPU as asyncpg. That is worth a second way of executing only
for the few statements of a small transaction that users wait for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_PARAMETER: Final = re.compile(r"(?<!:):(\w+)")
_BEGIN: Final = text("SELECT 1")
"""Any statement: SQLAlchemy begins a transaction with the first one that it executes."""


class DirectStatement:
    """A statement with parameters such as ``:name``."""

    def __init__(self, sql: str) -> None:
        """Replace the parameters by those of PostgreSQL: ``$1`` and so on."""
        self._names = list(dict.fromkeys(_PARAMETER.findall(sql)))
        positions = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        self.sql = _PARAMETER.sub(lambda found: positions[found[1]], sql)

    async def fetch(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Execute the statement in the connection's transaction and return its rows."""
        pooled = connection.sync_connection
        assert pooled is not None
        driver: Any = pooled.connection.driver_connection
        if not driver.is_in_transaction():
            await connection.execute(_BEGIN)
        rows: Sequence[Any] = await driver.fetch(self.sql, *[values[name] for name in self._names])
        return rows
