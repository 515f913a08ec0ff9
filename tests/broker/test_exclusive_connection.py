"""A connection with a single consumer is not read while its batch waits for more deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.topology import TopologyNames
from tests.broker.conftest import ConnectTo, ConsumeReports, until
from tests.harness.tcp_proxy import TcpProxy

ENOUGH = 20

BODIES = [str(number).encode() for number in range(6)]

Take = Callable[[Consumer, float], Awaitable["asyncio.Task[list[Delivery]]"]]
Consume = Callable[..., Consumer]


@pytest.fixture
def consume(amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports) -> Consume:
    """Return a function that starts a consumer of the reports, by default with a connection of its own."""
    defaults = {"exclusive": True}
    return lambda **options: consume_reports(connect_to(amqp_url, "reports"), **{**defaults, **options})


@pytest.fixture
async def take(names: TopologyNames, publisher: Publisher) -> AsyncIterator[Take]:
    """Yield a function that has a batch wait so many seconds for ``ENOUGH``, with one delivery, after others came."""
    taking: list[asyncio.Task[list[Delivery]]] = []

    async def start(consumer: Consumer, wait: float) -> asyncio.Task[list[Delivery]]:
        taking.append(asyncio.create_task(consumer.next_batch(100, wait, ENOUGH)))
        await publisher.publish(names.reports, "k", b"0")
        await until(lambda: _buffered(consumer), lambda buffered: buffered == 1)
        await publisher.publish_many([OutgoingMessage(names.reports, "k", str(n).encode()) for n in range(1, 6)])
        return taking[-1]

    yield start
    for each in taking:
        each.cancel()
    await asyncio.gather(*taking, return_exceptions=True)


async def _buffered(consumer: Consumer) -> int:
    return consumer.buffered


async def _rest(consumer: Consumer, batch: list[Delivery]) -> list[bytes]:
    """Return the bodies of this batch and of those after it, until there are six."""
    while len(batch) < 6:
        batch = batch + await consumer.next_batch(100, 0)
    assert await consumer.ack(batch)
    return [each.body for each in batch]


async def test_what_comes_while_a_batch_waits_is_read_at_the_end(
    names: TopologyNames, take: Take, publisher: Publisher, consume: Consume
) -> None:
    """When the time has ended everything comes, in order, and later deliveries too."""
    consumer = consume()
    taking = await take(consumer, 1.0)
    assert await _rest(consumer, await asyncio.wait_for(taking, 30)) == BODIES
    await publisher.publish(names.reports, "k", b"later")
    [later] = await consumer.next_batch(100, 0)
    assert later.body == b"later"
    assert await consumer.ack([later])


@pytest.mark.parametrize("options", [{"prefetch": 2 * ENOUGH - 1}, {"exclusive": False}], ids=str)
async def test_what_may_keep_the_broker_from_sending_is_read(
    take: Take, consume: Consume, options: dict[str, Any]
) -> None:
    """With a small prefetch, or with other users of the connection, deliveries are read while the batch waits."""
    consumer = consume(**options)
    taking = await take(consumer, 600.0)
    await until(lambda: _buffered(consumer), lambda buffered: buffered == 6)
    assert not taking.done()
    await consumer.stop()
    assert await _rest(consumer, await asyncio.wait_for(taking, 30)) == BODIES


async def test_nothing_is_read_until_stop_which_ends_the_wait(
    names: TopologyNames, take: Take, consume: Consume, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Whatever was in the socket when a worker begins to stop is processed and acknowledged, not redelivered."""
    consumer = consume()
    taking = await take(consumer, 600.0)
    look = await connect_to(amqp_url, "look").channel()

    async def ready() -> int:
        return (await look.queue_declare(names.reports, passive=True)).message_count or 0

    await until(ready, lambda count: count == 0)
    assert consumer.buffered == 1, "RabbitMQ has sent the others"
    assert not taking.done()
    await asyncio.wait_for(consumer.stop(), 30)
    assert await _rest(consumer, await asyncio.wait_for(taking, 30)) == BODIES


async def test_a_loss_while_nothing_is_read_is_noticed_afterwards(
    proxied: tuple[TcpProxy, str], take: Take, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A connection that is lost in the meantime is made again, and all deliveries come once more."""
    proxy, url = proxied
    consumer = consume_reports(connect_to(url, "reports"), exclusive=True)
    taking = await take(consumer, 0.5)
    proxy.cut()
    first = await asyncio.wait_for(taking, 30)
    again = await asyncio.wait_for(consumer.next_batch(100, 0), 30) if first[0].epoch == 1 else first
    assert await _rest(consumer, again) == BODIES
    assert all(each.redelivered for each in again[:1])
