"""The positions of a primary, which reads from standbys are compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from taskherd.store import replication
from taskherd.store.read_pool import ReadPool


@pytest.fixture
async def primary(database_url: str) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers of a primary."""
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield pool
    await pool.close()


async def test_a_primary_tells_what_it_has_written(primary: ReadPool, database_url: str) -> None:
    """As a position and as PostgreSQL prints it, which rise with each write; it has replayed nothing."""
    connection = await asyncpg.connect(database_url, timeout=30)
    try:
        expected = await connection.fetchrow(
            "SELECT (SELECT system_identifier FROM pg_control_system()) AS cluster,"
            " (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,"
            " (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline"
        )
        before, lsn = await replication.written(primary), await replication.written_lsn(primary)
        await connection.execute("CREATE TABLE written (a int)")
        after = await replication.written(primary)
    finally:
        await connection.close(timeout=30)
    assert before is not None
    assert after is not None
    assert (before.database, before.timeline) == ((expected["cluster"], expected["database"]), expected["timeline"])
    assert (after.database, after.timeline) == (before.database, before.timeline)
    assert lsn is not None
    assert before.position <= (replication.parse_lsn(lsn) or 0) < after.position
    assert await replication.replayed(primary) is None
