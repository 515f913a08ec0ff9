"""What the doctor reads of a database: what a user may not do there, and how much is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain.value import replace
from taskherd.store import diagnostics, work_requests
from taskherd.store.diagnostics import PoolTemplates
from taskherd.store.engine import session_settings
from taskherd.store.tables import METADATA
from taskherd.store.task_creation import insert_tasks
from taskherd.store.work_requests import WorkRequestRow
from tests.store.conftest import NOW, task_row

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
    """Each table and function that it may not use is named with what is missing, in order; one that is gone is not."""
    await become_role(
        connection,
        "GRANT INSERT ON tasks TO doctor_test",
        "GRANT ALL ON inputs TO doctor_test",
        "REVOKE SELECT ON users FROM doctor_test",
        "DROP TABLE parked",
        "DROP FUNCTION taskherd_drop_partitions",
        "GRANT EXECUTE ON FUNCTION taskherd_add_partition TO doctor_test",
    )
    written = METADATA.tables.keys() - DIRECTORY - {"api_tokens", "inputs", "parked"}
    expected = dict.fromkeys(written, "DELETE, INSERT, UPDATE") | {"tasks": "DELETE, UPDATE", "users": "SELECT"}
    expected["taskherd_prune_tokens"] = "EXECUTE"
    assert await diagnostics.missing_privileges(connection) == tuple(
        f"{name} ({missing})" for name, missing in sorted(expected.items())
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


PEOPLE_AND_TEMPLATES = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{UUID(int=1)}', 'acme', '');
INSERT INTO users (id, username, name, email, avatar_url, active) VALUES
    ('{UUID(int=11)}', 'alice', '', '', '', true), ('{UUID(int=12)}', 'bob', '', '', '', true),
    ('{UUID(int=13)}', 'gone', '', '', '', false);
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id, active) VALUES
    ('{UUID(int=21)}', '{UUID(int=1)}', 'zeta', '', '', '{UUID(int=31)}', true),
    ('{UUID(int=22)}', '{UUID(int=1)}', 'alpha', '', '', '{UUID(int=32)}', true),
    ('{UUID(int=23)}', '{UUID(int=1)}', 'plain', '', '', '{UUID(int=33)}', true),
    ('{UUID(int=24)}', '{UUID(int=1)}', 'inactive', '', '', '{UUID(int=34)}', false),
    ('{UUID(int=25)}', '{UUID(int=1)}', 'without', '', '', '{UUID(int=35)}', true);
INSERT INTO template_versions (id, template_id, name, run, active) VALUES
    ('{UUID(int=31)}', '{UUID(int=21)}', 'v1', '{{"pool":"gpu"}}', true),
    ('{UUID(int=36)}', '{UUID(int=21)}', 'v0', '{{"pool":"old"}}', true),
    ('{UUID(int=32)}', '{UUID(int=22)}', 'v1', '{{"pool":"gpu"}}', true),
    ('{UUID(int=33)}', '{UUID(int=23)}', 'v1', '{{"pool":""}}', true),
    ('{UUID(int=34)}', '{UUID(int=24)}', 'v1', '{{"pool":"gpu"}}', true),
    ('{UUID(int=35)}', '{UUID(int=25)}', 'v1', '{{"pool":"none"}}', false);
"""


async def test_pools_have_the_templates_whose_tasks_they_run(connection: AsyncConnection) -> None:
    """Of active templates the active versions, by name; the inactive ones are not counted either."""
    for statement in PEOPLE_AND_TEMPLATES.split(";\n")[:-1]:
        await connection.exec_driver_sql(statement)
    default, gpu = PoolTemplates("any", ("plain",)), PoolTemplates("gpu", ("alpha", "zeta"))
    assert await diagnostics.template_pools(connection, "any", 9) == [default, gpu]
    assert await diagnostics.template_pools(connection, "any", 1) == [default]
    assert await diagnostics.template_pools(connection, "zz", 1) == [gpu]
    counts = await diagnostics.content_counts(connection)
    assert (counts.users, counts.templates, counts.unpublished) == (2, 4, 0)


async def test_open_requests_are_counted_by_their_target(connection: AsyncConnection) -> None:
    """By pool, runner and whether the pool gets them, too; those that wait for longest are first."""
    for statement in PEOPLE_AND_TEMPLATES.split(";\n")[:-1]:
        await connection.exec_driver_sql(statement)
    versions = {"gpu": 31, "": 33, "old": 36}
    rows = {pool: task_row() for pool in versions}
    rows = {
        pool: row._replace(task=replace(row.task, template_version_id=UUID(int=versions[pool])))
        for pool, row in rows.items()
    }
    await insert_tasks(connection, [*rows.values(), task_row()])
    requests = [
        WorkRequestRow(uuid4(), rows[pool].task.id, 1, kind, None, runner, 0, NOW - timedelta(minutes=age), NOW, None)
        for pool, kind, runner, age in (
            ("gpu", "workspace.start", None, 3),
            ("gpu", "workspace.stop", None, 5),
            ("gpu", "agent.input", "r1", 9),
            ("gpu", "workspace.stop", "r1", 1),
            ("", "agent.input", None, 7),
            ("old", "workspace.start", None, 4),
        )
    ]
    await work_requests.add(connection, requests)
    found = await diagnostics.open_requests(connection, "any", ["workspace.stop", "workspace.start"], 9)
    assert [(each.pool, each.runner, each.may_use_pool, each.tasks) for each in found] == [
        ("gpu", "r1", False, 1), ("any", None, False, 1), ("gpu", None, True, 1), ("old", None, True, 1),
        ("gpu", "r1", True, 1),
    ]  # fmt: skip
    assert [(NOW - each.since).seconds // 60 for each in found] == [9, 7, 5, 4, 1]
    assert await diagnostics.open_requests(connection, "any", ["workspace.stop", "workspace.start"], 2) == found[:2]


async def test_the_settings_in_force_are_those_of_this_session(connection: AsyncConnection) -> None:
    """All that each session must have, but those that PgBouncer sets; timeouts in milliseconds."""
    await connection.execute(text("SET LOCAL statement_timeout = '7s'"))
    settings = await diagnostics.session_settings_in_force(connection)
    assert settings.keys() == session_settings("").keys() - {"application_name", "timezone"}
    assert (settings["statement_timeout"], settings["jit"]) == ("7000", "off")
