"""Which server executes a read, and what a failure costs: one database stands for both servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias
from uuid import UUID

import pytest

from taskherd.api import read_routing
from taskherd.api.read_routing import ReadRouting, Sample
from taskherd.observability.metrics import Metrics
from taskherd.store import replication
from taskherd.store.read_pool import ReadPool
from tests.harness.tcp_proxy import TcpProxy, through

ALICE, BOB = UUID(int=1), UUID(int=2)
HERE, NOTHING = "SELECT CAST($1 AS int) AS here", "SELECT 1 AS here WHERE CAST($1 AS int) IS NULL"
AWAY = "postgresql://taskherd@127.0.0.1:1/none"

OpenRouting: TypeAlias = Callable[[str], ReadRouting]


@pytest.fixture
async def open_routing(database_url: str) -> AsyncIterator[OpenRouting]:
    """Yield a function that returns a routing between this database and a standby at a URL, which shows everything."""
    pools: list[ReadPool] = []

    def open_(standby_url: str) -> ReadRouting:
        primary, standby = (ReadPool(url, size=1, application_name="t") for url in (database_url, standby_url))
        pools.extend((primary, standby))
        routing = ReadRouting(primary, standby, 5.0, Metrics(), lambda: 100.0)
        routing.progress.update(Sample(100.0, 1), 1)
        return routing

    yield open_
    for each in pools:
        await each.close()


def reads(routing: ReadRouting) -> tuple[float, ...]:
    """Return the number of reads from the primary and from the standby."""
    registry = vars(routing)["_metrics"].registry
    servers = ("primary", "standby")
    return tuple(registry.get_sample_value("taskherd_api_reads_total", {"server": each}) or 0 for each in servers)


async def test_what_the_standby_does_not_find_is_read_from_the_primary(
    open_routing: OpenRouting, database_url: str
) -> None:
    """Another process may just have created it; the caller has then seen the newest state, and reads no older one."""
    routing = open_routing(database_url)
    reader = routing.reader(ALICE)
    assert [row["here"] for row in await reader.fetch(HERE, 7)] == [7]
    assert reads(routing) == (0, 1)
    assert not await reader.fetch(NOTHING, 7)
    assert reads(routing) == (1, 1)
    routing.progress.update(Sample(99.0, 2), 2)
    row = await reader.fetch_one(HERE, 8)
    assert (row["here"] if row else None, reads(routing)) == (8, (2, 1))
    assert await routing.reader(BOB).fetch_one(HERE, 9)
    assert reads(routing) == (2, 2)
    assert await reader.fetch_one(NOTHING, 8) is None


async def test_a_standby_that_fails_costs_no_read(open_routing: OpenRouting) -> None:
    """The read is executed by the primary, and the next ones too, without trying the standby again."""
    routing = open_routing(AWAY)
    for number in (1, 2):
        assert [row["here"] for row in await routing.reader(ALICE).fetch(HERE, number)] == [number]
        assert not routing.allows_standby(BOB)
    assert reads(routing) == (2, 0)
    assert "127.0.0.1:1: Connection refused" in (routing.problem or "")


async def test_a_server_that_is_no_standby_is_never_read(open_routing: OpenRouting, database_url: str) -> None:
    """A comparison finds it out, whatever was known before."""
    routing = open_routing(database_url)
    await routing.sample_once(vars(routing)["_standby"])
    assert routing.problem == "the server at database_read_url is not a standby"
    assert not routing.allows_standby(ALICE)
    registry = vars(routing)["_metrics"].registry
    assert registry.get_sample_value("taskherd_api_standby_lag_seconds") == float("inf")


async def test_writes_on_a_slow_primary_cost_no_connections(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their responses do not wait for its position, which is asked for once for several, until the statement ends."""
    monkeypatch.setattr(read_routing, "LSN_TIMEOUT", 0.05)
    proxy = await TcpProxy.before(database_url)
    primary, standby = (ReadPool(url, size=8, application_name="t") for url in (through(database_url, proxy), AWAY))
    routing = ReadRouting(primary, standby, 5.0, Metrics(), lambda: 100.0)
    try:
        await asyncio.gather(*(primary.fetch("SELECT pg_sleep(0.2)") for _ in range(read_routing.MAX_LSN_LOOKUPS)))
        assert proxy.accepted == read_routing.MAX_LSN_LOOKUPS
        proxy.delay = 0.3
        for _ in range(5):
            assert await asyncio.gather(*(routing.written_lsn() for _ in range(4))) == [replication.UNKNOWN_LSN] * 4
        proxy.delay = 0.0
        monkeypatch.setattr(read_routing, "LSN_TIMEOUT", 30.0)
        lsns = await asyncio.gather(*(routing.written_lsn() for _ in range(4)))
        assert len(set(lsns)) == 1
        assert 0 < (replication.parse_lsn(lsns[0] or "") or 0) < (replication.parse_lsn(replication.UNKNOWN_LSN) or 0)
        assert proxy.accepted == read_routing.MAX_LSN_LOOKUPS
    finally:
        await primary.close()
        await proxy.stop()


async def test_a_position_is_one_of_after_the_write(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is confirmed while others wait for theirs does not get one that was asked for before."""
    monkeypatch.setattr(read_routing, "LSN_TIMEOUT", 30.0)
    proxy = await TcpProxy.before(database_url)
    primary, standby, writer = (
        ReadPool(url, size=2, application_name="t") for url in (through(database_url, proxy), AWAY, database_url)
    )
    routing = ReadRouting(primary, standby, 5.0, Metrics(), lambda: 100.0)
    try:
        assert await routing.written_lsn()
        proxy.freeze_responses()
        earlier = asyncio.create_task(routing.written_lsn())
        for number in range(10):
            await writer.fetch(f"CREATE TABLE written_{number} (a int)")
        after = await writer.fetch_one("SELECT CAST(pg_current_wal_lsn() AS text) AS lsn")
        later = asyncio.create_task(routing.written_lsn())
        await asyncio.sleep(0)
        proxy.thaw()
        assert after is not None
        assert replication.parse_lsn(await later or "") >= replication.parse_lsn(after["lsn"])  # type: ignore[operator]
        await earlier
    finally:
        await primary.close()
        await writer.close()
        await proxy.stop()
