"""Several database servers: a hung one costs its limit once, and one that cannot be written to is not chosen."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.dev.services import Services, start_database
from taskherd.dev.sources import Database
from taskherd.endpoints import Host
from taskherd.errors import Unavailable
from taskherd.store import migrate
from taskherd.store.connecting import CONNECT_TIMEOUT, STANDBY_INTERVAL, Connector
from taskherd.store.engine import check_writable, dispose, open_engine, transaction
from taskherd.store.read_pool import ReadPool
from tests.harness.tcp_proxy import TcpProxy, through

SOON = CONNECT_TIMEOUT / 2
"""Seconds within which a statement ends that waits for no hung server."""


@pytest.fixture
async def proxies(database_url: str) -> AsyncIterator[tuple[TcpProxy, TcpProxy]]:
    """Yield two proxies in front of the server."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            proxy = await TcpProxy.before(database_url)
            stack.push_async_callback(proxy.stop)
            made.append(proxy)
        yield made[0], made[1]


async def test_a_hung_first_server_costs_its_limit_once(database_url: str, proxies: tuple[TcpProxy, TcpProxy]) -> None:
    """Both pools find the server that answers, and then go to it first; migrations do the same."""
    hung, good = proxies
    hung.freeze()
    url = through(database_url, hung, good)
    reader = ReadPool(url, size=2, application_name="taskherd-tests")
    engine = open_engine(url, size=2, application_name="taskherd-tests")
    assert await reader.fetch_one("SELECT 1")
    async with transaction(engine) as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    tried = hung.accepted
    async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(reader.fetch("SELECT pg_sleep(0.2)"))
            group.create_task(_sleep(engine))
    assert hung.accepted == tried == 2
    assert (await migrate.current_async(url)).advice == ""
    await reader.close()
    await dispose(engine)


async def _sleep(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT pg_sleep(0.2)"))


async def test_when_a_server_freezes_its_other_connections_are_not_waited_for(
    database_url: str, proxies: tuple[TcpProxy, TcpProxy]
) -> None:
    """One statement waits for its timeout; the next ones use another server, not the idle connections to this one."""
    first, second = proxies
    engine = open_engine(
        through(database_url, first, second), size=3, application_name="taskherd-tests", command_timeout=1
    )
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(_sleep(engine))
    assert (first.accepted, second.accepted) == (3, 0)
    first.freeze()
    with pytest.raises(Unavailable):
        await _sleep(engine)
    async with asyncio.timeout(SOON):
        for _ in range(3):
            await _sleep(engine)
    assert second.accepted == 1
    await dispose(engine)


async def test_when_a_server_freezes_reads_go_to_another_one(
    database_url: str, proxies: tuple[TcpProxy, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the engine: one read waits for its timeout, the next ones use another server."""
    monkeypatch.setattr("taskherd.store.read_pool.COMMAND_TIMEOUT", 1.0)
    first, second = proxies
    reader = ReadPool(through(database_url, first, second), size=3, application_name="taskherd-tests")
    await asyncio.gather(*(reader.fetch("SELECT pg_sleep(0.2)") for _ in range(3)))
    assert (first.accepted, second.accepted) == (3, 0)
    first.freeze()
    with pytest.raises(Unavailable):
        await reader.fetch("SELECT 1")
    async with asyncio.timeout(SOON):
        for _ in range(3):
            await reader.fetch("SELECT 1")
    assert second.accepted == 1
    await reader.close()


async def test_each_address_of_a_name_is_tried(database_url: str, proxies: tuple[TcpProxy, TcpProxy]) -> None:
    """A name leads to the address that answers, and a statement is cancelled at that very address."""
    good = proxies[0]
    hung = TcpProxy("127.0.0.1", good.port)
    await hung.start("127.0.0.2", good.port)
    hung.freeze()

    async def resolve(_: Host) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    parts = urlsplit(database_url)
    url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@db.example:{good.port}"))
    connector = Connector(url, command_timeout=0.5, server_settings={}, resolve=resolve)
    connection = await connector.connect()
    assert (hung.accepted, good.accepted) == (1, 2)  # the frozen proxy is itself a client of the other
    with pytest.raises(TimeoutError):
        await connection.fetch("SELECT pg_sleep(60)")
    assert await connection.fetchval("SELECT 1") == 1
    assert (hung.accepted, good.accepted) == (1, 3)
    await connection.close()
    await hung.stop()


@pytest.mark.parametrize("stage", range(4))
async def test_no_stage_of_connecting_takes_longer_than_the_limit(
    database_url: str, proxies: tuple[TcpProxy, TcpProxy], stage: int
) -> None:
    """A server that hangs before it answers about TLS, or in one of the steps of the login, costs its limit."""
    hung, good = proxies
    hung.max_responses = stage
    reader = ReadPool(through(database_url, hung, good), size=1, application_name="taskherd-tests")
    began = asyncio.get_running_loop().time()
    assert await reader.fetch("SELECT 1")
    assert CONNECT_TIMEOUT - 0.5 < asyncio.get_running_loop().time() - began < 2 * CONNECT_TIMEOUT
    assert good.accepted == 1
    await reader.close()


@pytest.fixture(scope="module")
def second_server(announce: Callable[[str], None]) -> Iterator[Database]:
    """Yield a server of its own, whose only role and database are set up by ``share``."""
    with tempfile.TemporaryDirectory(prefix="taskherd-second-") as folder:
        node = start_database(Path(folder) / "postgres", announce, fast=True)
        yield node
        node.stop()


async def share(database_url: str, second: Database) -> str:
    """Create a role and a database of the same names on both servers, and return a URL of both, the second first."""
    name, password = f"r{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    for url in (second.url, database_url):
        connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
        await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
        await connection.close()
    hosts = ",".join(urlsplit(url).netloc.rpartition("@")[2] for url in (second.url, database_url))
    return f"postgresql://{name}:{password}@{hosts}/{name}"


async def test_a_server_that_becomes_read_only_is_left(database_url: str, second_server: Database) -> None:
    """Pools that are connected to it let go of their connections at the first write, and read from another server."""
    url = await share(database_url, second_server)
    port = urlsplit(second_server.url).port
    engine = open_engine(url, size=2, application_name="taskherd-tests")
    reader = ReadPool(url, size=1, application_name="taskherd-tests")
    async with transaction(engine) as connection:
        await connection.execute(text("CREATE TABLE written (a integer)"))
        assert await _port(connection) == port
    assert (await reader.fetch("SELECT inet_server_port()"))[0][0] == port
    role = urlsplit(url).username
    admin = await asyncpg.connect(second_server.url, timeout=30, command_timeout=30)
    await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await admin.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match="read-only"):
            await _write_again_and_again(engine)
    await _write(engine)
    async with transaction(engine) as connection:
        assert await _port(connection) == urlsplit(database_url).port
        await check_writable(connection)
    await reader.fetch("SELECT 1")
    assert (await reader.fetch("SELECT inet_server_port()"))[0][0] == urlsplit(database_url).port
    assert await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", role) == 0
    fresh = ReadPool(url, size=1, application_name="taskherd-tests")
    assert (await fresh.fetch("SELECT inet_server_port()"))[0][0] == urlsplit(database_url).port
    await admin.execute("SET default_transaction_read_only = off")
    await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await admin.execute("SELECT pg_reload_conf()")
    await admin.close()
    for pool in (reader, fresh):
        await pool.close()
    await dispose(engine)


async def _port(connection: AsyncConnection) -> int:
    port: int = (await connection.execute(text("SELECT inet_server_port()"))).scalar_one()
    return port


async def _write(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS written (a integer)"))


async def _write_again_and_again(engine: AsyncEngine) -> None:
    while True:
        await _write(engine)


@pytest.mark.parametrize("target", ["", "read-write", "primary"])
async def test_a_standby_is_not_chosen(database_url: str, standby: tuple[Database, str], target: str) -> None:
    """Of several hosts only a primary is chosen, also by default; of one host, whatever it is."""
    server, url = standby
    option = f"?target_session_attrs={target}" if target else ""
    reader = ReadPool(url + option, size=1, application_name="taskherd-tests")
    first = url.partition(",")[0] + urlsplit(url).path
    alone = ReadPool(first, size=1, application_name="taskherd-tests")
    refused = ReadPool(f"{first}?target_session_attrs=read-write", size=1, application_name="taskherd-tests")
    async with AsyncExitStack() as stack:
        for pool in (reader, alone, refused):
            stack.push_async_callback(pool.close)
        assert (await reader.fetch("SELECT inet_server_port()"))[0][0] == urlsplit(database_url).port
        assert (await alone.fetch("SELECT pg_is_in_recovery()"))[0][0]
        with pytest.raises(Unavailable, match="read-write"):
            await refused.fetch("SELECT 1")
        connection = await asyncpg.connect(server.url, timeout=30)
        stack.push_async_callback(connection.close, timeout=30)
        for option, is_demoted in (
            ("", True),
            ("?target_session_attrs=read-write", True),
            ("?target_session_attrs=primary", True),
            ("?target_session_attrs=any", False),
            ("?pgbouncer=transaction", False),
        ):
            asked = Connector(first + option, command_timeout=30, server_settings={})
            assert asked.is_demoted(connection) is is_demoted
    assert server.pid is not None


async def test_reads_follow_a_name_that_moves_to_the_primary(database_url: str, standby: tuple[Database, str]) -> None:
    """They leave a standby that the only host of the URL led to, although it fails no read and no connection is cut."""
    server, url = standby
    moving = await TcpProxy.before(server.url)
    reader = ReadPool(through(url, moving), size=2, application_name="taskherd-tests")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(moving.stop)
        stack.push_async_callback(reader.close)
        assert await _port_of_a_standby(reader) == urlsplit(server.url).port
        moving.lead_to(database_url)
        async with asyncio.timeout(STANDBY_INTERVAL + SOON):
            while await _port_of_a_standby(reader):
                continue
        assert (await reader.fetch("SELECT inet_server_port()"))[0][0] == urlsplit(database_url).port


async def _port_of_a_standby(reader: ReadPool) -> int | None:
    """Return the port of the server that a read came from, None of a primary."""
    row = await reader.fetch_one("SELECT CASE WHEN pg_is_in_recovery() THEN inet_server_port() END")
    assert row is not None
    port: int | None = row[0]
    return port


@pytest.mark.parametrize(
    ("option", "of_standby"), [("", False), ("target_session_attrs=any", False), ("", True)], ids=str
)
async def test_a_lone_standby_serves_reads_without_a_new_connection_for_each(
    standby: tuple[Database, str],
    option: str,
    of_standby: bool,  # noqa: FBT001 - a parameter
) -> None:
    """It is left for a moment now and then if a primary is expected, else never."""
    server, url = standby
    proxy = await TcpProxy.before(server.url)
    reader = ReadPool(
        through(url, proxy, query=option), size=1, application_name="taskherd-tests", of_standby=of_standby
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(proxy.stop)
        stack.push_async_callback(reader.close)
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            assert await _port_of_a_standby(reader) == urlsplit(server.url).port
        left = 0 if option or of_standby else 1 + (asyncio.get_running_loop().time() - began) // STANDBY_INTERVAL
        assert proxy.accepted <= 1 + left


@pytest.fixture(scope="module")
async def standby(services: Services, second_server: Database) -> tuple[Database, str]:
    """Return the second server as a standby, and a URL of it and the first server."""
    url = await share(services.database_url, second_server)
    admin = await asyncpg.connect(second_server.url, timeout=30, command_timeout=30)
    folder = await admin.fetchval("SHOW data_directory")
    await admin.execute(f"COPY (SELECT '') TO '{folder}/standby.signal'")
    await admin.close()
    await asyncio.to_thread(second_server.restart)
    return second_server, url
