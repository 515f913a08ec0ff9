"""Executed commands and their replies, so that a repeated command changes nothing and gets the same reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.statements import ColumnArrays, column_names, stored
from taskherd.store.tables import command_log


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """A command executed earlier: the digest of its body, and its reply as JSON text."""

    digest: bytes
    reply: str


class ExecutedCommand(NamedTuple):
    """A command to record, with the digest of its body and its reply as JSON text.

    It is recorded until it is pruned by age, or with ``kept_until_erased`` until after its task is erased.
    """

    command_id: UUID
    task_id: UUID
    digest: bytes
    reply: str
    created_at: datetime
    kept_until_erased: bool = False


_ROWS: Final = ColumnArrays(command_log.c, prefix="c_")

INSERT: Final = f"""
INSERT INTO command_log ({column_names(command_log.c)})
SELECT {stored(command_log.c)}
FROM {_ROWS.unnest("c")}
ORDER BY command_id
ON CONFLICT (command_id) DO NOTHING
"""
RECORD: Final = text(INSERT)

FIND: Final = text("""
SELECT command_id, digest, CAST(reply AS text) FROM command_log WHERE command_id = ANY(CAST(:ids AS uuid[]))
""")

# For ``ReadPool``: which of these ids are taken by commands that were executed.
EXECUTED: Final = "SELECT command_id FROM command_log WHERE command_id = ANY($1)"

RECORDED: Final = """
SELECT digest, CAST(reply AS text) AS reply, CAST(extract(epoch FROM now() - created_at) AS float8) AS age
FROM command_log WHERE command_id = $1 AND reply IS NOT NULL
"""

PRUNE: Final = text("""
DELETE FROM command_log WHERE command_id IN (
    SELECT command_id FROM command_log WHERE created_at < :before AND NOT kept_until_erased
    ORDER BY created_at LIMIT :limit
    FOR UPDATE SKIP LOCKED)
""")


async def find(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, RecordedCommand]:
    """Return the commands that are recorded under these ids."""
    rows = await connection.execute(FIND, {"ids": ids})
    return {command_id: RecordedCommand(digest, reply) for command_id, digest, reply in rows}


async def recorded(pool: ReadPool, command_id: UUID) -> Row | None:
    """Return ``digest``, ``reply`` (JSON text) and ``age`` (seconds) of an executed command, or None."""
    return await pool.fetch_one(RECORDED, command_id)


async def record(connection: AsyncConnection, commands: Sequence[ExecutedCommand]) -> int:
    """Record commands, whose ids are unique, and return the number of those that were not recorded before.

    Blocks while another transaction records one of them. If any was recorded before, roll the transaction back.
    """
    return (await connection.execute(RECORD, parameters(commands))).rowcount


def parameters(commands: Sequence[ExecutedCommand]) -> dict[str, Any]:
    """Return the parameters of ``INSERT``."""
    return _ROWS.parameters(commands)


async def prune(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to ``limit`` commands executed before ``before``, but none of ``kept_until_erased``.

    Return the number deleted.
    """
    return (await connection.execute(PRUNE, {"before": before, "limit": limit})).rowcount
