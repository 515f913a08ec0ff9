"""Probes of many report queues."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiormq.abc import AbstractChannel

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.publisher import Publisher
from taskherd.broker.subscription import Source
from taskherd.broker.unconfirmed import UnconfirmedPublisher
from taskherd.clock import Clock
from taskherd.observability.metrics import Metrics
from taskherd.worker.probe import Probe
from tests.harness.tcp_proxy import TcpProxy, through

PARTITIONS = 256
CONFIRM_DELAY = 0.03
"""Seconds until a confirm arrives, as with quorum queues on several nodes; 256 of them take longer than a probe may."""

PROBE_TIMEOUT = 5.0


async def test_probes_of_256_partitions_are_sent_together(amqp_url: str, amqp_prefix: str) -> None:
    """A worker's queues count as drained although the confirms of all probes, one by one, would exceed the timeout."""
    proxy = await TcpProxy.before(amqp_url)
    publishing = SupervisedConnection(through(amqp_url, proxy), "probes of a test")
    consuming = SupervisedConnection(amqp_url, "partitions of a test")
    queues = [f"{amqp_prefix}.partition.{number}" for number in range(PARTITIONS)]

    async def declare(channel: AbstractChannel) -> Sequence[Source]:
        await asyncio.gather(*(channel.queue_declare(queue, exclusive=True) for queue in queues))
        return [Source(queue) for queue in queues]

    async def fail() -> None:
        raise AssertionError

    consumer = Consumer(consuming, declare, prefetch=PARTITIONS)
    probe = Probe(Publisher(publishing), UnconfirmedPublisher(publishing), Metrics(), Clock().now, fail)

    async def answer() -> None:
        while deliveries := await consumer.next_batch(PARTITIONS, 0):
            for delivery in deliveries:
                probe.reply(delivery)
            await consumer.ack(deliveries)

    for connection in (publishing, consuming):
        connection.start()
    consumer.start()
    answering = asyncio.create_task(answer())
    try:
        async with asyncio.timeout(30):
            while not consumer.consuming:  # noqa: ASYNC110 - subscribing sends no notification
                await asyncio.sleep(0.02)
        proxy.delay = CONFIRM_DELAY
        assert await probe.probe_once(queues, PROBE_TIMEOUT)
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await consuming.close()
        await publishing.close()
        await proxy.stop()
