from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.runner.hello import check_queues
from tests.harness.runner import eventually, runner_harness
from tests.harness.worker import external_harness, running_worker

pytestmark = pytest.mark.timeout(180)


async def test_a_runner_waits_until_a_worker_declares_its_queues(
    database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> None:
    """It is not ready and says what it waits for; once a worker is there it takes work by itself."""
    async with (
        external_harness(database_url, amqp_url, amqp_prefix) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        starting = asyncio.create_task(harness.start())
        log = tmp_path / "runner-0.log"
        await eventually(lambda: log.exists() and "waiting for a worker to declare" in log.read_text())
        assert not starting.done()
        async with running_worker(worker):
            await starting
            task_id = await harness.task("say:up", "sleep")
            await harness.until_output(task_id, "up")
            assert worker.reasons() == []
        await worker.channel.queue_delete(f"{amqp_prefix}.work.default", timeout=30)


async def test_queues_without_an_exchange_of_claims_are_not_used(amqp_url: str, amqp_prefix: str) -> None:
    """No worker could answer a claim then; the error names what does not exist."""
    names = TopologyNames(amqp_prefix)
    queue = names.work_queue("r-1")
    connection = SupervisedConnection(amqp_url, "test")
    connection.start()
    try:
        channel = await connection.channel()
        await channel.queue_declare(queue, exclusive=True, timeout=30)
        with pytest.raises(Unavailable, match=names.claims):
            await check_queues(connection, names, [queue])
        await channel.exchange_declare(names.claims, timeout=30)
        await check_queues(connection, names, [queue])
        missing = names.work_queue("r-2")
        with pytest.raises(Unavailable, match=missing):
            await check_queues(connection, names, [queue, missing])
        await channel.exchange_delete(names.claims, timeout=30)
    finally:
        await connection.close()
