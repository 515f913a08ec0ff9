"""Scripts of grants, executed as the user of a URL: whole or not at all."""

from __future__ import annotations

import asyncpg
import pytest

from taskherd.errors import Misconfigured, Unavailable
from taskherd.store import grants, role_settings
from taskherd.store.engine import session_settings


async def tables(database_url: str) -> list[str]:
    """Return which of the tables of these tests exist."""
    connection = await asyncpg.connect(database_url, timeout=30)
    try:
        found = await connection.fetch("SELECT relname FROM pg_class WHERE relname LIKE 'granted%' ORDER BY 1")
    finally:
        await connection.close(timeout=30)
    return [row["relname"] for row in found]


async def test_a_script_is_executed_whole_or_not_at_all(database_url: str) -> None:
    """A statement that fails undoes those before it, and says what the database said."""
    await grants.apply(database_url, "CREATE TABLE granted_a (id int); GRANT SELECT ON granted_a TO public;")
    assert await tables(database_url) == ["granted_a"]
    with pytest.raises(Unavailable, match=r"granted_none"):
        await grants.apply(database_url, "CREATE TABLE granted_b (id int); GRANT SELECT ON granted_none TO public;")
    assert await tables(database_url) == ["granted_a"]


async def test_a_missing_role_names_the_script_that_creates_it(database_url: str) -> None:
    """The roles come before the grants, and an administrator has to create them."""
    expected = r"^database_url: .*nobody_here.*create the roles with deploy/postgres/roles\.sql"
    with pytest.raises(Misconfigured, match=expected):
        await grants.apply(database_url, "CREATE TABLE granted_c (id int); GRANT SELECT ON granted_c TO nobody_here;")
    assert await tables(database_url) == []


@pytest.mark.parametrize(
    "use", [role_settings.statements, role_settings.apply, lambda url: grants.apply(url, "SELECT 1")]
)
async def test_a_database_that_is_away_is_an_outage(use: object) -> None:
    """Neither a bug nor a misconfiguration."""
    assert callable(use)
    with pytest.raises(Unavailable):
        await use("postgresql://taskherd@127.0.0.1:1/none")


async def test_the_settings_of_a_role_are_printed_or_applied(database_url: str) -> None:
    """Both return the statements; only applying them changes sessions that begin later, in this database alone."""

    async def shown() -> dict[str, str]:
        connection = await asyncpg.connect(database_url, timeout=30)
        try:
            rows = await connection.fetch("SELECT name, setting FROM pg_settings")
            return {row["name"]: row["setting"] for row in rows if row["name"] in expected}
        finally:
            await connection.close(timeout=30)

    wanted = session_settings("any")
    expected = {name: value for name, value in wanted.items() if name not in {"application_name", "timezone"}}
    printed = await role_settings.statements(database_url)
    assert len(printed) == len(expected)
    database = database_url.rpartition("/")[2]
    for statement, (name, value) in zip(printed, expected.items(), strict=True):
        assert statement.startswith('ALTER ROLE "')
        assert statement.endswith(f'" IN DATABASE "{database}" SET {name} = \'{value}\'')
    applied = {name: value.removesuffix("ms") for name, value in expected.items()}
    assert await shown() != applied
    assert await role_settings.apply(database_url) == printed
    assert await shown() == applied
