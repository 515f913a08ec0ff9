from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store import engine as engines
from taskherd.store import tasks
from taskherd.store.connecting import sqlalchemy_url
from taskherd.store.direct import DirectStatement
from taskherd.store.engine import (
    STATEMENT_BUGS,
    DataError,
    ReadOnly,
    classify,
    dispose,
    open_engine,
    transaction,
)
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_creation import insert_tasks
from tests.harness.databases import connected
from tests.harness.tcp_proxy import TcpProxy, through
from tests.store.conftest import task_row


@pytest.mark.parametrize(
    ("statement", "values", "error"),
    [
        ("SELECT CAST(:a AS bigint)", {"a": 2**63}, DataError),
        ("SELECT CAST(CAST(:a AS text) AS json)", {"a": "{"}, DataError),
        ("SELECT CAST(:a AS text)", {"a": "nul \0 character"}, DataError),
        ("SELECT CAST(:a AS text)", {"a": "lone \ud800 surrogate"}, DataError),
        ("SELECT pg_sleep(30)", {}, Unavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", {}, Retry),
        ("DO $$ BEGIN RAISE SQLSTATE '25006'; END $$", {}, ReadOnly),
        ("SELECT pg_terminate_backend(pg_backend_pid())", {}, Unavailable),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
async def test_errors_are_classified_by_what_to_do(
    database_url: str,
    statement: str,
    values: dict[str, object],
    error: type[Exception],
    direct: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A failed statement raises the error that says what to do, and the engine can still be used."""
    engine = open_engine(database_url, size=1, application_name="taskherd-tests", command_timeout=1)

    async def execute() -> None:
        async with transaction(engine) as connection:
            if direct:
                await DirectStatement(statement).fetch(connection, values)
            else:
                await connection.execute(text(statement), values)

    try:
        with pytest.raises(error):
            await execute()
        async with transaction(engine) as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await dispose(engine)


async def test_a_connection_that_asyncpg_gives_up_is_an_outage(engine: AsyncEngine) -> None:
    """Of a server that ends a session between two statements, asyncpg may notice only that its own state is wrong."""

    async def execute() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT 1"))
            raise asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")

    with pytest.raises(Unavailable, match="cannot switch to state 11"):
        await execute()
    async with transaction(engine) as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


@pytest.mark.parametrize("direct", [False, True])
async def test_a_plan_from_before_a_migration_is_retried(
    database_url: str,
    direct: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A statement prepared before another process migrated raises ``Retry`` once, and its transaction takes no effect.

    Run again, the same transaction works in the same session, with the new columns.
    """
    engine = open_engine(database_url, size=1, application_name="taskherd-tests")
    statement = "SELECT pg_backend_pid(), changing.* FROM changing ORDER BY attempt"

    async def add_attempt() -> list[tuple[int, ...]]:
        async with transaction(engine) as connection:
            await connection.execute(text("INSERT INTO changing DEFAULT VALUES"))
            if direct:
                rows = await DirectStatement(statement).fetch(connection, {})
            else:
                rows = (await connection.execute(text(statement))).all()
            return [tuple(row) for row in rows]

    async with connected(database_url) as other_process:
        await other_process.execute("CREATE TABLE changing (attempt serial)")
        ((session, *values),) = await add_attempt()
        assert values == [1]
        await other_process.execute("ALTER TABLE changing ADD COLUMN later integer DEFAULT 7")
    stale = r"^InvalidCachedStatementError: cached statement plan is invalid .* \[0A000\]$"
    with pytest.raises(Retry, match=stale):
        await add_attempt()
    assert await add_attempt() == [(session, 1, 7), (session, 3, 7)]  # the second attempt was rolled back
    await dispose(engine)


async def test_a_refused_connection_is_unavailable() -> None:
    """A server that does not listen is an outage, not a bug, and named without the password."""
    engine = open_engine("postgresql://nobody:s3cr3t@127.0.0.1:1/none", size=1, application_name="taskherd-tests")
    with pytest.raises(Unavailable, match=r"^PostgreSQL can't be reached: 127\.0\.0\.1:1: Connection refused$"):
        async with transaction(engine):
            raise AssertionError
    await dispose(engine)


async def test_an_exhausted_pool_is_unavailable(database_url: str) -> None:
    """A transaction that gets no connection within the command timeout raises ``Unavailable``."""
    engine = open_engine(database_url, size=1, application_name="taskherd-tests", command_timeout=0.5)
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 1"))
        with pytest.raises(Unavailable):
            async with transaction(engine):
                raise AssertionError
    await dispose(engine)


@pytest.mark.parametrize("direct", [False, True])
async def test_a_connection_whose_response_is_missing_is_not_reused(
    database_url: str,
    direct: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A transaction on a frozen connection ends within a second after its timeout; the next one gets another one."""
    proxy = await TcpProxy.before(database_url)
    engine = open_engine(through(database_url, proxy), size=1, application_name="taskherd-tests", command_timeout=2)
    process = text("SELECT pg_backend_pid()")
    began: list[float] = []
    async with transaction(engine) as connection:
        first = (await connection.execute(process)).scalar_one()

    async def ask_frozen_server() -> None:
        async with asyncio.timeout(30), transaction(engine) as connection:
            assert (await connection.execute(process)).scalar_one() == first
            proxy.freeze()
            began.append(asyncio.get_running_loop().time())
            if direct:
                await DirectStatement("SELECT 1").fetch(connection, {})
            else:
                await connection.execute(process)

    with pytest.raises(Unavailable):
        await ask_frozen_server()
    assert asyncio.get_running_loop().time() - began[0] < 2 + 1
    proxy.thaw()
    async with transaction(engine) as connection:
        assert (await connection.execute(process)).scalar_one() != first
    await dispose(engine)
    await proxy.stop()


async def test_a_canceled_transaction_takes_no_effect(database_url: str) -> None:
    """A transaction that is canceled while it waits for a statement holds no lock, and nobody gets its response."""
    engine = open_engine(database_url, size=1, application_name="taskherd-tests")
    writing = asyncio.Event()

    async def write() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE directory_revision SET revision = revision + 1000"))
            writing.set()
            await DirectStatement("SELECT pg_sleep(4)").fetch(connection, {})

    task = asyncio.create_task(write())
    await writing.wait()
    await asyncio.wait({task}, timeout=0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with transaction(engine) as connection:
        assert [*(await DirectStatement("SELECT 7").fetch(connection, {}))[0]] == [7]
        revision = (await connection.execute(text("SELECT revision FROM directory_revision FOR UPDATE"))).scalar_one()
    assert revision < 1000
    await dispose(engine)


async def test_a_transaction_that_is_canceled_twice_takes_no_effect(database_url: str) -> None:
    """The second time it was waiting for its rollback, on a server that hangs: its connection is not used again."""
    proxy = await TcpProxy.before(database_url)
    engine = open_engine(through(database_url, proxy), size=1, application_name="taskherd-tests", command_timeout=10)
    writing = asyncio.Event()

    async def write() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE directory_revision SET revision = revision + 1000"))
            proxy.freeze()
            writing.set()
            await DirectStatement("SELECT 1").fetch(connection, {})

    task = asyncio.create_task(write())
    await writing.wait()
    for _ in range(2):
        await asyncio.wait({task}, timeout=0.2)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.thaw()
    async with transaction(engine) as connection:
        assert [*(await DirectStatement("SELECT 7").fetch(connection, {}))[0]] == [7]
    await dispose(engine)
    await proxy.stop()


@pytest.fixture
async def proxied(database_url: str) -> AsyncIterator[tuple[AsyncEngine, TcpProxy]]:
    """Yield an engine of one connection, and the proxy that it goes through."""
    proxy = await TcpProxy.before(database_url)
    engine = open_engine(through(database_url, proxy), size=1, application_name="taskherd-tests", command_timeout=30)
    yield engine, proxy
    await dispose(engine)
    await proxy.stop()


async def test_a_connection_that_cannot_roll_back_is_closed(
    proxied: tuple[AsyncEngine, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the transaction surfaces soon, and the server ends what was begun as soon as it notices."""
    monkeypatch.setattr("taskherd.store.engine.ROLLBACK_TIMEOUT", 0.05)
    engine, proxy = proxied
    drivers: list[Any] = []

    async def fail() -> None:
        async with transaction(engine) as connection:
            drivers.append((await connection.get_raw_connection()).driver_connection)
            await connection.execute(text("UPDATE directory_revision SET revision = revision + 1000"))
            proxy.freeze()
            raise ZeroDivisionError

    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await fail()
    assert drivers[0].is_closed()
    proxy.thaw()
    async with transaction(engine) as connection:
        found = await connection.execute(text("SELECT revision FROM directory_revision FOR UPDATE"))
        assert found.scalar_one() < 1000


async def test_a_transaction_that_is_canceled_while_it_rolls_back_is_canceled(
    proxied: tuple[AsyncEngine, TcpProxy],
) -> None:
    """Who canceled it does not see the error for which it rolled back."""
    engine, proxy = proxied
    failing = asyncio.Event()

    async def fail() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT 1"))
            proxy.freeze()
            failing.set()
            raise ZeroDivisionError

    task = asyncio.create_task(fail())
    await failing.wait()
    await asyncio.wait({task}, timeout=0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_server_that_hangs_before_the_first_transaction_is_unavailable(database_url: str) -> None:
    """It hangs when it has just accepted the engine's first connection."""
    proxy = await TcpProxy.before(database_url)
    engine = open_engine(through(database_url, proxy), size=1, application_name="taskherd-tests", command_timeout=0.5)
    sqlalchemy_event.listen(engine.sync_engine.pool, "connect", lambda *_: proxy.freeze(), insert=True)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(30), transaction(engine):
            raise AssertionError
    await dispose(engine)
    await proxy.stop()


async def test_an_engine_whose_server_hangs_can_be_closed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends does not wait for the server, and it is no error."""
    monkeypatch.setattr(engines, "CLOSE_TIMEOUT", 0.05)
    proxy = await TcpProxy.before(database_url)
    engine = open_engine(through(database_url, proxy), size=1, application_name="taskherd-tests")
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 1"))
    proxy.freeze()
    async with asyncio.timeout(30):
        await dispose(engine)
    assert proxy.accepted == 1  # and nothing connects again for it
    await proxy.stop()


@pytest.mark.parametrize("failure", [OSError("gone"), InvalidRequestError("in use"), None])
async def test_a_connection_that_cannot_be_discarded_is_no_error(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """Why its transaction failed is what the caller is told, also if closing it takes too long."""
    monkeypatch.setattr(engines, "CLOSE_TIMEOUT", 0.01)

    called = 0

    class Connection:
        async def invalidate(self) -> None:
            nonlocal called
            called += 1
            if failure is None:
                await asyncio.Event().wait()
            else:
                raise failure

    connection: Any = Connection()
    async with asyncio.timeout(30):
        await engines._discard(connection)
    assert called == 1


NO_TABLE = "SELECT * FROM no_such_table"
NO_COLUMN = "SELECT no_such_column FROM tasks"
NO_VALUE = "SELECT 1 WHERE $1 = $2"


@pytest.mark.parametrize(
    ("statement", "path", "mistake"),
    [
        (NO_TABLE, "sqlalchemy", "no_such_table"),
        (NO_COLUMN, "sqlalchemy", "no_such_column"),
        (NO_TABLE, "direct", "no_such_table"),
        (NO_COLUMN, "direct", "no_such_column"),
        (NO_VALUE, "direct", "the server expects 2 arguments for this query, 0 were passed"),
        (NO_COLUMN, "pool", "no_such_column"),
        (NO_VALUE, "pool", "the server expects 2 arguments for this query, 1 was passed"),
    ],
)
async def test_a_bug_surfaces(database_url: str, statement: str, path: str, mistake: str) -> None:
    """An error in a statement is raised as it is: nothing waits for the end of an outage, or blames a value."""
    engine = open_engine(database_url, size=1, application_name="taskherd-tests")
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")

    async def execute() -> None:
        if path == "pool":
            await pool.fetch(statement, *(["one value"] if statement is NO_VALUE else []))
        else:
            async with transaction(engine) as connection:
                if path == "direct":
                    await DirectStatement(statement).fetch(connection, {})
                else:
                    await connection.execute(text(statement))

    with pytest.raises(STATEMENT_BUGS, match=mistake) as raised:
        await execute()
    assert classify(raised.value) is None
    await pool.close()
    await dispose(engine)


async def test_two_statements_at_a_time_are_a_bug(engine: AsyncEngine) -> None:
    """A connection executes one statement at a time; a second one is our mistake, not an outage."""
    async with transaction(engine) as connection:
        at_a_time = (DirectStatement("SELECT pg_sleep(0.1)").fetch(connection, {}) for _ in range(2))
        _, error = await asyncio.gather(*at_a_time, return_exceptions=True)
    assert isinstance(error, asyncpg.InterfaceError)
    assert "another operation is in progress" in str(error)
    assert classify(error) is None


async def test_a_server_that_cannot_be_verified_is_unavailable(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asyncpg itself finds wrong while it connects is no bug in a statement."""
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"{database_url}{'&' if '?' in database_url else '?'}sslmode=verify-full"
    engine = open_engine(url, size=1, application_name="taskherd-tests")
    pool = ReadPool(url, size=1, application_name="taskherd-tests")
    reason = r"^PostgreSQL can't be reached: root certificate file .* does not exist"
    with pytest.raises(Unavailable, match=reason):
        await pool.fetch("SELECT 1")
    with pytest.raises(Unavailable, match=reason):
        async with transaction(engine):
            raise AssertionError
    await pool.close()
    await dispose(engine)


@pytest.mark.parametrize(
    "use",
    [
        lambda connection, _: connection.fetch("SELECT 1"),
        lambda connection, _: connection.transaction().start(),
        lambda _, begun: begun.commit(),
    ],
    ids=["statement", "begin", "commit"],
)
async def test_a_closed_connection_is_an_outage(database_url: str, use: Callable[[Any, Any], Awaitable[None]]) -> None:
    """What asyncpg raises when a connection that was lost is used again has no error code."""
    connection = await asyncpg.connect(database_url, timeout=30)
    begun = connection.transaction()
    await begun.start()
    connection.terminate()
    with pytest.raises(asyncpg.InterfaceError) as raised:
        await use(connection, begun)
    assert type(classify(raised.value)) is Unavailable


async def test_a_deadlock_is_retried_by_one_transaction(engine: AsyncEngine) -> None:
    """Of two transactions that lock in opposite order, one succeeds and the other raises ``Retry``."""
    one, other = task_row(), task_row()
    async with transaction(engine) as connection:
        await insert_tasks(connection, [one, other])
    barrier = asyncio.Barrier(2)

    async def lock(first: tasks.StoredTask, second: tasks.StoredTask) -> str:
        try:
            async with transaction(engine) as connection:
                await tasks.lock(connection, [first.task.id])
                await barrier.wait()
                await tasks.lock(connection, [second.task.id])
        except Retry:
            return "retry"
        return "done"

    assert sorted(await asyncio.gather(lock(one, other), lock(other, one))) == ["done", "retry"]


def test_urls_in_the_forms_of_libpq_are_accepted() -> None:
    """The ``sslmode`` of libpq is passed on; URLs of other databases are rejected."""
    url = sqlalchemy_url("postgresql://a:b@host/d?sslmode=verify-full")
    assert url.drivername == "postgresql+asyncpg"
    assert url.query == {"ssl": "verify-full"}
    for wrong in ("mysql://host/d", "no url"):
        with pytest.raises(Misconfigured):
            sqlalchemy_url(wrong)
