"""How many messages and consumers queues have, of those that exist."""

from __future__ import annotations

import asyncio

import pytest

from taskherd.broker import queue_depths
from taskherd.broker.diagnostics import QueueInfo
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo, ConsumeReports, until
from tests.harness.tcp_proxy import TcpProxy, through

DELAY = 0.05
"""Seconds by which each answer of the broker is late."""


async def test_queues_that_do_not_exist_are_left_out(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """The broker closes the channel on which one was missing; those after it are still read."""
    connection = connect_to(amqp_url, "test")
    await publisher.publish_many([OutgoingMessage(names.claims, "k", b"x") for _ in range(3)])
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await until(consumer.consumer_count, lambda count: count == 1)
    asked = ["no such queue", names.reports, "nor this one", names.claims, names.claims]
    assert await queue_depths.read(connection, asked) == {
        names.reports: QueueInfo(names.reports, 0, 1),
        names.claims: QueueInfo(names.claims, 3, 0),
    }


async def test_many_queues_are_looked_at_together(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """256 partitions do not take 256 times as long as one, with a broker whose answers take their time."""
    await publisher.publish_many([OutgoingMessage(names.claims, "k", b"x")])
    proxy = await TcpProxy.before(amqp_url)
    connection = connect_to(through(amqp_url, proxy), "test")
    await connection.wait_up()
    proxy.delay = DELAY
    began = asyncio.get_running_loop().time()
    found = await queue_depths.read(connection, [names.claims, *(f"no partition {number}" for number in range(255))])
    took = asyncio.get_running_loop().time() - began
    proxy.delay = 0
    assert found == {names.claims: QueueInfo(names.claims, 1, 0)}
    assert took < 256 * DELAY / 2
    await connection.close()
    await proxy.stop()


async def test_depths_need_a_broker(connect_to: ConnectTo) -> None:
    """Without one it is an outage, not an empty answer."""
    with pytest.raises(Unavailable):
        await asyncio.wait_for(queue_depths.read(connect_to("amqp://127.0.0.1:1/", "test"), ["any"]), 30)
