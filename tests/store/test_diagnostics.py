"""What the doctor reads of a database: what a user may not do there, and how much is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import diagnostics
from taskherd.store.tables import METADATA

DIRECTORY = {
    "organizations", "users", "memberships", "templates", "template_versions", "presets", "runners",
    "directory_revision",
}  # fmt: skip


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection whose transaction is rolled back, and with it the roles that the test creates."""
    async with engine.connect() as opened:  # which commits each statement by itself
        await opened.execute(text("BEGIN"))
        yield opened
        await opened.execute(text("ROLLBACK"))


async def become_role(connection: AsyncConnection, *grants: str) -> None:
    """Go on as a new user who may read everything, after these statements."""
    await connection.execute(text("CREATE ROLE doctor_test"))
    await connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctor_test"))
    for grant in grants:
        await connection.execute(text(grant))
    await connection.execute(text("SET LOCAL ROLE doctor_test"))


async def test_a_worker_writes_all_but_the_directory(connection: AsyncConnection) -> None:
    """Each table that it may not write is named with what is missing, in order; one that does not exist is not."""
    await become_role(
        connection,
        "GRANT INSERT ON tasks TO doctor_test",
        "GRANT ALL ON inputs TO doctor_test",
        "REVOKE SELECT ON users FROM doctor_test",
        "DROP TABLE parked",
    )
    written = METADATA.tables.keys() - DIRECTORY - {"api_tokens", "inputs", "parked"}
    expected = dict.fromkeys(written, "DELETE, INSERT, UPDATE") | {"tasks": "DELETE, UPDATE", "users": "SELECT"}
    assert await diagnostics.missing_privileges(connection) == tuple(
        f"{table} ({missing})" for table, missing in sorted(expected.items())
    )


async def test_an_api_reads_everything_and_writes_its_actions_and_the_uses_of_tokens(
    connection: AsyncConnection,
) -> None:
    """What is missing is named in order; a table that does not exist is another problem."""
    await become_role(
        connection,
        "GRANT INSERT ON task_actions TO doctor_test",
        "REVOKE SELECT ON users FROM doctor_test",
        "REVOKE SELECT ON inputs FROM doctor_test",
        "DROP TABLE parked",
    )
    assert await diagnostics.missing_privileges_of_api(connection) == (
        "api_tokens (UPDATE of last_used_at)",
        "inputs (SELECT)",
        "task_action_tasks (INSERT, UPDATE)",
        "task_actions (UPDATE)",
        "users (SELECT)",
    )
    await connection.execute(text("RESET ROLE"))
    for change in (
        "GRANT SELECT ON users, inputs TO doctor_test",
        "GRANT INSERT, UPDATE ON task_actions TO doctor_test",
        "GRANT UPDATE (last_used_at) ON api_tokens TO doctor_test",
        "DROP TABLE task_action_tasks",
        "SET LOCAL ROLE doctor_test",
    ):
        await connection.execute(text(change))
    assert await diagnostics.missing_privileges_of_api(connection) == ()


async def test_without_a_schema_no_privilege_is_missing(connection: AsyncConnection) -> None:
    """There is nothing that it could be missing for."""
    await connection.execute(text("CREATE SCHEMA empty"))
    await connection.execute(text("SET LOCAL search_path = empty"))
    assert await diagnostics.missing_privileges(connection) == ()
    assert await diagnostics.missing_privileges_of_api(connection) == ()


async def test_a_server_may_accept_only_reads(connection: AsyncConnection) -> None:
    """By its settings, though it is no standby."""
    server = await diagnostics.server_info(connection)
    assert (server.read_only, server.version.startswith(str(server.major))) == (False, True)
    await connection.execute(text("SET LOCAL default_transaction_read_only = on"))
    assert (await diagnostics.server_info(connection)).read_only


async def test_the_oldest_unpublished_event_has_an_age(connection: AsyncConnection) -> None:
    """In seconds, whatever came after it; without any it is 0."""
    assert (await diagnostics.content_counts(connection)).oldest == 0
    for minutes in (1, 5, 2):
        await connection.execute(
            text("INSERT INTO outbox VALUES (gen_random_uuid(), 1, clock_timestamp() - make_interval(mins => :ago))"),
            {"ago": minutes},
        )
    counts = await diagnostics.content_counts(connection)
    assert counts.unpublished == 3
    assert 300 <= counts.oldest < 1_000
