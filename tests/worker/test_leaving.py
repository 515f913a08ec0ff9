"""A worker leaves cleanly, also without its database or its broker."""

from __future__ import annotations

import asyncio
import os
import sys

from taskherd.broker.publisher import OutgoingMessage
from taskherd.dev import ports
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import SECRET, TIMEOUT, external_harness, running_worker


async def test_a_worker_that_waits_for_its_database_exits_with_0_on_sigterm(amqp_url: str) -> None:
    """SIGTERM ends the wait for an unreachable database, and is not a failure."""
    environment = {
        "TASKHERD_DATABASE_URL": f"postgresql://taskherd:nobody@127.0.0.1:{ports.find_free([None])[0]}/taskherd",
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_OPS_PORT": "0",
    }
    command = (sys.executable, "-m", "taskherd", "worker")
    worker = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    assert worker.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        while b"database unavailable" not in await worker.stderr.readline():
            continue
        worker.terminate()
        await worker.stderr.read()
        assert await worker.wait() == 0


async def test_a_worker_deregisters_although_its_replies_cannot_be_sent(
    database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """In an outage of the broker, replies that wait take none of the time that it needs to leave."""
    count = "SELECT count(*) FROM workers"
    proxy = await TcpProxy.before(amqp_url)
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        harness.urls = (database_url, through(amqp_url, proxy))
        async with running_worker(harness, grace=25) as worker:
            await harness.until_row(count, is_=1)
            await proxy.stop()
            for number in range(10):
                worker._replies.offer(OutgoingMessage("", "a caller that has gone", str(number).encode()))
        assert await harness.database.fetchval(count) == 0
