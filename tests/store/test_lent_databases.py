"""The databases of tests: what one test leaves never reaches the next."""

from __future__ import annotations

import asyncpg
import pytest

from tests.harness.databases import Databases, connected, execute

OID = "SELECT oid FROM pg_database WHERE datname = current_database()"
ORGANIZATIONS = """
INSERT INTO organizations (id, name, display_name)
SELECT gen_random_uuid(), 'org-' || n, '' FROM generate_series(1, {}) n
"""


@pytest.mark.parametrize("rows", [1, 20_000], ids=["a few rows", "many rows"])
async def test_a_database_is_emptied_and_lent_again(databases: Databases, rows: int) -> None:
    """Rows, positions of sequences and connections are gone; rows that the migration made are back; the name is new."""
    async with databases.lend() as first, connected(first) as left_open:
        oid = await left_open.fetchval(OID)
        await left_open.execute(ORGANIZATIONS.format(rows))
        await left_open.execute("UPDATE directory_revision SET revision = 7; SELECT nextval('task_feed_position')")
    async with databases.lend() as second, connected(second) as connection:
        assert second != first
        assert await connection.fetchval(OID) == oid
        assert await connection.fetchval("SELECT count(*) FROM organizations") == 0
        assert await connection.fetchval("SELECT revision FROM directory_revision") == 0
        assert await connection.fetchval("SELECT nextval('task_feed_position')") == 1
        assert await connection.fetchval("SELECT count(*) FROM taskherd_schema") == 1


async def test_connections_that_a_test_left_are_closed(databases: Databases) -> None:
    """A statement of an earlier test cannot write into the next one's database."""
    async with databases.lend() as url:
        left_open = await asyncpg.connect(url, timeout=30, command_timeout=30)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
        await left_open.execute(ORGANIZATIONS.format(1))
    left_open.terminate()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (id int)",
        "DROP INDEX task_feed_task_idx",
        "ALTER TABLE tasks ADD extra int",
        "ALTER TABLE tasks SET (fillfactor = 50)",
        "ALTER TABLE memberships DROP CONSTRAINT memberships_user_id_fkey",
        "ALTER TABLE tasks ALTER status DROP NOT NULL",
        "GRANT SELECT ON tasks TO PUBLIC",
        "CREATE FUNCTION extra() RETURNS int LANGUAGE sql RETURN 1",
        "ALTER TABLE memberships DISABLE TRIGGER ALL",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 1', current_database()); END $$",
        "ANALYZE organizations",
    ],
)
async def test_a_database_with_another_schema_is_not_lent_again(databases: Databases, statement: str) -> None:
    """A test may change anything in its database."""
    async with databases.lend() as changed:
        async with connected(changed) as connection:
            oid = await connection.fetchval(OID)
        await execute(changed, statement)
    async with databases.lend() as following, connected(following) as connection:
        assert await connection.fetchval(OID) != oid


async def test_a_database_that_a_test_dropped_is_replaced(databases: Databases) -> None:
    """A test may also remove its database."""
    async with databases.lend() as url:
        name = url.rpartition("/")[2]
        await execute(url.replace(name, "postgres"), f'DROP DATABASE "{name}" WITH (FORCE)')
    async with databases.lend() as following, connected(following) as connection:
        assert await connection.fetchval("SELECT count(*) FROM taskherd_schema") == 1


async def test_a_database_that_is_in_use_again_is_replaced(databases: Databases) -> None:
    """What an earlier test left running may connect again before the next one begins."""
    async with databases.lend() as url:
        pass
    async with connected(url) as returned, databases.lend() as following:
        assert following != url
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await returned.execute(ORGANIZATIONS.format(1))
        async with connected(following) as connection:
            assert await connection.fetchval("SELECT count(*) FROM organizations") == 0
