"""The primary is lost, and its standby is promoted by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskherd.dev.postgres import PostgresNode
from taskherd.store import migrate
from tests.chaos.fault_injection import add_workload, fault_under_load, send_slowly
from tests.harness.chaos import ChaosHarness, chaos_harness, until
from tests.harness.leader_proxy import LeaderProxy
from tests.harness.replication import StandbyNode, execute, running_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A primary, its standby, and a harness that reaches whichever leads through a proxy."""

    primary: PostgresNode
    standby: StandbyNode
    proxy: LeaderProxy
    harness: ChaosHarness

    async def wait_for_standby(self) -> None:
        """Let all commits wait for the standby from now on."""
        await execute(self.primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await execute(self.primary.url, "SELECT pg_reload_conf()")
        synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        await until(lambda: execute(self.primary.url, synchronous), lambda count: count == 1)

    async def promote(self) -> None:
        """Kill the primary, and let the standby take its place."""
        self.primary.kill()
        self.proxy.lead(None)
        await asyncio.to_thread(self.standby.start)  # unless it is running
        await asyncio.to_thread(self.standby.promote)
        self.proxy.lead(urlsplit(self.standby.url).port)


@pytest.fixture
async def pair(tmp_path: Path, amqp_url: str) -> AsyncIterator[Pair]:
    """Yield a primary that leads, and a standby that receives its changes asynchronously."""
    proxy = LeaderProxy()
    await proxy.start()
    with running_pair(tmp_path / "pair") as (primary, standby):
        address = urlsplit(primary.url)
        proxy.lead(address.port)
        url = primary.url.replace(f":{address.port}/", f":{proxy.port}/")
        await asyncio.to_thread(migrate.upgrade, url)
        async with chaos_harness(url, amqp_url, f"c{uuid.uuid4().hex[:8]}", tmp_path) as harness:
            yield Pair(primary, standby, proxy, harness)
        await proxy.stop()


async def test_nothing_acknowledged_is_lost_when_the_standby_is_promoted(pair: Pair) -> None:
    """If commits wait for the standby, the same worker goes on after the promotion, and nothing is lost."""
    harness = pair.harness
    await pair.wait_for_standby()
    worker = await harness.start()
    await worker.until_ready()
    async with fault_under_load(harness, "promotion", 0):
        await pair.promote()
        await harness.seconds_to_progress()
    await worker.until_ready()
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []


async def test_a_standby_that_is_behind_loses_what_was_acknowledged(pair: Pair) -> None:
    """If commits do not wait, those that the standby has not received are lost, and the ledger finds them."""
    harness = pair.harness
    worker = await harness.start()
    await worker.until_ready()
    pair.standby.kill()
    work = add_workload(harness, "asynchronous")
    await send_slowly(harness, work)
    await harness.until_settled()
    await worker.kill()
    await pair.promote()
    assert await harness.ledger.violations() != []
    assert harness.ledger.lost > 0
