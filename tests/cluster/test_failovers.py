"""Failovers of PostgreSQL under load: nothing that was acknowledged is lost, and no worker needs to be restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from taskherd.store import role_settings
from tests.chaos.fault_injection import fault_under_load
from tests.chaos.figures import Figures
from tests.cluster.patroni import PatroniCluster, PatroniMember
from tests.harness.chaos import ChaosHarness
from tests.harness.pgbouncer import recommended_settings, running_pgbouncer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MOVED_ON_WITHIN = 120.0


async def _kill(cluster: PatroniCluster, leader: PatroniMember) -> PatroniMember:
    """Kill the leader's machine, and start it again after the failover."""
    leader.kill()
    new = await cluster.until_leader_other_than(leader)
    cluster.revive(leader)
    return new


async def _freeze(cluster: PatroniCluster, leader: PatroniMember) -> PatroniMember:
    """Freeze the leader's machine, and let it go on after the failover, still believing that it leads."""
    leader.freeze()
    new = await cluster.until_leader_other_than(leader)
    leader.unfreeze()
    return new


async def _kill_postgres(cluster: PatroniCluster, leader: PatroniMember) -> PatroniMember:
    """Kill the leader's PostgreSQL alone; its Patroni gives up the lock and brings it back as a standby."""
    leader.kill_postgres()
    return await cluster.until_leader_other_than(leader)


async def _switch_over(cluster: PatroniCluster, leader: PatroniMember) -> PatroniMember:
    """Move the leader as before maintenance."""
    await cluster.switch_over(leader)
    return await cluster.until_leader_other_than(leader)


Fault: TypeAlias = Callable[[PatroniCluster, PatroniMember], Awaitable[PatroniMember]]
"""A function that makes another member the leader, and returns it."""

FAULTS: dict[str, tuple[Fault, int]] = {
    "PostgreSQL primary killed with its Patroni, then back": (_kill, 2),
    "PostgreSQL primary frozen (SIGSTOP) until another leads, then back": (_freeze, 2),
    "PostgreSQL primary's PostgreSQL killed alone": (_kill_postgres, 1),
    "PostgreSQL planned switchover": (_switch_over, 1),
}
"""By row: what is done, and how often."""


@pytest.fixture(params=["directly", "through PgBouncer"])
async def settings(
    request: pytest.FixtureRequest, harness: ChaosHarness, tmp_path: Path, announce: Callable[[str], None]
) -> AsyncIterator[dict[str, str]]:
    """Yield the worker's settings; the PgBouncer is the one of ``deploy/cluster``."""
    if request.param == "directly":
        yield {}
        return
    url, options = harness.ledger.database_url, recommended_settings()
    await role_settings.apply(url)
    async with running_pgbouncer(url, tmp_path / "pgbouncer", announce, **options) as bouncer:
        yield {"database_url": bouncer.url(pgbouncer=options["pool_mode"])}


@pytest.mark.parametrize("row", FAULTS)
async def test_nothing_is_lost_in_a_failover(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, settings: dict[str, str], row: str
) -> None:
    """The leader is lost under load; the same worker goes on with the new one, and every input is processed once."""
    fault, times = FAULTS[row]
    worker = await harness.start(**settings)
    await worker.until_ready()
    seconds = []
    for number in range(times):
        leader = await cluster.until_healthy()
        async with fault_under_load(harness, row, number):
            started_at = time.monotonic()
            new = await fault(cluster, leader)
            assert new is not leader
            await _until_progress(harness)
            seconds.append(time.monotonic() - started_at)
            assert await cluster.until_healthy() is new, "no second failover"
    await worker.until_ready()
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    note = "worker behind PgBouncer" if settings else ""
    await figures.record_run(harness, f"{row}{note and ', '}{note}", faults=times, seconds=seconds)


async def _until_progress(harness: ChaosHarness) -> None:
    """Wait until the new leader has committed an entry that it had not committed at first, or has them all."""
    first: int | None = None
    async with asyncio.timeout(MOVED_ON_WITHIN):
        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                committed = await harness.committed_entries()
                first = committed if first is None else first
                if committed > first or committed >= harness.expected_entries():
                    return
            await asyncio.sleep(0.05)
