"""Sessions through a real PgBouncer, in session and in transaction mode."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from taskherd.api.read_routing import STANDBY_TIMEOUT
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store import role_settings
from taskherd.store.engine import StatementTimeout, dispose, open_engine, session_settings, transaction
from taskherd.store.read_pool import ReadPool
from tests.harness.pgbouncer import IGNORED, PgBouncer, StartPgBouncer

pytestmark = pytest.mark.slow

SETTINGS = ",".join(name for name in session_settings("") if name not in {"application_name", "timezone"})


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a session through PgBouncer take its time, which on a busy machine is that of two connections."""
    monkeypatch.setattr("taskherd.store.connecting.CONNECT_TIMEOUT", 30.0)


async def _read_and_write(url: str, rounds: int = 30) -> None:
    """Execute the same few statements again and again, on several connections at once."""
    engine = open_engine(url, size=4, application_name="taskherd-tests")
    reader = ReadPool(url, size=4, application_name="taskherd-tests")

    async def write(number: int) -> int:
        async with transaction(engine) as connection:
            first = (await connection.execute(text("SELECT CAST(:n AS int) + 1"), {"n": number})).scalar_one()
            return int((await connection.execute(text("SELECT CAST(:n AS int) + 1"), {"n": first})).scalar_one())

    async def read(number: int) -> int:
        for _ in range(12):
            with suppress(Unavailable):  # a connection took longer than a read waits for one
                row = await reader.fetch_one("SELECT $1::int + 2", number)
                assert row is not None
                return int(row[0])
        raise AssertionError("no connection within a minute")

    try:
        for number in range(rounds):
            results = await asyncio.gather(*(do(number) for do in (write, read) for _ in range(4)))
            assert results == [number + 2] * 8
    finally:
        await reader.close()
        await dispose(engine)


async def _hold(url: str, *statements: str, seconds: float = 0) -> None:
    """Execute statements in one transaction of an engine with short timeouts."""
    engine = open_engine(url, size=1, application_name="taskherd-tests")
    try:
        async with transaction(engine) as connection:
            for statement in statements:
                await connection.execute(text(statement))
            await asyncio.sleep(seconds)
    finally:
        await dispose(engine)


async def test_without_the_option_a_pgbouncer_is_a_misconfiguration(start_pgbouncer: StartPgBouncer) -> None:
    """A PgBouncer that rejects the settings is no outage: the error names the setting and what to write there."""
    async with start_pgbouncer() as bouncer:
        with pytest.raises(Misconfigured, match=r"database_url: .*statement_timeout.*pgbouncer=session"):
            await _hold(bouncer.url(), "SELECT 1")
        for setting, of_standby in (("database_url", False), ("database_read_url", True)):
            reader = ReadPool(bouncer.url(), size=1, application_name="taskherd-tests", of_standby=of_standby)
            with pytest.raises(Misconfigured, match=rf"^{setting}: .*pgbouncer=transaction"):
                await reader.fetch("SELECT 1")
            await reader.close()


@pytest.mark.parametrize("url", ["not a URL", "mysql://u@h/d", "postgresql://u@h/d?pgbouncer=statement"])
def test_a_bad_url_is_a_misconfiguration(url: str) -> None:
    """A URL that says nothing usable is refused before anything connects."""
    with pytest.raises(Misconfigured, match=r"^database_url: expected"):
        open_engine(url, size=1, application_name="taskherd-tests")
    with pytest.raises(Misconfigured, match=r"^database_url: expected"):
        ReadPool(url, size=1, application_name="taskherd-tests")
    with pytest.raises(Misconfigured, match=r"^database_read_url: expected"):
        ReadPool(url, size=1, application_name="taskherd-tests", of_standby=True)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_settings_that_pgbouncer_drops_are_noticed(start_pgbouncer: StartPgBouncer, mode: str) -> None:
    """With ``ignore_startup_parameters`` no session without its guards is used, and the error lists what is missing."""
    async with start_pgbouncer(pool_mode=mode, **{IGNORED: SETTINGS}) as bouncer:
        with pytest.raises(Misconfigured, match=r"statement_timeout is 0, not 4500ms; lock_timeout is 0"):
            await _hold(bouncer.url(), "SELECT 1")


async def test_session_mode_needs_nothing_of_the_role(start_pgbouncer: StartPgBouncer, database_url: str) -> None:
    """In session mode taskherd sets its guards itself, and they hold."""
    async with start_pgbouncer(pool_mode="session") as bouncer:
        url = bouncer.url(pgbouncer="session")
        await _read_and_write(url)
        await _check_guards(url, database_url)


@pytest.mark.parametrize("tracked", [200, 0])
async def test_transaction_mode_takes_the_guards_from_the_role(
    start_pgbouncer: StartPgBouncer, database_url: str, tracked: int
) -> None:
    """In transaction mode the role must have the guards, and they hold, with tracked statements or without."""
    async with start_pgbouncer(
        pool_mode="transaction", default_pool_size="3", max_prepared_statements=str(tracked)
    ) as bouncer:
        url = bouncer.url(pgbouncer="transaction")
        with pytest.raises(
            Misconfigured, match=r"statement_timeout is 0.*taskherd db role-settings --apply.*RECONNECT"
        ):
            await _read_and_write(url)
        await _apply(url, bouncer)
        await _read_and_write(url)
        if tracked:
            await _check_guards(url, database_url)


async def test_a_pool_with_less_time_works_with_the_guards_of_the_role(start_pgbouncer: StartPgBouncer) -> None:
    """As that for a standby, whose statements have a second."""
    async with start_pgbouncer(pool_mode="transaction", default_pool_size="3") as bouncer:
        url = bouncer.url(pgbouncer="transaction")
        await _apply(url, bouncer)
        pool = ReadPool(url, size=1, application_name="test", command_timeout=STANDBY_TIMEOUT)
        assert await pool.fetch_one("SELECT 5") == (5,)
        with pytest.raises(Unavailable):
            await pool.fetch("SELECT pg_sleep(600)")
        await pool.close()


async def test_session_mode_in_the_url_of_transaction_mode_is_a_misconfiguration(
    start_pgbouncer: StartPgBouncer,
) -> None:
    """With tracked statements every one of them works, but settings reach any server session: none gets any."""
    async with start_pgbouncer(pool_mode="transaction", max_prepared_statements="200") as bouncer:
        url = bouncer.url(pgbouncer="session")
        with pytest.raises(Misconfigured, match=r"^database_url: .* expected pgbouncer=transaction"):
            await _hold(url, "SELECT 1")
        reader = ReadPool(url, size=1, application_name="taskherd-tests", of_standby=True)
        with pytest.raises(Misconfigured, match=r"^database_read_url: .* expected pgbouncer=transaction"):
            await reader.fetch("SELECT 1")
        await reader.close()
        plain = await asyncpg.connect(bouncer.url(), timeout=10)
        assert await plain.fetchval("SHOW statement_timeout") == "0"
        await plain.close(timeout=5)


async def test_the_wrong_mode_is_a_misconfiguration(start_pgbouncer: StartPgBouncer) -> None:
    """Prepared statements that vanish between transactions raise an error that names the right option."""
    async with start_pgbouncer(pool_mode="transaction", default_pool_size="3", max_prepared_statements="0") as bouncer:
        await _apply(bouncer.url(pgbouncer="transaction"), bouncer)
        with pytest.raises(Misconfigured, match=r"prepared statement .* expected pgbouncer=transaction"):
            await _read_and_write(bouncer.url(pgbouncer="session"))


async def _apply(url: str, bouncer: PgBouncer) -> None:
    await role_settings.apply(url)
    await bouncer.console("RECONNECT")


async def _check_guards(url: str, database_url: str) -> None:
    """Check that statements, waits for locks and idle transactions end, by the server's own timeouts."""
    with pytest.raises(StatementTimeout, match=r"^QueryCanceledError: .* statement timeout \[57014\]$"):
        await _hold(url, "SELECT pg_sleep(30)")
    owner = await asyncpg.connect(database_url, timeout=10)
    try:
        await owner.execute("CREATE TABLE held (a integer)")
        async with owner.transaction():
            await owner.execute("LOCK TABLE held")
            with pytest.raises(Retry, match=r"^LockNotAvailableError: .* lock timeout \[55P03\]$"):
                await _hold(url, "SELECT * FROM held")
        idle = asyncio.create_task(_hold(url, "LOCK TABLE held", seconds=120))
        await asyncio.wait_for(_until_ended(owner), 60)
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)
    finally:
        await owner.close(timeout=5)


async def _until_ended(owner: Any) -> None:
    """Wait until a session that is idle in a transaction has been there, and was ended by the server."""
    locked = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND mode = 'AccessExclusiveLock'"
    while not await owner.fetchval(locked):  # noqa: ASYNC110 - the server sends no notification
        await asyncio.sleep(0.05)
    while await owner.fetchval(locked):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.2)
