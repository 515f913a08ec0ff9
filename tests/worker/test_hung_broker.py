"""A worker whose broker hangs consumes from another node of the cluster."""

from __future__ import annotations

import asyncio

from taskherd.broker.connection import HEARTBEAT
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import TIMEOUT, WorkerHarness, running_worker


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
            while (await external.queue_counts("reports"))[1] < 2:  # noqa: ASYNC110 - the broker does not notify
                await asyncio.sleep(0.05)
        assert good.accepted >= 1
        assert asyncio.get_running_loop().time() - began < 2 * HEARTBEAT
        hung.thaw()
    await hung.stop()
    await good.stop()
