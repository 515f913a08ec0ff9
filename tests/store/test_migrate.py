from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.builds import initial_state
from taskherd.domain.fold import fold
from taskherd.domain.lease import Lease
from taskherd.domain.reports import AgentExit, ExitReason, JobStatus, Transition, WorkspaceBuild
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.messages.document import core_document
from taskherd.store import leases, migrate, task_state_codec, tasks
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.tables import METADATA, SCHEMA_VERSION_TABLE
from tests.harness.chaos import until
from tests.harness.task_index import index_violations
from tests.store.conftest import NOW, task_row


@pytest.fixture
async def empty_url(database_url: str) -> AsyncIterator[str]:
    """Yield the URL of a database without a schema."""
    name = f"taskherd_empty_{uuid.uuid4().hex[:8]}"
    connection = await asyncpg.connect(database_url, timeout=30)
    await connection.execute(f'CREATE DATABASE "{name}"')
    yield urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close(timeout=30)


async def test_concurrent_workers_migrate_once(empty_url: str) -> None:
    """Ten processes that migrate at the same time create the schema once, and each of them finds it current."""
    states = await asyncio.gather(*(migrate.upgrade_async(empty_url) for _ in range(10)))
    assert {state.status for state in states} == {migrate.SchemaStatus.CURRENT}
    engine = open_engine(empty_url, size=1, application_name="taskherd-tests")
    async with transaction(engine) as connection:
        count = (await connection.execute(text(f"SELECT count(*) FROM {SCHEMA_VERSION_TABLE}"))).scalar_one()
    await dispose(engine)
    assert count == 1


async def test_upgrade_works_inside_a_running_event_loop(empty_url: str) -> None:
    """The blocking call works while an event loop runs in the calling thread."""
    assert migrate.upgrade(empty_url).status is migrate.SchemaStatus.CURRENT


async def test_migrations_add_up_to_the_tables(engine: AsyncEngine) -> None:
    """The migrations create exactly the tables, columns, indexes and comments that ``tables`` declares."""

    def compare(connection: Connection) -> list[object]:
        def is_declared(_item: object, name: str | None, kind: str, _reflected: object, _compared: object) -> bool:
            return kind != "table" or name is None or ("_p2" not in name and not name.endswith("_default"))

        options = {"version_table": SCHEMA_VERSION_TABLE, "include_object": is_declared, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []


async def test_check_rejects_a_schema_that_is_not_current(engine: AsyncEngine, empty_url: str) -> None:
    """A missing schema, and one newer than this release, are rejected with the command to run."""
    async with transaction(engine) as connection:
        await migrate.check(connection)
    empty = await migrate.current_async(empty_url)
    assert (empty.status, "taskherd db upgrade" in empty.advice) == (migrate.SchemaStatus.MISSING, True)
    async with transaction(engine) as connection:
        await connection.execute(text(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'"))
        with pytest.raises(Misconfigured, match="newer"):
            await migrate.check(connection)


async def test_upgrade_never_touches_a_newer_schema(database_url: str, engine: AsyncEngine) -> None:
    """An old release that starts after a new one does not change the schema."""
    async with transaction(engine) as connection:
        await connection.execute(text(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(Misconfigured):
        await migrate.upgrade_async(database_url)


async def test_a_revision_that_does_not_exist_changes_nothing(empty_url: str) -> None:
    """The error says where to find one that does."""
    with pytest.raises(Misconfigured, match=r"'9999'.*taskherd db current"):
        await migrate.upgrade_async(empty_url, "9999")
    assert (await migrate.current_async(empty_url)).status is migrate.SchemaStatus.MISSING


async def test_a_current_schema_is_only_read(database_url: str, engine: AsyncEngine) -> None:
    """A process that may not change the schema accepts a current one; for another the error names who must migrate."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    url = urlunsplit(
        urlsplit(database_url)._replace(netloc=f"{role}:x@{urlsplit(database_url).netloc.rpartition('@')[2]}")
    )
    async with transaction(engine) as connection:
        await connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
        await connection.execute(text(f"GRANT SELECT ON {SCHEMA_VERSION_TABLE} TO {role}"))
    try:
        assert (await migrate.ensure_async(url, upgrading=True)).status is migrate.SchemaStatus.CURRENT
        async with transaction(engine) as connection:
            await connection.execute(text(f"DELETE FROM {SCHEMA_VERSION_TABLE}"))
        with pytest.raises(Misconfigured, match="owns the tables"):
            await migrate.ensure_async(url, upgrading=True)
    finally:
        async with transaction(engine) as connection:
            await connection.execute(text(f"DROP OWNED BY {role}"))
            await connection.execute(text(f"DROP ROLE {role}"))


async def test_a_process_that_may_not_migrate_rejects_an_old_schema(empty_url: str) -> None:
    """With ``TASKHERD_MIGRATE=never`` a missing or old schema is rejected with the command to run, and not changed."""
    with pytest.raises(Misconfigured, match="taskherd db upgrade"):
        await migrate.ensure_async(empty_url, upgrading=False)
    assert (await migrate.current_async(empty_url)).status is migrate.SchemaStatus.MISSING
    assert (await migrate.ensure_async(empty_url, upgrading=True)).status is migrate.SchemaStatus.CURRENT


async def test_a_schema_that_is_not_taskherds_is_an_error(empty_url: str) -> None:
    """Other tables of the same name are neither taken for its own nor for a lack of privileges."""
    connection = await asyncpg.connect(empty_url, timeout=30)
    await connection.execute("CREATE TABLE organizations (id int); CREATE TABLE tasks (id int)")
    await connection.close(timeout=30)
    with pytest.raises(DBAPIError, match="already exists"):
        await migrate.ensure_async(empty_url, upgrading=True)


def insert_task(revision: str) -> str:
    """Return the statement that a release with the schema ``revision`` inserts a task (id, name, state) with."""
    return f"""
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name, created_at,
                   version, updated_at, status, document, {"memory" if revision < "0003" else "state"}, prompt_version)
VALUES ($1, $1, $1, $1, $1, $2, $2, now(), 1, now(), 'pending', '{{}}', $3, 1)
"""


CHANGE_TASK = """
WITH changed AS (
    UPDATE tasks SET version = version + 1, updated_at = clock_timestamp() WHERE id = $1
    RETURNING id, version, updated_at
), history AS (
    INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
    SELECT id, version, updated_at, 'updated', '{}', '{}', '{}', 1 FROM changed
)
INSERT INTO outbox (task_id, version, occurred_at) SELECT id, version, updated_at FROM changed
"""
READ_DIRECTORY = "SELECT count(*) FROM users LEFT JOIN memberships ON user_id = id"
MAX_PAUSE = 5.0
"""Seconds that a write may wait for the migration, which waits two seconds for a lock before it gives way."""


async def test_renamed_columns_keep_their_values(empty_url: str) -> None:
    """State and last heartbeat that were stored under the old column names are read under the new ones."""
    await migrate.upgrade_async(empty_url, "0002")
    row = task_row()
    encoded = row.encoded_state
    connection = await asyncpg.connect(empty_url, timeout=30)
    task = row.task.id
    await connection.execute(insert_task("0002"), task, "kept", encoded)
    await connection.execute("INSERT INTO task_prompts (task_id, version, prompt) VALUES ($1, 1, 'Do it.')", task)
    await connection.execute("INSERT INTO leases VALUES ($1, 1, NULL, 5, NULL, $2)", task, NOW)
    await connection.close(timeout=30)
    await migrate.upgrade_async(empty_url)
    engine = open_engine(empty_url, size=1, application_name="taskherd-tests")
    async with transaction(engine) as connection:
        (stored,) = await tasks.lock(connection, [task])
        (lease,) = await leases.lock(connection, [task])
    await dispose(engine)
    assert stored.task.state == row.task.state
    assert lease == Lease(task, 1, None, 5, None, NOW)


FIRST_TEMPLATE = """
INSERT INTO organizations (id, name, display_name) VALUES ($1, 'acme', '');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
VALUES ($1, $1, 'claude', '', '', $1);
INSERT INTO template_versions (id, template_id, name, run) VALUES ($1, $1, 'v1', '{"pool": "gpu"}');
"""


async def test_tasks_of_earlier_releases_are_listed_and_counted(empty_url: str) -> None:
    """The index and the totals have every live task as its document says, with the runner that its state names.

    One whose agent ended without a record of how is lost.
    """
    await migrate.upgrade_async(empty_url, "0010")
    connection = await asyncpg.connect(empty_url, timeout=30)
    template = uuid.uuid4()
    await connection.execute(FIRST_TEMPLATE.replace("$1", f"'{template}'"))
    base = replace(task_row().task, template_version_id=template, template_id=template, organization_id=template)
    expected = {}
    builds = ((JobStatus.RUNNING, "rack-1"), (JobStatus.FAILED, None), (JobStatus.SUCCEEDED, "rack-2"))
    lost = uuid.uuid4()
    for number, (job, runner) in enumerate(builds):
        task_id = lost if job is JobStatus.SUCCEEDED else uuid.uuid4()
        report = WorkspaceBuild(
            task_id=task_id, build_number=1, seq=1, transition=Transition.START, job_status=job, runner=runner
        )
        state = fold(initial_state(task_id, NOW), report, NOW).state
        if task_id == lost:
            vanished = AgentExit(task_id=task_id, build_number=1, seq=2, why=ExitReason.LOST)
            state = fold(state, vanished, NOW).state
        task = replace(base, id=task_id, name=f"task-{number}", state=state)
        document = orjson.dumps(core_document(derive_view(state, task.name), task)).decode()
        await connection.execute(
            """
            INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name,
                               created_at, version, updated_at, status, document, state, prompt_version)
            VALUES ($1, $2, $3, $3, $3, $4, '', $5, 1, $5, $6, $7, $8, 1)
            """,
            *(task_id, task.owner_id, template, task.name, NOW),
            *(derive_view(state, task.name).status.value, document, task_state_codec.dumps(state)),
        )
        expected[task_id] = ["", *([f"runner:{runner}"] if runner else [])]
    await migrate.upgrade_async(empty_url)
    try:
        assert await index_violations(connection) == []
        rows = await connection.fetch("SELECT task_id, array_agg(term ORDER BY term) FROM task_index GROUP BY task_id")
        assert {row[0]: row[1] for row in rows} == expected
        assert await connection.fetch("SELECT task_id, health, terms FROM task_index_changes") == [
            (lost, "lost", '["runner:rack-2"]')
        ]
    finally:
        await connection.close(timeout=30)


OPEN_FUNCTIONS = """
SELECT f.proname FROM pg_proc AS f
WHERE f.prosecdef AND f.pronamespace = 'public'::regnamespace
  AND (has_function_privilege('public', f.oid, 'EXECUTE') OR f.proconfig IS DISTINCT FROM $1)
"""


async def test_functions_with_the_rights_of_their_owner_are_closed(database_url: str) -> None:
    """Only whom it was granted may call one, and none looks names up where its caller likes."""
    connection = await asyncpg.connect(database_url, timeout=30)
    try:
        functions = await connection.fetch("SELECT proname FROM pg_proc WHERE prosecdef")
        assert {row[0] for row in functions} == {
            "taskherd_add_partition", "taskherd_drop_partitions", "taskherd_prune_tokens",
        }  # fmt: skip
        assert await connection.fetch(OPEN_FUNCTIONS, ["search_path=public, pg_temp"]) == []
    finally:
        await connection.close(timeout=30)


async def test_who_may_drop_partitions_may_prune_tokens(empty_url: str) -> None:
    """After the migration alone, without ``grants.sql``; nobody else may."""
    await migrate.upgrade_async(empty_url, "0021")
    worker, other = (f"{name}_{uuid.uuid4().hex[:8]}" for name in ('Worker "1"', "other"))
    quoted = worker.replace('"', '""')
    connection = await asyncpg.connect(empty_url, timeout=30)
    try:
        await connection.execute(f'CREATE ROLE "{quoted}"; CREATE ROLE {other}')
        await connection.execute(
            f'GRANT EXECUTE ON FUNCTION taskherd_drop_partitions(text, date) TO "{quoted}" WITH GRANT OPTION'
        )
        await migrate.upgrade_async(empty_url, "0022")
        rows = await connection.fetch(
            "SELECT has_function_privilege(name, 'taskherd_prune_tokens(timestamptz, integer)', 'EXECUTE')"
            " FROM unnest($1::text[]) WITH ORDINALITY AS roles(name, n) ORDER BY n",
            [worker, other],
        )
        assert [row[0] for row in rows] == [True, False]
        await connection.execute(f'SET ROLE "{quoted}"')
        assert await connection.fetchval("SELECT taskherd_prune_tokens(now(), 1)") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM api_tokens")
    finally:
        await connection.execute("RESET ROLE")
        for role in (f'"{quoted}"', other):
            await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close(timeout=30)


def test_the_revisions_are_those_of_alembic() -> None:
    """The revisions that are read from the names of files, without Alembic, are one line that ends at its head."""
    directory = ScriptDirectory.from_config(migrate.alembic_config())
    assert migrate.revisions() == [script.revision for script in directory.walk_revisions()][::-1]
    assert migrate.revisions()[-1] == directory.get_current_head()


async def test_the_previous_release_is_migrated_while_it_runs(empty_url: str) -> None:
    """While the newest revision is applied, a worker's writes neither fail nor get lost."""
    directory = ScriptDirectory.from_config(migrate.alembic_config())
    head = directory.get_revision("head")
    before = head.down_revision if isinstance(head.down_revision, str) else head.revision
    await migrate.upgrade_async(empty_url, before)
    pool = await asyncpg.create_pool(empty_url, min_size=4, max_size=4, command_timeout=30)
    ids = [uuid.uuid4() for _ in range(20)]
    for number, task in enumerate(ids):
        await pool.execute(insert_task(before), task, f"task-{number}", "{}")
    migrated = asyncio.Event()

    async def work(worker: int) -> int:
        done = 0
        while not migrated.is_set() or done < 50:
            started = monotonic()
            await pool.execute(CHANGE_TASK, ids[(done * 4 + worker) % len(ids)])
            await pool.fetch(READ_DIRECTORY)
            assert monotonic() - started < MAX_PAUSE
            done += 1
        return done

    working = [asyncio.create_task(work(worker)) for worker in range(4)]
    state = await migrate.upgrade_async(empty_url)
    migrated.set()
    changes = sum(await asyncio.gather(*working))
    assert state.status is migrate.SchemaStatus.CURRENT
    assert await pool.fetchval("SELECT sum(version) - count(*) FROM tasks") == changes
    assert await pool.fetchval("SELECT count(*) FROM task_events") == changes
    await asyncio.wait_for(pool.close(), 10)


async def test_a_schema_of_an_earlier_or_a_later_release_says_what_to_do(engine: AsyncEngine) -> None:
    """To migrate, or to install a later release; a process that is running goes on with a later schema."""
    head, before = migrate.revisions()[-1], migrate.revisions()[-2]
    old = f"The schema is at {before}, this release needs {head}: run `taskherd db upgrade`."
    new = (
        f"The schema is at 9999, which this release (needing {head}) does not know: "
        "install the taskherd release that made it, or a newer one."
    )
    missing = "The database has no taskherd schema: run `taskherd db upgrade`."

    async def become(statement: str) -> migrate.SchemaState:
        async with transaction(engine) as connection:
            await connection.execute(text(statement))
            return await migrate.state(connection)

    assert await become("SELECT 1") == migrate.SchemaState(head, head, migrate.SchemaStatus.CURRENT)
    assert (await migrate.lacking(engine), await migrate.newer(engine)) == (None, None)
    state = await become(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '{before}'")
    assert state == migrate.SchemaState(before, head, migrate.SchemaStatus.OLD)
    assert (await migrate.lacking(engine), await migrate.newer(engine)) == (old, None)
    state = await become(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'")
    assert state == migrate.SchemaState("9999", head, migrate.SchemaStatus.NEW)
    assert (await migrate.lacking(engine), await migrate.newer(engine)) == (None, new)
    state = await become(f"DELETE FROM {SCHEMA_VERSION_TABLE}")
    assert state == migrate.SchemaState(None, head, migrate.SchemaStatus.MISSING)
    assert (await migrate.lacking(engine), await migrate.newer(engine)) == (missing, None)
    async with transaction(engine) as connection:
        with pytest.raises(Misconfigured, match=r"^database_url: The database has no taskherd schema"):
            await migrate.check(connection)


async def test_a_schema_of_a_later_release_is_not_accepted_at_start(database_url: str, engine: AsyncEngine) -> None:
    """Whether the process may migrate or not: it could not make it older."""
    async with transaction(engine) as connection:
        await connection.execute(text(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'"))
    for upgrading in (True, False):
        with pytest.raises(Misconfigured, match=r"^database_url: The schema is at 9999, which .* does not know"):
            await migrate.ensure_async(database_url, upgrading=upgrading)
    assert (await asyncio.to_thread(migrate.current, database_url)).actual == "9999"


class Delays:
    """No delay between attempts; instead something is done."""

    def __init__(self, connection: asyncpg.Connection, free_at: int) -> None:
        self.attempts: list[int] = []
        self._connection = connection
        self._free_at = free_at

    def delay(self, attempt: int) -> float:
        """Unlock the table after some attempts."""
        self.attempts.append(attempt)
        if attempt == self._free_at:
            self._connection.terminate()
        return 0.0


@pytest.mark.parametrize(("free_at", "attempts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3])])
async def test_a_migration_that_cannot_lock_is_tried_again(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, free_at: int, attempts: list[int]
) -> None:
    """A few times, after a delay each; the last failure is raised."""
    await migrate.upgrade_async(empty_url, "0020")
    locking = await asyncpg.connect(empty_url, timeout=30)
    delays = Delays(locking, free_at)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 0.2 if free_at > 3 else 1.0)
    monkeypatch.setattr(migrate, "ATTEMPTS", 4)
    monkeypatch.setattr(migrate, "BACKOFF", delays)
    try:
        await locking.execute("BEGIN; LOCK TABLE task_actions IN ACCESS SHARE MODE")
        if free_at < 4:
            assert (await migrate.upgrade_async(empty_url, "0021")).actual == "0021"
        else:
            with pytest.raises(Retry):
                await migrate.upgrade_async(empty_url, "0021")
    finally:
        locking.terminate()
    assert delays.attempts[: len(attempts)] == attempts


SCHEMA_LOCK = "hashtextextended('taskherd schema', 0)"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = ("
WAITING += "SELECT oid FROM pg_database WHERE datname = current_database())"
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND datname = current_database()"


async def until_counted(connection: asyncpg.Connection, count: str, is_: int) -> None:
    """Wait until a count is so."""
    await until(lambda: connection.fetchval(count), lambda found: found == is_)


async def test_a_migration_takes_as_long_as_it_takes(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement of it is canceled for its time, and it may read whole tables; only a lock is soon given up.

    The connection notices a server that is gone.
    """
    found: dict[str, Any] = {}

    def run(connection: Connection, _: str) -> str:
        names = ("statement_timeout", "lock_timeout", "enable_seqscan", "client_connection_check_interval")
        found.update({name: connection.scalar(text(f"SHOW {name}")) for name in names})
        driver = connection.connection.driver_connection
        assert driver is not None
        found["client"] = driver._config.command_timeout
        sock = driver._transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            found["keepalive"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return "done"

    monkeypatch.setattr(migrate, "_run", run)
    assert str(await migrate.upgrade_async(database_url)) == "done"
    day = 86_400
    assert (found.pop("client") > day, found.pop("keepalive", 1)) == (True, 1)
    assert found == {
        "statement_timeout": "0",
        "lock_timeout": "2s",
        "enable_seqscan": "on",
        "client_connection_check_interval": "10s",
    }


async def test_a_process_waits_for_one_that_migrates(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes, and at its first attempt."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 0.001)
    monkeypatch.setattr(migrate, "ATTEMPTS", 1)
    migrating = await asyncpg.connect(database_url, timeout=30)
    observing = await asyncpg.connect(database_url, timeout=30)
    try:
        await migrating.execute(f"SELECT pg_advisory_lock({SCHEMA_LOCK})")
        waiting = [asyncio.create_task(migrate.upgrade_async(database_url)) for _ in range(2)]
        await until_counted(observing, WAITING, is_=2)
        migrating.terminate()
        states = await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert {state.status for state in states} == {migrate.SchemaStatus.CURRENT}
    finally:
        migrating.terminate()
        observing.terminate()


def sleep_on(connection: Connection, _: str) -> None:
    """Migrate for ten minutes."""
    connection.execute(text("SELECT pg_sleep(600)"))


async def test_a_migration_that_takes_too_long_is_no_outage(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time limit, and somebody who cancels its statement, are told as what they are; nothing goes on after it."""
    monkeypatch.setattr(migrate, "_run", sleep_on)
    observing = await asyncpg.connect(database_url, timeout=30)
    try:
        with pytest.raises(
            migrate.MigrationCanceled, match=r"^the migration took longer than 0\.5 s, `taskherd db check`"
        ):
            await migrate.upgrade_async(database_url, timeout=0.5)
        await until_counted(observing, SLEEPING + " AND state = 'active'", is_=0)
        migrating = asyncio.create_task(migrate.upgrade_async(database_url))
        await until_counted(observing, SLEEPING + " AND state = 'active'", is_=1)
        await observing.execute(SLEEPING.replace("count(*)", "pg_cancel_backend(pid)"))
        with pytest.raises(
            migrate.MigrationCanceled, match=r"^the migration was canceled, nothing was changed: .*57014"
        ):
            await asyncio.wait_for(migrating, 60)
    finally:
        observing.terminate()


async def test_the_statement_of_a_process_that_is_gone_ends(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon, not when it is done: others wait for its locks."""
    drivers: list[Any] = []

    def run(connection: Connection, revision: str) -> None:
        drivers.append(connection.connection.driver_connection)
        sleep_on(connection, revision)

    monkeypatch.setattr(migrate, "_run", run)
    monkeypatch.setattr(migrate, "CLIENT_CHECK_EVERY", 0.1)
    observing = await asyncpg.connect(database_url, timeout=30)
    try:
        migrating = asyncio.create_task(migrate.upgrade_async(database_url))
        await until_counted(observing, SLEEPING, is_=1)
        drivers[0].terminate()
        await until_counted(observing, SLEEPING, is_=0)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(migrating, 60)
    finally:
        observing.terminate()
