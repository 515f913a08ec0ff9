"""Single reading statements: what they return, and what becomes of their connection when they fail."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from taskherd.errors import Misconfigured, Unavailable
from taskherd.store.engine import DataError, StatementTimeout
from taskherd.store.read_pool import ReadPool
from tests.harness.databases import with_database

PROCESS = "SELECT pg_backend_pid() AS pid"
SLEEPS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database())"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[ReadPool]:
    """Yield a pool of one connection."""
    opened = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield opened
    await opened.close()


async def test_rows_are_returned_in_order(pool: ReadPool) -> None:
    """All of them, or the first one if there is one; nothing is in use afterwards."""
    assert pool.in_use == 0
    numbers = "SELECT n, $1::int * n FROM generate_series(1, $2::int) AS n"
    assert [tuple(row) for row in await pool.fetch(numbers, 10, 3)] == [(1, 10), (2, 20), (3, 30)]
    assert tuple(await pool.fetch_one(numbers, 7, 2) or ()) == (1, 7)
    assert await pool.fetch_one(numbers, 7, 0) is None
    waiting = asyncio.create_task(pool.fetch("SELECT pg_sleep(0.2)"))
    await asyncio.sleep(0)
    assert pool.in_use == 1
    await waiting
    assert pool.in_use == 0


async def test_a_connection_is_used_again_after_a_rejected_value(pool: ReadPool) -> None:
    """The server has answered; so it has if there is no such table, which is what a missing schema looks like."""
    first = await pool.fetch_one(PROCESS)
    with pytest.raises(DataError, match="22P02"):
        await pool.fetch("SELECT CAST($1::text AS int)", "x")
    with pytest.raises(Unavailable, match=r"^the database has no taskherd schema, or an older one$"):
        await pool.fetch("SELECT * FROM no_such_table")
    assert await pool.fetch_one(PROCESS) == first


async def test_a_connection_whose_answer_is_missing_is_not_used_again(database_url: str) -> None:
    """As that of a statement that takes too long for its caller, who does not wait longer."""
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests", command_timeout=3)
    try:
        first = await pool.fetch_one(PROCESS)
        async with asyncio.timeout(50):
            with pytest.raises(Unavailable, match=r"^no answer in time$") as raised:
                await pool.fetch("SELECT pg_sleep(60)")
        assert not isinstance(raised.value, StatementTimeout)
        assert pool.in_use == 0
        assert await pool.fetch_one(PROCESS) != first
    finally:
        await pool.close()


async def test_a_connection_whose_statement_was_canceled_is_not_used_again(pool: ReadPool, database_url: str) -> None:
    """Its answer may still come, which nobody would expect."""
    first = await pool.fetch_one(PROCESS)
    canceled = asyncio.create_task(pool.fetch("SELECT pg_sleep(50)"))
    observer = await asyncpg.connect(database_url, timeout=30)
    try:
        while not await observer.fetchval(SLEEPS):
            assert not canceled.done()
    finally:
        await observer.close(timeout=30)
    canceled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await canceled
    assert pool.in_use == 0
    assert await pool.fetch_one(PROCESS) != first


async def test_a_closed_pool_connects_again(pool: ReadPool) -> None:
    """With another connection, since the first one is closed."""
    first = await pool.fetch_one(PROCESS)
    await pool.close()
    assert pool.in_use == 0
    second = await pool.fetch_one(PROCESS)
    assert first != second


async def test_a_statement_that_was_prepared_before_a_migration_is_prepared_again(
    pool: ReadPool, database_url: str
) -> None:
    """The caller does not notice."""
    owner = await asyncpg.connect(database_url, timeout=30)
    try:
        await owner.execute("CREATE TABLE migrated (a int); INSERT INTO migrated VALUES (7)")
        assert await pool.fetch_one("SELECT * FROM migrated") == (7,)
        await owner.execute("ALTER TABLE migrated ALTER a TYPE text")
        assert await pool.fetch_one("SELECT * FROM migrated") == ("7",)
    finally:
        await owner.close(timeout=30)


@pytest.mark.parametrize(("setting", "of_standby"), [("database_url", False), ("database_read_url", True)])
async def test_a_user_without_privileges_is_a_misconfiguration(
    database_url: str,
    setting: str,
    of_standby: bool,  # noqa: FBT001 - a parameter
) -> None:
    """It names the setting of the URL, and what grants them."""
    role = f"nothing_{uuid.uuid4().hex[:8]}"
    owner = await asyncpg.connect(database_url, timeout=30)
    url = urlunsplit(
        urlsplit(database_url)._replace(netloc=f"{role}:x@{urlsplit(database_url).netloc.rpartition('@')[2]}")
    )
    pool = ReadPool(url, size=1, application_name="taskherd-tests", of_standby=of_standby)
    try:
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        expected = rf"^{setting}: permission denied for table tasks; expected .*deploy/postgres/grants\.sql$"
        with pytest.raises(Misconfigured, match=expected):
            await pool.fetch("SELECT * FROM tasks")
        assert await pool.fetch_one("SELECT 5") == (5,)
    finally:
        await pool.close()
        await owner.execute(f"DROP ROLE {role}")
        await owner.close(timeout=30)


async def test_a_database_that_does_not_exist_yet_is_an_outage(database_url: str) -> None:
    """It may be created soon."""
    pool = ReadPool(with_database(database_url, "no_such_database"), size=1, application_name="taskherd-tests")
    with pytest.raises(Unavailable):
        await pool.fetch("SELECT 1")
    assert pool.in_use == 0
