"""Executed commands and their replies, so that a repeated command changes nothing and gets the same reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.read_pool import ReadPool, Row


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """A command executed earlier: the digest of its body, and its reply as JSON text."""

    digest: bytes
    reply: str


REGISTER: Final = text("""
INSERT INTO command_log (command_id, task_id, digest, created_at)
SELECT command_id, task_id, digest, :now
FROM unnest(CAST(:id AS uuid[]), CAST(:task_id AS uuid[]), CAST(:digest AS bytea[])) AS c(command_id, task_id, digest)
ORDER BY command_id
ON CONFLICT (command_id) DO NOTHING
RETURNING command_id
""")

FIND: Final = text("""
SELECT command_id, digest, CAST(reply AS text) FROM command_log WHERE command_id = ANY(CAST(:ids AS uuid[]))
""")

# For ``ReadPool``: which of these ids are taken by commands that were executed.
EXECUTED: Final = "SELECT command_id FROM command_log WHERE command_id = ANY($1)"

RECORDED: Final = """
SELECT digest, CAST(reply AS text) AS reply, CAST(extract(epoch FROM now() - created_at) AS float8) AS age
FROM command_log WHERE command_id = $1 AND reply IS NOT NULL
"""

RECORD: Final = text("""
UPDATE command_log AS c SET reply = CAST(r.reply AS json)
FROM unnest(CAST(:id AS uuid[]), CAST(:reply AS text[])) AS r(command_id, reply)
WHERE c.command_id = r.command_id
""")

PRUNE: Final = text("""
DELETE FROM command_log WHERE command_id IN (
    SELECT command_id FROM command_log WHERE created_at < :before ORDER BY created_at LIMIT :limit
    FOR UPDATE SKIP LOCKED)
""")


async def register(
    connection: AsyncConnection, commands: Sequence[tuple[UUID, UUID, bytes]], now: datetime
) -> dict[UUID, RecordedCommand]:
    """Register (command id, task id, digest) triples, and return the commands executed earlier, with their replies.

    The command ids are unique. Blocks while another transaction holds one of them. Each command registered here must
    get its reply by ``record`` in the same transaction.
    """
    values = {
        "id": [command_id for command_id, _, _ in commands],
        "task_id": [task_id for _, task_id, _ in commands],
        "digest": [digest for _, _, digest in commands],
        "now": now,
    }
    registered = {command_id for (command_id,) in await connection.execute(REGISTER, values)}
    earlier = [command_id for command_id, _, _ in commands if command_id not in registered]
    return await find(connection, earlier) if earlier else {}


async def find(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, RecordedCommand]:
    """Return the commands that are recorded under these ids."""
    rows = await connection.execute(FIND, {"ids": ids})
    return {command_id: RecordedCommand(digest, reply) for command_id, digest, reply in rows}


async def recorded(pool: ReadPool, command_id: UUID) -> Row | None:
    """Return ``digest``, ``reply`` (JSON text) and ``age`` (seconds) of an executed command, or None."""
    return await pool.fetch_one(RECORDED, command_id)


async def record(connection: AsyncConnection, replies: Sequence[tuple[UUID, str]]) -> None:
    """Store the replies, as JSON text, of commands registered in this transaction."""
    values = {"id": [command_id for command_id, _ in replies], "reply": [reply for _, reply in replies]}
    await connection.execute(RECORD, values)


async def prune(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to ``limit`` commands executed before ``before`` and return the number deleted."""
    return (await connection.execute(PRUNE, {"before": before, "limit": limit})).rowcount
