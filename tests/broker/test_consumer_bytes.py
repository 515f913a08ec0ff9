"""Consuming within a number of bytes: whatever waits in a queue, only as much is held as fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext

import pytest
from aiormq.abc import AbstractChannel

from taskherd.broker import subscription
from taskherd.broker.consumer import MAX_BATCH_BYTES, Consumer
from taskherd.broker.delivery import MAX_BODY_BYTES, Delivery
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from tests.broker.conftest import ConnectTo, until
from tests.library_versions import unsupported

MAX_BYTES = 12 * MAX_BODY_BYTES
LARGE = 700_000


@pytest.fixture(autouse=True, params=[None, "aiormq"], ids=["patched", "unpatched aiormq"])
def _libraries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the patches, and with a library version that they do not support."""
    with nullcontext() if request.param is None else unsupported(request.param):
        yield


@asynccontextmanager
async def _consuming(
    connect_to: ConnectTo, url: str, names: TopologyNames, prefetch: int, max_bytes: int = MAX_BYTES
) -> AsyncIterator[Consumer]:
    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(names.reports)]

    consumer = Consumer(connect_to(url, "consume"), prepare, prefetch=prefetch, max_bytes=max_bytes)
    consumer.start()
    try:
        yield consumer
    finally:
        await consumer.close()


async def _publish(publisher: Publisher, names: TopologyNames, sizes: list[int], first: int = 0) -> None:
    """Publish a message of each size, which begins with its index, from ``first`` on."""
    bodies = [str(index).encode().ljust(size) for index, size in enumerate(sizes, first)]
    for start in range(0, len(bodies), 50):
        await publisher.publish_many([OutgoingMessage(names.reports, "k", body) for body in bodies[start : start + 50]])


def _indexes(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.body[:10]) for delivery in deliveries]


def _held(consumer: Consumer) -> Callable[[], Awaitable[int]]:
    """Return a function that reads how many deliveries are buffered."""

    async def read() -> int:
        return consumer.buffered

    return read


def _stopped(consumer: Consumer) -> Callable[[], Awaitable[bool]]:
    """Return a function that reads whether the only queue is not consumed because there is no room."""

    async def read() -> bool:
        [only] = consumer._subscriptions.values()
        return only.window.stopped

    return read


def _be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a consumer that refuses deliveries wait for all it may get: on a busy machine they come after any time."""
    monkeypatch.setattr(subscription, "QUIET", 60)
    monkeypatch.setattr(subscription, "MAX_REFUSING", 60)


async def test_small_messages_fill_the_prefetch(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """It grows to its maximum without redelivering a message or changing the order."""
    await _publish(publisher, names, [100] * 600)
    received: list[Delivery] = []
    async with _consuming(connect_to, amqp_url, names, prefetch=200) as consumer:
        await until(_held(consumer), lambda held: held == 200)
        while len(received) < 600:
            batch = await consumer.next_batch(40, 0)
            assert consumer.buffered + len(batch) <= 200
            received += batch
            assert await consumer.ack(batch)
    assert _indexes(received) == [*range(600)]
    assert not any(delivery.redelivered for delivery in received)


async def test_large_messages_are_held_as_far_as_they_fit(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come after many small ones are refused at first, and none is lost or comes before others."""
    sizes = [100] * 250 + [LARGE] * 60 + [100] * 250
    _be_patient(monkeypatch)
    await _publish(publisher, names, sizes)
    async with _consuming(connect_to, amqp_url, names, prefetch=200) as consumer:
        await until(_held(consumer), lambda held: held == 200)
        received = await consumer.next_batch(150, 0)
        assert await consumer.ack(received)
        await until(_stopped(consumer), bool)
        monkeypatch.undo()
        assert consumer.consuming
        while len(received) < len(sizes):
            batch = await consumer.next_batch(20, 0)
            assert sum(delivery.size for delivery in [*batch, *consumer._buffer]) <= MAX_BYTES
            received += batch
            assert await consumer.ack(batch)
    assert _indexes(received) == [*range(len(sizes))]
    assert max(delivery.delivery_count for delivery in received) == 1


async def test_what_is_refused_while_more_comes_stays_in_order(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ would return deliveries that reach a canceled consumer before older ones that were refused."""
    few, sizes = [100] * 50, [100] * 50 + [LARGE] * 100 + [100] * 50
    _be_patient(monkeypatch)
    await _publish(publisher, names, few)
    async with _consuming(connect_to, amqp_url, names, prefetch=50) as consumer, asyncio.TaskGroup() as group:
        await until(_held(consumer), lambda held: held == len(few))
        received = await consumer.next_batch(len(few), 0)
        assert await consumer.ack(received)
        group.create_task(_publish(publisher, names, sizes[len(few) :], first=len(few)))
        await until(_stopped(consumer), bool)
        monkeypatch.undo()
        while len(received) < len(sizes):
            batch = await consumer.next_batch(20, 0)
            received += batch
            assert await consumer.ack(batch)
    assert _indexes(received) == [*range(len(sizes))]


async def test_a_batch_has_a_number_of_bytes(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """It does not wait for more than fits, and one message always does."""
    await _publish(publisher, names, [LARGE] * 17)
    async with _consuming(connect_to, amqp_url, names, prefetch=200, max_bytes=40 * MAX_BODY_BYTES) as consumer:
        await until(_held(consumer), lambda held: held == 17)
        assert consumer.has_batch(1000)
        batch = await consumer.next_batch(1000, 600)
        assert len(batch) == MAX_BATCH_BYTES // LARGE
        rest = await consumer.next_batch(1000, 0)
        assert _indexes(batch + rest) == [*range(17)]
        assert await consumer.ack(batch + rest)


async def test_a_consumer_that_is_paused_while_it_has_too_much_stays_so(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Room for more does not end the pause; when it is over, the rest is delivered."""
    sizes = [100] * 250 + [LARGE] * 60
    await _publish(publisher, names, sizes)
    async with _consuming(connect_to, amqp_url, names, prefetch=200) as consumer:
        await until(_held(consumer), lambda held: held == 200)
        received = await consumer.next_batch(150, 0)
        assert await consumer.ack(received)
        await until(_stopped(consumer), bool)
        await consumer.pause()
        assert not consumer.consuming
        while consumer.buffered:
            batch = await consumer.next_batch(20, 0)
            received += batch
            assert await consumer.ack(batch)
        await until(consumer.consumer_count, lambda count: count == 0)
        assert not consumer.consuming
        assert len(received) < len(sizes)
        await consumer.resume()
        while len(received) < len(sizes):
            batch = await consumer.next_batch(20, 0)
            received += batch
            assert await consumer.ack(batch)
    assert _indexes(received) == [*range(len(sizes))]
