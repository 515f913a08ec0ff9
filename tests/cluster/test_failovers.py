"""Failovers of PostgreSQL under load: nothing that was acknowledged is lost, and no worker needs to be restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from taskherd.api.context import LSN
from taskherd.store import role_settings
from tests.chaos.fault_injection import fault_under_load
from tests.chaos.figures import Figures
from tests.chaos.pair import Pair, replicated_pair
from tests.cluster import agents
from tests.cluster.etcd import EtcdMember
from tests.cluster.load import POST_TIMEOUT, steady_load
from tests.cluster.patroni import PatroniCluster, PatroniMember
from tests.harness.api import TLS, token_for
from tests.harness.chaos import ChaosHarness, WorkerProcess
from tests.harness.pgbouncer import recommended_settings, running_pgbouncer
from tests.harness.replication import execute

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MOVED_ON_WITHIN = 120.0
READ_INTERVAL = 0.2
WRITE_INTERVAL = 0.05
ENOUGH_READS = 20
LONGER_THAN_LEASES = 30.0
"""Seconds; Patroni's leases are valid for its ``ttl``, 20 s."""
STILL_FROZEN = 10.0
"""Seconds for which the former leader stays frozen while the new one serves."""
ANSWERED_WITHIN = 8.0
"""Seconds within which requests are answered then; behind a host that hangs, they would take all their time."""


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


async def _kill_etcd(cluster: PatroniCluster, leader: EtcdMember) -> None:
    """Kill the leader of etcd, and start it again once another leads."""
    leader.kill()
    await cluster.until_etcd_leader_other_than(leader)
    cluster.revive_etcd(leader)


async def _end_leases(cluster: PatroniCluster, _: EtcdMember) -> None:
    """Take its lock from PostgreSQL's leader, as an etcd may that was frozen and goes on."""
    await cluster.end_leases()


async def _freeze_etcd(cluster: PatroniCluster, leader: EtcdMember) -> None:
    """Freeze the leader of etcd for longer than its leases are valid, of which it then believes that they have expired.

    The other members have renewed them meanwhile, and PostgreSQL's leader its lock; etcd 3.5 may end them all the same.
    """
    leader.freeze()
    await cluster.until_etcd_leader_other_than(leader)
    await asyncio.sleep(LONGER_THAN_LEASES)
    leader.unfreeze()


ETCD_FAULTS: dict[str, tuple[Callable[[PatroniCluster, EtcdMember], Awaitable[None]], int]] = {
    "PostgreSQL stays, etcd leader killed, then back": (_kill_etcd, 1),
    "PostgreSQL stays, etcd ends all leases and with them the lock": (_end_leases, 3),
    "PostgreSQL stays, etcd leader frozen (SIGSTOP) for longer than its leases, then back": (_freeze_etcd, 3),
}
"""By row: what is done, and how often."""


BEHIND_PGBOUNCER = ["through PgBouncer (transaction)", "through PgBouncer (session)"]


@pytest.fixture(params=["directly", *BEHIND_PGBOUNCER])
async def settings(
    request: pytest.FixtureRequest, harness: ChaosHarness, tmp_path: Path, announce: Callable[[str], None]
) -> AsyncIterator[dict[str, str]]:
    """Yield the worker's settings; the PgBouncer is the one of ``deploy/cluster``, in either pool mode."""
    if request.param == "directly":
        yield {}
        return
    url, mode = harness.ledger.database_url, request.param.partition("(")[2].rstrip(")")
    await role_settings.apply(url)
    options = recommended_settings() | {"pool_mode": mode}
    async with running_pgbouncer(url, tmp_path / "pgbouncer", announce, **options) as bouncer:
        yield {"database_url": bouncer.url(pgbouncer=mode)}


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
            await cluster.until_healthy_under(new)
    await worker.until_ready()
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    mode = settings.get("database_url", "").partition("?pgbouncer=")[2]
    note = f"worker behind PgBouncer in {mode} mode" if mode else ""
    await figures.record_run(harness, f"{row}{note and ', '}{note}", faults=times, seconds=seconds)


@pytest.mark.parametrize("row", ETCD_FAULTS)
async def test_nothing_is_lost_if_etcd_changes_its_leader(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, row: str
) -> None:
    """PostgreSQL keeps its leader, although etcd may take its lock away, and every input is processed once."""
    fault, times = ETCD_FAULTS[row]
    worker = await harness.start()
    await worker.until_ready()
    seconds = []
    for number in range(times):
        leader = await cluster.until_healthy()
        async with fault_under_load(harness, row, number):
            await fault(cluster, await cluster.etcd_leader())
            ended_at = time.monotonic()
            await _until_progress(harness)
            seconds.append(time.monotonic() - ended_at)
            await cluster.until_healthy_under(leader)
    await worker.until_ready()
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    await figures.record_run(harness, row, faults=times, seconds=seconds)


@dataclass(slots=True)
class Reader:
    """A client that reads a task again and again; ``reads`` are those since ``mark`` was called."""

    client: httpx.AsyncClient
    path: str
    reads: list[tuple[int, float]] = field(default_factory=list)
    """Status and duration in seconds of each GET."""

    def mark(self) -> None:
        """Begin to measure."""
        self.reads = []

    async def read(self) -> None:
        """Read until canceled."""
        while True:
            reads, began = self.reads, time.monotonic()
            response = await self.client.get(self.path)
            reads.append((response.status_code, time.monotonic() - began))
            await asyncio.sleep(READ_INTERVAL)


@dataclass(frozen=True, slots=True)
class ClientView:
    """What clients of an API notice of a frozen leader; times in seconds since it was frozen."""

    elected: float
    """When another led."""
    served: float
    """When a GET and a POST were accepted again."""
    refused: int
    """Number of GETs and POSTs that were answered with 503 until then."""
    longest_until_served: float
    """Longest duration of a GET or POST that was answered until then."""
    longest_after: float
    """Longest duration of a GET or POST in the ``STILL_FROZEN`` seconds after that."""

    def __str__(self) -> str:
        return (
            f"another led after {self.elected:.1f} s, GETs and POSTs were served after {self.served:.1f} s (until then"
            f" {self.refused} were answered with 503, the longest took {self.longest_until_served:.1f} s), and none of"
            f" the next {STILL_FROZEN:g} s took longer than {self.longest_after:.1f} s"
        )


async def _freeze_leader_of_clients(harness: ChaosHarness, cluster: PatroniCluster, database_url: str) -> ClientView:
    """Freeze the leader while clients of an API read and write, until another has led for a while; lose nothing."""
    leader = await cluster.until_healthy()
    worker = await harness.start(database_url=database_url)
    api = await harness.start("api", database_url=database_url, api_port="0", api_rate_limit="0")
    for process in (worker, api):
        await process.until_ready()
    headers = {"Coder-Session-Token": await token_for(harness.ledger.database_url, "al")}
    async with (
        httpx.AsyncClient(base_url=_base_of(api), headers=headers, timeout=POST_TIMEOUT, verify=TLS) as client,
        steady_load(harness, client) as load,
    ):
        reader = Reader(client, f"/tasks/me/{load.tasks[0]}")
        reading = asyncio.create_task(reader.read())
        load.mark()
        started_at = time.monotonic()
        leader.freeze()
        try:
            new = await cluster.until_leader_other_than(leader)
            elected = time.monotonic() - started_at
            until_served = [*load.posts, *reader.reads]
            load.mark()
            reader.mark()
            async with asyncio.timeout(MOVED_ON_WITHIN):
                while not (_accepted(load.posts) and _accepted(reader.reads)):  # noqa: ASYNC110 - nobody notifies
                    await asyncio.sleep(0.05)
            served = time.monotonic() - started_at
            until_served += [*load.posts, *reader.reads]
            load.mark()
            reader.mark()
            await asyncio.sleep(STILL_FROZEN)
            assert load.refused == 0
            assert {status for status, _ in reader.reads} == {httpx.codes.OK}
            longest = max(seconds for _, seconds in (*load.posts, *reader.reads))
        finally:
            leader.unfreeze()
        await cluster.until_healthy_under(new)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await harness.until_settled()
    for process in (worker, api):
        await process.until_ready()
        await harness.stop_worker(process)
    assert await harness.ledger.violations() == []
    refused = sum(status == httpx.codes.SERVICE_UNAVAILABLE for status, _ in until_served)
    return ClientView(elected, served, refused, max(seconds for _, seconds in until_served), longest)


@pytest.mark.parametrize("row", ["PostgreSQL primary frozen (SIGSTOP), all hosts in the URL"])
async def test_clients_of_processes_that_know_all_hosts_wait_for_the_election_only(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, row: str
) -> None:
    """The frozen leader is the first host in the URL of worker and API: once another leads, reads and writes go on."""
    leader = await cluster.until_healthy()
    url = cluster.url_of_hosts(leader, urlsplit(harness.ledger.database_url).path[1:])
    view = await _freeze_leader_of_clients(harness, cluster, url)
    assert view.longest_after < ANSWERED_WITHIN, view
    note = f"worker and API know all members, the frozen one first; {view}"
    await figures.record_run(harness, row, faults=1, seconds=[view.served], note=note)


@pytest.mark.parametrize("row", ["PostgreSQL primary frozen (SIGSTOP), clients of an API"])
@pytest.mark.parametrize("settings", BEHIND_PGBOUNCER, indirect=True)
async def test_clients_of_an_api_behind_pgbouncer_wait_for_the_election_only(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, settings: dict[str, str], row: str
) -> None:
    """Worker and API are behind one PgBouncer, in either mode: once another leads, reads and writes go on."""
    view = await _freeze_leader_of_clients(harness, cluster, settings["database_url"])
    assert view.longest_after < ANSWERED_WITHIN, view
    mode = settings["database_url"].partition("?pgbouncer=")[2]
    row = f"{row}, which is behind PgBouncer in {mode} mode"
    await figures.record_run(harness, row, faults=1, seconds=[view.served], note=f"so is the worker; {view}")


@pytest.fixture
async def pair(tmp_path: Path, amqp_url: str) -> AsyncIterator[Pair]:
    """Yield a primary and a standby without Patroni."""
    async with replicated_pair(tmp_path, amqp_url) as pair:
        yield pair


@pytest.mark.parametrize("row", ["PostgreSQL standby promoted by hand, the primary frozen (SIGSTOP), then back"])
async def test_nothing_is_lost_if_the_standby_is_promoted_by_hand(pair: Pair, figures: Figures, row: str) -> None:
    """The standby of a frozen primary is promoted; the primary comes back as one, and nobody writes to it."""
    harness = pair.harness
    await pair.wait_for_standby()
    await pair.stop_vacuuming()
    worker = await harness.start()
    await worker.until_ready()
    async with fault_under_load(harness, row, 0):
        started_at = time.monotonic()
        pair.primary.freeze()
        try:
            await pair.promote()
            await _until_progress(harness)
            seconds = time.monotonic() - started_at
        finally:
            pair.primary.unfreeze()
        transaction = await pair.next_transaction_of_old_primary()
    await worker.until_ready()
    assert not await execute(pair.primary.url, "SELECT pg_is_in_recovery()"), "it believes that it leads"
    assert await pair.next_transaction_of_old_primary() == transaction, "it was written to"
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    note = "a primary and a synchronous standby without Patroni; the old primary got no transaction once it was back"
    await figures.record_run(harness, row, faults=1, seconds=[seconds], note=note)


@pytest.mark.parametrize("fault", ["PostgreSQL primary frozen (SIGSTOP) until another leads, then back"])
async def test_agents_live_through_it_and_those_that_die_are_found(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, fault: str
) -> None:
    """The lines of a runner's agents are there once and in order; those of a runner that dies meanwhile are lost."""
    leader = await cluster.until_healthy()
    worker = await harness.start(**agents.SETTINGS)
    api = await harness.start("api", api_port="0", api_rate_limit="0")
    for process in (worker, api):
        await process.until_ready()
    headers = {"Coder-Session-Token": await token_for(harness.ledger.database_url, "al")}
    async with (
        httpx.AsyncClient(base_url=_base_of(api), headers=headers, timeout=POST_TIMEOUT, verify=TLS) as client,
        agents.running_fleet(harness, client, harness.ledger.amqp_url) as fleet,
    ):
        await asyncio.gather(FAULTS[fault][0](cluster, leader), fleet.kill_runner())
        await cluster.until_healthy()
        for process in (worker, api):
            await process.until_ready()
        lost = await fleet.until_lost()
        lines = await fleet.end()
    for process in (worker, api):
        await harness.stop_worker(process)
    agents.record(figures, fault, lines, lost)


@dataclass(slots=True)
class Witness:
    """A client that labels a task at one API, and reads it from two: it must see its own labels, and none twice."""

    here: httpx.AsyncClient
    there: httpx.AsyncClient
    path: str
    written: int = 0
    """Number of the newest label that was confirmed."""
    seen: int = 0
    """Number of reads that were served."""

    async def run(self) -> None:
        """Write and read until canceled. Fail if a read shows less than was confirmed before it."""
        for number in count(1):
            response = await self.here.patch(f"{self.path}/labels", json={"labels": {"number": str(number)}})
            if response.status_code == httpx.codes.OK:
                self.written = number
                headers = {LSN: response.headers[LSN]}
                for client in (self.here, self.there):
                    await self._read(client, headers)
            else:
                assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
            await asyncio.sleep(WRITE_INTERVAL)

    async def clear(self) -> None:
        """Remove the label, which the ledger knows nothing of."""
        response = await self.here.patch(f"{self.path}/labels", json={"labels": {"number": None}})
        assert response.status_code == httpx.codes.OK, response.text

    async def _read(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        read = await client.get(self.path, headers=headers)
        if read.status_code == httpx.codes.OK:
            assert int(read.json()["labels"]["number"]) >= self.written
            self.seen += 1
        else:
            assert read.status_code == httpx.codes.SERVICE_UNAVAILABLE, read.text


@pytest.mark.parametrize(
    ("row", "promoted"),
    [
        ("PostgreSQL primary frozen (SIGSTOP), APIs read from the standby that is promoted", True),
        ("PostgreSQL primary frozen (SIGSTOP), APIs read from the standby that then follows the new primary", False),
    ],
)
async def test_no_read_from_a_standby_shows_less_than_what_was_confirmed(
    harness: ChaosHarness, cluster: PatroniCluster, figures: Figures, row: str, *, promoted: bool
) -> None:
    """Through a failover a client that writes at one API and reads at two sees what it wrote, whoever serves it."""
    leader = await cluster.until_healthy()
    standby = (await cluster.standbys())[0 if promoted else 1]
    database = urlsplit(harness.ledger.database_url).path[1:]
    url = cluster.url_of_hosts(leader, database)
    settings = {"database_url": url, "database_read_url": cluster.url_of_member(standby, database)}
    worker = await harness.start(database_url=url)
    apis = [await harness.start("api", **settings, api_port="0", api_rate_limit="0") for _ in range(2)]
    for process in (worker, *apis):
        await process.until_ready()
    headers = {"Coder-Session-Token": await token_for(harness.ledger.database_url, "al")}
    async with AsyncExitStack() as stack:
        here, there = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=_base_of(api), headers=headers, timeout=POST_TIMEOUT, verify=TLS)
            )
            for api in apis
        ]
        load = await stack.enter_async_context(steady_load(harness, here))
        witness = Witness(here, there, f"/tasks/me/{load.tasks[0]}")
        running = asyncio.create_task(witness.run())
        await _until_reads(apis[1], "standby", running)
        started_at = time.monotonic()
        leader.freeze()
        try:
            new = await cluster.until_leader_other_than(leader)
            written = witness.written
            async with asyncio.timeout(MOVED_ON_WITHIN):
                while witness.written == written and not running.done():  # noqa: ASYNC110 - nobody notifies
                    await asyncio.sleep(0.05)
            served = time.monotonic() - started_at
        finally:
            leader.unfreeze()
        assert (new is standby) is promoted
        await cluster.until_healthy_under(new)
        await _until_reads(apis[1], "primary" if promoted else "standby", running)
        running.cancel()
        assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], asyncio.CancelledError)
        await witness.clear()
    await harness.until_settled()
    for process in (worker, *apis):
        await process.until_ready()
        await harness.stop_worker(process)
    assert await harness.ledger.violations() == []
    note = f"{witness.written} labels written at one API; each of {witness.seen} reads at two showed the newest one"
    await figures.record_run(harness, row, faults=1, seconds=[served], note=note)


def _base_of(api: WorkerProcess) -> str:
    port = next(line["port"] for line in api.lines() if "ops_port" in line)
    return f"http://127.0.0.1:{port}/api/v2"


async def _reads(api: WorkerProcess, server: str) -> float:
    return await api.metric("taskherd_api_reads_total", server=server)


async def _until_reads(api: WorkerProcess, server: str, running: asyncio.Task[None]) -> None:
    """Wait until this server has served more of the API's reads, or the client has failed."""
    before = await _reads(api, server)
    async with asyncio.timeout(MOVED_ON_WITHIN):
        while await _reads(api, server) < before + ENOUGH_READS and not running.done():  # noqa: ASYNC110 - nobody notifies
            await asyncio.sleep(0.1)
    if running.done():
        await running


def _accepted(requests: Sequence[tuple[int, float]]) -> bool:
    return any(status in {httpx.codes.OK, httpx.codes.CREATED} for status, _ in requests)


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
