"""Nodes of RabbitMQ are lost under load: nothing is lost or doubled, and nobody waits for the broken node."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest

from tests.chaos.figures import Figures
from tests.cluster import agents
from tests.cluster.haproxy import RABBITMQ, Server, running_haproxy
from tests.cluster.load import POST_TIMEOUT, steady_load
from tests.cluster.network import CLUSTER
from tests.cluster.rabbitmq import MachineNode, RabbitCluster, rabbit_cluster
from tests.harness.api import TLS, token_for
from tests.harness.chaos import ChaosHarness, WorkerProcess, chaos_harness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

HANGS = 70.0
"""Seconds for which a node hangs; RabbitMQ declares it down after 45 to 75 s (``net_ticktime``)."""
CUT_FOR = 90.0
"""Seconds for which a node is cut off: until it is surely declared down, and has paused."""
DOWN_FOR = 10.0
BEFORE = 5.0
AFTER = 10.0
"""Seconds of load before a fault, and after everything is healthy again."""


async def _hang(_cluster: RabbitCluster, node: MachineNode) -> None:
    """Freeze the node, and let it go on."""
    node.freeze()
    try:
        await asyncio.sleep(HANGS)
    finally:
        node.unfreeze()


async def _partition(cluster: RabbitCluster, node: MachineNode) -> None:
    """Cut the node off from the others while clients reach all of them."""
    cluster.network.cut(node.machine, CLUSTER)
    try:
        await asyncio.sleep(CUT_FOR)
    finally:
        cluster.network.join(node.machine, CLUSTER)


async def _kill(_cluster: RabbitCluster, node: MachineNode) -> None:
    """Kill the node, and start it again after a while."""
    node.kill()
    await asyncio.sleep(DOWN_FOR)
    await asyncio.to_thread(node.start)


async def _restart_all(cluster: RabbitCluster, node: MachineNode) -> None:
    """Restart one node after the other, as for an upgrade, the leader first."""
    for each in (node, *(other for other in cluster.nodes if other is not node)):
        await asyncio.to_thread(each.stop)
        await asyncio.to_thread(each.start)
        await cluster.until_healthy()


Fault: TypeAlias = Callable[[RabbitCluster, MachineNode], Awaitable[None]]
"""A function that breaks the node that leads all queues, and mends it."""

FAULTS: dict[str, Fault] = {
    "RabbitMQ leader frozen (SIGSTOP) for 70 s": _hang,
    "RabbitMQ leader partitioned from the other nodes for 90 s": _partition,
    "RabbitMQ leader kill -9, then back": _kill,
    "RabbitMQ rolling restart of all nodes": _restart_all,
}
"""By row: what is done."""

TOLD_WITHIN = 30.0
"""Maximum number of seconds between two events: RabbitMQ's election of new leaders, 12 to 16 s, on a busy machine."""
ANSWERED_WITHIN = 20.0
"""Maximum number of seconds of a POST: TASKHERD_API_COMMAND_TIMEOUT is 10 s."""


@pytest.fixture(scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, announce: Callable[[str], None]
) -> AsyncIterator[RabbitCluster]:
    """Yield a RabbitMQ cluster of three nodes."""
    async with rabbit_cluster(tmp_path_factory.mktemp("rabbitmq"), announce) as cluster:
        yield cluster


@pytest.fixture(params=["directly", "through HAProxy"])
def proxy(
    request: pytest.FixtureRequest, cluster: RabbitCluster, tmp_path: Path, announce: Callable[[str], None]
) -> Iterator[str]:
    """Yield the address of a proxy in front of the cluster, or "" for clients that know all nodes."""
    if request.param == "directly":
        yield ""
        return
    servers = [Server(node.address) for node in cluster.nodes]
    with running_haproxy(tmp_path / "haproxy", RABBITMQ, servers, announce) as address:
        yield address


@dataclass(frozen=True, slots=True)
class System:
    """Two workers and an API on the cluster; unless there is a proxy, one worker and the API are on ``leader``."""

    harness: ChaosHarness
    leader: MachineNode
    workers: list[WorkerProcess]
    api: WorkerProcess
    client: httpx.AsyncClient


@pytest.fixture
def worker_settings() -> dict[str, str]:
    """Return the settings of the workers; tests replace them."""
    return {}


@pytest.fixture
async def system(
    cluster: RabbitCluster, proxy: str, database_url: str, tmp_path: Path, worker_settings: dict[str, str]
) -> AsyncIterator[System]:
    """Yield a running system on a database and AMQP prefix of its own."""
    await cluster.until_healthy()

    def url_from(node: MachineNode) -> str:
        return cluster.url_of(proxy) if proxy else cluster.url_from(node)

    first, prefix = cluster.nodes[0], f"c{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        harness = await stack.enter_async_context(
            chaos_harness(database_url, url_from(first), prefix, tmp_path, ledger_url=first.url)
        )
        await cluster.until_healthy()
        leader = await cluster.leader_of(harness.names.reports)
        other = cluster.nodes[cluster.nodes.index(leader) - 1]
        workers = [await harness.start(amqp_url=url_from(node), **worker_settings) for node in (leader, other)]
        limits = {"api_port": "0", "api_rate_limit": "0"}
        api = await harness.start("api", amqp_url=url_from(leader), **limits)
        for process in (*workers, api):
            await process.until_ready()
        port = next(line["port"] for line in api.lines() if "ops_port" in line)
        headers = {"Coder-Session-Token": await token_for(database_url, "al")}
        base = f"http://127.0.0.1:{port}/api/v2"
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=base, headers=headers, timeout=POST_TIMEOUT, verify=TLS)
        )
        yield System(harness, leader, workers, api, client)


@pytest.mark.parametrize("row", FAULTS)
async def test_nothing_is_lost_and_nobody_waits(
    system: System, cluster: RabbitCluster, proxy: str, figures: Figures, row: str
) -> None:
    """The node that leads all queues breaks under load; events go on, and in the end every input is processed once."""
    harness = system.harness
    async with steady_load(harness, system.client) as load:
        await asyncio.sleep(BEFORE)
        load.mark()
        await FAULTS[row](cluster, system.leader)
        await cluster.until_healthy()
        await asyncio.sleep(AFTER)
    await harness.until_settled()
    late = await load.entries_out_of_order()
    redelivered = 0.0
    for process in (*system.workers, system.api):
        await process.until_ready()
    for worker in system.workers:
        redelivered += await worker.metric("taskherd_redeliveries_total")
    for process in (*system.workers, system.api):
        await harness.stop_worker(process)
    assert await harness.ledger.violations() == []
    note = (
        f"events at most {load.gap:.1f} s apart; {len(load.posts)} POSTs, the longest {load.longest_post:.1f} s,"
        f" {load.refused:.1%} answered with 503; {late} log entries out of order"
    )
    assert late == 0
    assert load.gap <= TOLD_WITHIN, note
    assert load.longest_post <= ANSWERED_WITHIN, note
    name = f"{row}, behind HAProxy" if proxy else row
    await figures.record_run(harness, name, faults=1, redelivered=redelivered, note=note)


@pytest.mark.parametrize("worker_settings", [agents.SETTINGS], ids=[""])
@pytest.mark.parametrize("proxy", ["directly"], indirect=True)
@pytest.mark.parametrize("fault", [row for row in FAULTS if "rolling" not in row])
async def test_agents_live_through_it_and_those_that_die_are_found(
    system: System, cluster: RabbitCluster, figures: Figures, fault: str
) -> None:
    """The lines of a runner's agents are there once and in order; those of a runner that dies meanwhile are lost."""
    async with agents.running_fleet(system.harness, system.client, cluster.url_from(system.leader)) as fleet:
        await asyncio.gather(FAULTS[fault](cluster, system.leader), fleet.kill_runner(BEFORE))
        await cluster.until_healthy()
        for process in (*system.workers, system.api):
            await process.until_ready()
        lost = await fleet.until_lost()
        lines = await fleet.end()
    for process in (*system.workers, system.api):
        await system.harness.stop_worker(process)
    agents.record(figures, fault, lines, lost)
