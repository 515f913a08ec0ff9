from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.runner.hello import check_queues, count_consumers
from tests.harness.runner import eventually, eventually_async, runner_harness
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


async def test_the_consumers_of_a_queue_are_counted(amqp_url: str, amqp_prefix: str) -> None:
    """RabbitMQ lets a quorum queue have two that are exclusive, so a runner cannot keep its name by being one."""
    names = TopologyNames(amqp_prefix)
    connection = SupervisedConnection(amqp_url, "test")
    connection.start()
    channels = [await connection.channel() for _ in range(2)]
    await channels[0].exchange_declare(names.work, exchange_type="topic", durable=True, timeout=30)
    queue = await topology.declare_work_queue(channels[0], names, "r-1")
    try:
        assert await count_consumers(connection, queue) == 0
        for channel in channels:
            await channel.basic_consume(queue, ignore, exclusive=True, timeout=30)
        await eventually_async(partial(count_consumers, connection, queue), (2).__eq__)
        await channels[0].close()
        await eventually_async(partial(count_consumers, connection, queue), (1).__eq__)
        await channels[1].queue_delete(queue, timeout=30)
        with pytest.raises(Unavailable, match=queue):
            await count_consumers(connection, queue)
        await channels[1].exchange_delete(names.work, timeout=30)
    finally:
        await connection.close()


async def ignore(_: object) -> None:
    """Leave a message unacknowledged."""
