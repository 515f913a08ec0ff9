"""A worker whose broker hangs consumes from another node of the cluster."""

from __future__ import annotations

import asyncio

from taskherd.broker.connection import HEARTBEAT
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import TIMEOUT, WorkerHarness, running_worker


async def fewest_consumers(harness: WorkerHarness) -> int:
    """Return the number of consumers of the queue of reports or that of commands; the broker still counts hung ones."""
    return min([(await harness.queue_counts(queue))[1] for queue in ("reports", "commands")])


async def test_a_worker_leaves_a_hung_broker_before_heartbeats_are_missed(
    external: WorkerHarness, amqp_url: str
) -> None:
    """When its probes do not come back, the worker checks the connection that it consumes from, and drops it."""
    hung, good = await TcpProxy.before(amqp_url), await TcpProxy.before(amqp_url)
    database_url, _ = external.urls
    external.urls = (database_url, through(amqp_url, hung, good))
    async with running_worker(external, grace=1):
        await external.create()
        assert good.accepted == 0
        hung.freeze()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(TIMEOUT):
            while not good.accepted or await fewest_consumers(external) < 2:  # noqa: ASYNC110 - it sends no events
                await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - began < 2 * HEARTBEAT
        hung.thaw()
    await hung.stop()
    await good.stop()


async def test_a_worker_leaves_a_broker_that_hangs_for_commands_alone(external: WorkerHarness, amqp_url: str) -> None:
    """All probes come back, because reports come from elsewhere, and it consumes commands again all the same."""
    proxy = await TcpProxy.before(amqp_url)
    database_url, _ = external.urls
    external.urls = (database_url, through(amqp_url, proxy))
    async with running_worker(external, grace=1):
        await external.create()
        proxy.freeze_those(b" consume")
        began = asyncio.get_running_loop().time()
        await external.until_metric(1, "taskherd_reconnects_total", connection="consume")
        assert asyncio.get_running_loop().time() - began < 2 * HEARTBEAT
        while (await external.queue_counts("commands"))[1] < 2:
            assert asyncio.get_running_loop().time() - began < TIMEOUT
        assert external.metric("taskherd_reconnects_total", connection="reports") == 0
        proxy.thaw()
    await proxy.stop()
