"""Connections of one pool: which are closed when their server is left, and which server has been demoted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from taskherd.errors import Misconfigured
from taskherd.store.connecting import Connector
from tests.harness.tcp_proxy import TcpProxy, through


@pytest.fixture
async def connect_to() -> AsyncIterator[Callable[[Connector], Any]]:
    """Yield a function that connects; what is open in the end is closed."""
    opened: list[Any] = []

    async def connect(connector: Connector) -> Any:
        opened.append(await connector.connect())
        return opened[-1]

    yield connect
    for each in opened:
        each.terminate()


@pytest.fixture
async def proxies(database_url: str) -> AsyncIterator[tuple[TcpProxy, TcpProxy]]:
    """Yield two proxies in front of the server."""
    first, second = [await TcpProxy.before(database_url) for _ in range(2)]
    yield first, second
    for each in (first, second):
        await each.stop()


def connector(url: str) -> Connector:
    """Return what connects to this URL, without settings."""
    return Connector(url, command_timeout=30, server_settings={}, checked=False)


async def test_when_a_server_is_left_its_connections_are_closed(
    database_url: str, proxies: tuple[TcpProxy, TcpProxy], connect_to: Callable[[Connector], Any]
) -> None:
    """Idle ones at once, those in use when they come back; those to another server stay, and new ones are there."""
    pool = connector(through(database_url, *proxies))
    idle, taken, noticed = [await connect_to(pool) for _ in range(3)]
    pool.give_back(idle)
    pool.give_back(taken)
    pool.take(taken)
    assert [proxy.accepted for proxy in proxies] == [3, 0]
    pool.avoid(noticed)
    other = await connect_to(pool)
    pool.give_back(other)
    assert [each.is_closed() for each in (idle, taken, noticed, other)] == [True, False, False, False]
    assert [proxy.accepted for proxy in proxies] == [3, 1]
    pool.give_back(taken)
    assert taken.is_closed()
    pool.avoid(noticed)
    assert not other.is_closed()
    pool.give_back(noticed)
    assert noticed.is_closed()
    await connect_to(pool)
    assert [proxy.accepted for proxy in proxies] == [3, 2]


async def test_what_another_pool_has_opened_is_not_closed(
    database_url: str, proxies: tuple[TcpProxy, TcpProxy], connect_to: Callable[[Connector], Any]
) -> None:
    """Nor is its server left for it."""
    pool, others = connector(through(database_url, *proxies)), connector(through(database_url, proxies[0]))
    own, foreign = await connect_to(pool), await connect_to(others)
    pool.give_back(own)
    pool.avoid(foreign)
    assert not own.is_closed()
    await connect_to(pool)
    assert [proxy.accepted for proxy in proxies] == [3, 0]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", False), ("target_session_attrs=read-write", True), ("target_session_attrs=primary", False),
        ("target_session_attrs=any", False), ("target_session_attrs=prefer-standby", False),
    ],
)  # fmt: skip
async def test_a_server_that_only_reads_is_demoted_for_who_writes(
    database_url: str, connect_to: Callable[[Connector], Any], query: str, *, expected: bool
) -> None:
    """As the server says, by itself, when its setting changes; a primary that only reads is a primary."""
    pool = connector(f"{database_url}?{query}" if query else database_url)
    connection = await connect_to(pool)
    assert not pool.is_demoted(connection)
    await connection.execute("SET default_transaction_read_only = on")
    assert pool.is_demoted(connection) is expected
    await connection.execute("SET default_transaction_read_only = off")
    assert not pool.is_demoted(connection)


async def test_a_session_without_its_settings_is_closed(database_url: str) -> None:
    """It is refused, with what is missing and what it should be, and does not stay open at the server."""
    name = f"refused-{uuid.uuid4().hex}"
    settings = {"application_name": name, "jit": "off", "statement_timeout": "7s"}
    refusing = Connector(database_url, command_timeout=30, server_settings=settings)
    with pytest.raises(
        Misconfigured, match=r"\(statement_timeout is 7000, not 7s\): .*pgbouncer=transaction"
    ) as raised:
        await refusing.connect()
    accepting = Connector(database_url, command_timeout=30, server_settings=settings, checked=False)
    connection = await accepting.connect()
    try:
        assert await connection.fetchval("SHOW jit") == "off"
        others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()"
        async with asyncio.timeout(20):
            while await connection.fetchval(others, name):  # noqa: ASYNC110 - the server sends no notification
                await asyncio.sleep(0.05)
    finally:
        connection.terminate()
    assert raised.value.setting == "database_url"
