"""Consuming: batches, acks, pausing, stopping, and reconnecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext

import pytest
from aiormq.abc import AbstractChannel
from aiormq.channel import Channel
from structlog.testing import capture_logs

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from tests.broker.conftest import ConnectTo, ConsumeReports, until
from tests.harness.tcp_proxy import TcpProxy
from tests.library_versions import unsupported


@pytest.fixture(autouse=True, params=[None, "aiormq", "pamqp"], ids=["patched", "unpatched aiormq", "unpatched pamqp"])
def _libraries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the patches, and with a library version that they do not support."""
    with nullcontext() if request.param is None else unsupported(request.param):
        yield


async def _publish(publisher: Publisher, names: TopologyNames, count: int) -> None:
    await publisher.publish_many([OutgoingMessage(names.reports, "k", str(n).encode()) for n in range(count)])


async def _drain(channel: Channel, queue: str) -> int:
    """Remove all messages from a queue that has no consumer, and return their number."""
    count = 0
    while (await channel.basic_get(queue, no_ack=True, timeout=30)).delivery.name == "Basic.GetOk":
        count += 1
    return count


async def test_batches_keep_order_and_limits(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A batch has at most ``limit`` deliveries, in order, and the buffer never more than the prefetch."""
    await _publish(publisher, names, 250)
    consumer = consume_reports(connect_to(amqp_url, "consume"), prefetch=100)
    bodies: list[bytes] = []
    while len(bodies) < 250:
        batch = await consumer.next_batch(40, 0.02)
        assert 1 <= len(batch) <= 40
        assert consumer.buffered <= 100
        bodies += [each.body for each in batch]
        assert await consumer.ack(batch)
    assert bodies == [str(n).encode() for n in range(250)]


async def test_a_batch_waits_until_it_has_enough(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A batch waits for more deliveries until it has enough, not until it has reached its limit."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await _publish(publisher, names, 2)
    taking = asyncio.create_task(consumer.next_batch(100, 600, 5))
    await until(_buffered(consumer), lambda buffered: buffered == 2)
    assert not taking.done()
    await _publish(publisher, names, 3)
    async with asyncio.timeout(20):
        batch = await taking
    assert len(batch) == 5
    assert await consumer.ack(batch)


async def test_a_batch_waits_for_no_more_than_one_queue_may_deliver(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Of several queues each delivers its share of the prefetch, so one with a backlog does not wait for the rest."""
    async with _two_queues(connect_to(amqp_url, "consume"), names) as consumer:
        await _publish(publisher, names, 6)
        async with asyncio.timeout(30):
            batch = await consumer.next_batch(100, 600, 8)
        assert len(batch) == 4
        assert await consumer.ack(batch)


async def test_a_batch_without_a_minimum_waits_for_its_limit(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """All that one of two queues may deliver does not end its wait, which somebody has set."""
    async with _two_queues(connect_to(amqp_url, "consume"), names) as consumer:
        await _publish(publisher, names, 4)
        taking = asyncio.create_task(consumer.next_batch(5, 600))
        await until(_buffered(consumer), lambda buffered: buffered == 4)
        assert not taking.done()
        await publisher.publish(names.claims, "k", b"the fifth")
        assert len(await asyncio.wait_for(taking, 30)) == 5


@asynccontextmanager
async def _two_queues(connection: SupervisedConnection, names: TopologyNames) -> AsyncIterator[Consumer]:
    """Run a consumer of two queues with a prefetch of eight, four for each."""

    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(names.claims), Source(names.reports)]

    consumer = Consumer(connection, prepare, prefetch=8)
    consumer.start()
    try:
        yield consumer
    finally:
        await consumer.close()


def _buffered(consumer: Consumer) -> Callable[[], Awaitable[int]]:
    """Return a function that reads how many deliveries are buffered."""

    async def read() -> int:
        return consumer.buffered

    return read


async def test_only_acked_deliveries_are_removed(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """Acks in any order remove exactly the named deliveries; the others return to the queue."""
    await _publish(publisher, names, 10)
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    deliveries: list[Delivery] = []
    while len(deliveries) < 10:
        deliveries += await consumer.next_batch(10, 0)
    assert await consumer.ack([deliveries[7], deliveries[3]])
    assert await consumer.ack(deliveries[:5])
    assert await consumer.ack([deliveries[0], deliveries[7]])  # repeated; the broker must not receive them
    await consumer.close()
    channel = await connect_to(amqp_url, "look").channel()
    assert await _drain(channel, names.reports) == 4


async def test_stop_keeps_the_buffer(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """After ``stop`` nothing new arrives, buffered deliveries can be processed and acked, then batches are empty."""
    await _publish(publisher, names, 5)
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    first = await consumer.next_batch(1, 0)
    await consumer.stop()
    await publisher.publish(names.reports, "k", b"late")
    remaining: list[Delivery] = []
    while batch := await consumer.next_batch(10, 0):
        remaining += batch
    assert [each.body for each in first + remaining] == [b"0", b"1", b"2", b"3", b"4"]
    assert await consumer.ack(first + remaining)
    await consumer.close()
    channel = await connect_to(amqp_url, "look").channel()
    assert await _drain(channel, names.reports) == 1


async def test_stop_ends_a_waiting_batch(amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports) -> None:
    """``stop`` wakes a task that waits for a batch."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    waiting = asyncio.create_task(consumer.next_batch(10, 1))
    await asyncio.sleep(0)
    await consumer.stop()
    assert await asyncio.wait_for(waiting, 30) == []


async def test_consuming_resumes_after_the_connection_is_cut(
    names: TopologyNames,
    publisher: Publisher,
    proxied: tuple[TcpProxy, str],
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
) -> None:
    """After a reset the consumer subscribes again; old deliveries cannot be acked and are redelivered."""
    proxy, url = proxied
    await _publish(publisher, names, 3)
    consumer = consume_reports(connect_to(url, "consume"))
    old: list[Delivery] = []
    while len(old) < 3:
        old += await consumer.next_batch(10, 0)
    proxy.cut()
    again: list[Delivery] = []
    while len(again) < 3:
        again += await consumer.next_batch(10, 0)
    assert not await consumer.ack(old)
    assert [each.body for each in again] == [b"0", b"1", b"2"]
    assert all(each.redelivered and each.delivery_count >= 1 for each in again)
    assert await consumer.ack(again)


async def test_a_message_redelivered_three_times_is_possible_poison(
    names: TopologyNames,
    publisher: Publisher,
    proxied: tuple[TcpProxy, str],
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
) -> None:
    """A message is flagged when its delivery failed three times before."""
    proxy, url = proxied
    await _publish(publisher, names, 1)
    consumer = consume_reports(connect_to(url, "consume"))
    flags = []
    for _ in range(4):
        [delivery] = await consumer.next_batch(10, 0)
        flags.append(delivery.possible_poison)
        if len(flags) < 4:
            proxy.cut()
            await until(_consuming(consumer), lambda consuming: not consuming)
    assert flags == [False, False, False, True]


def _consuming(consumer: Consumer) -> Callable[[], Awaitable[bool]]:
    async def read() -> bool:
        return consumer.consuming

    return read


async def test_a_deleted_queue_is_declared_and_consumed_again(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """If the queue is deleted, the consumer declares it and subscribes again."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await publisher.publish(names.reports, "k", b"before")
    [before] = await consumer.next_batch(10, 0)
    channel = await connect_to(amqp_url, "delete").channel()
    await channel.queue_delete(names.reports)
    await until(_consuming(consumer), lambda consuming: not consuming)
    await until(_consuming(consumer), bool)
    await publisher.publish(names.reports, "k", b"after", mandatory=True)
    [after] = await consumer.next_batch(10, 0)
    assert not await consumer.ack([before])
    assert after.body == b"after"
    assert await consumer.ack([after])


async def test_a_closed_channel_is_opened_again(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A channel that the broker closes, as it does for ``consumer_timeout``, is replaced on the same connection."""
    connection = connect_to(amqp_url, "consume")
    consumer = consume_reports(connection)
    await _publish(publisher, names, 1)
    [old] = await consumer.next_batch(10, 0)
    [subscription] = consumer._subscriptions.values()
    await subscription.channel.basic_ack(999)  # unknown: 406, the code of consumer_timeout
    [again] = await consumer.next_batch(10, 0)
    assert connection.is_up
    assert again.body == old.body
    assert again.epoch != old.epoch
    assert await consumer.ack([again])


async def test_a_lost_queue_is_consumed_again(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> None:
    """On a channel of its own, and no other is lost; unless it is declared itself, all sources are found again."""
    asked: list[str] = []

    async def ensure() -> None:
        asked.append("claims")

    async def prepare(_: AbstractChannel) -> list[Source]:
        asked.append("sources")
        return [Source(names.claims, None, ensure), Source(names.reports)]

    async def epochs() -> dict[str, int]:
        return {each.source.queue: epoch for epoch, each in consumer._subscriptions.items() if each.consuming}

    async def lose(queue: str) -> None:
        """Have the broker close the channel of a queue, as it does for ``consumer_timeout``."""
        (lost,) = (each for each in consumer._subscriptions.values() if each.source.queue == queue)
        await lost.channel.basic_ack(999)
        await until(epochs, lambda found: len(found) == 2 and lost not in consumer._subscriptions.values())
        assert lost.channel.is_closed

    consumer = Consumer(connect_to(amqp_url, "consume"), prepare, prefetch=30)
    consumer.start()
    try:
        first = await until(epochs, lambda found: len(found) == 2)
        assert asked == ["sources", "claims"]
        await lose(names.claims)
        second = await epochs()
        assert asked == ["sources", "claims", "claims"]
        assert (second[names.claims] > first[names.claims], second[names.reports]) == (True, first[names.reports])
        await lose(names.reports)
        third = await epochs()
        assert asked == ["sources", "claims", "claims", "sources"]
        assert (third[names.claims], third[names.reports] > second[names.reports]) == (second[names.claims], True)
        consumer.resubscribe()
        await until(epochs, lambda found: len(found) == 2 and not {*found.values()} & {*third.values()})
        assert asked[4:].count("sources") >= 1
    finally:
        await consumer.close()


async def test_pause_unsubscribes_and_resume_subscribes(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """The broker counts no consumer while it is paused, and one after it resumed."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await until(consumer.consumer_count, lambda count: count == 1)
    await consumer.pause()
    await until(consumer.consumer_count, lambda count: count == 0)
    await publisher.publish(names.reports, "k", b"x")
    await consumer.resume()
    await until(consumer.consumer_count, lambda count: count == 1)
    [delivery] = await consumer.next_batch(10, 0)
    assert await consumer.ack([delivery])


async def test_a_queue_that_is_out_of_reach_holds_up_no_other(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """With one queue whose check hangs and one that cannot be consumed, the third one delivers."""
    other = await connect_to(amqp_url, "other").channel()
    locked = (await other.queue_declare(exclusive=True, timeout=5)).queue or ""
    answered = asyncio.Event()

    async def ensure() -> None:
        """Hang, as a declaration does while a node of the cluster hangs."""
        await answered.wait()

    async def exists() -> None:
        """Find the queue."""

    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(names.claims, None, ensure), Source(locked, None, exists), Source(names.reports, None, exists)]

    consumer = Consumer(connect_to(amqp_url, "consume"), prepare, prefetch=30)
    consumer.start()
    try:
        await publisher.publish(names.reports, "k", b"goes on")
        [delivery] = await consumer.next_batch(10, 0)
        assert (delivery.body, await consumer.ack([delivery]), consumer.consuming) == (b"goes on", True, False)
        answered.set()
        await publisher.publish(names.claims, "k", b"is back")
        [delivery] = await consumer.next_batch(10, 0)
        assert (delivery.body, delivery.queue) == (b"is back", names.claims)
    finally:
        await consumer.close()


@pytest.mark.parametrize("problem", [Unavailable("a node hangs"), Misconfigured("queue", "has other arguments")])
async def test_a_queue_that_cannot_be_ensured_is_tried_again(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, problem: Exception
) -> None:
    """The problem with a queue is told, and once it is gone the queue is consumed, without any other being lost."""
    problems, told = [problem], list[str]()

    async def ensure() -> None:
        if problems:
            raise problems.pop()

    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(names.reports, None, ensure)]

    consumer = Consumer(connect_to(amqp_url, "consume"), prepare, prefetch=30, on_error=told.append)
    consumer.start()
    try:
        await publisher.publish(names.reports, "k", b"at last")
        [delivery] = await asyncio.wait_for(consumer.next_batch(10, 0), 30)
        assert (delivery.body, await consumer.ack([delivery])) == (b"at last", True)
        assert told == [str(problem)]
    finally:
        await consumer.close()


@pytest.mark.parametrize("failing", ["prepare", "ensure"])
async def test_an_unexpected_error_leaves_no_queue_without_a_consumer(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, failing: str
) -> None:
    """It is logged with its traceback, and what has failed is tried again."""
    problems, told = {failing: RuntimeError("unexpected")}, list[str]()

    async def ensure() -> None:
        if "ensure" in problems:
            raise problems.pop("ensure")

    async def prepare(_: AbstractChannel) -> list[Source]:
        if "prepare" in problems:
            raise problems.pop("prepare")
        return [Source(names.reports, None, ensure)]

    consumer = Consumer(connect_to(amqp_url, "consume"), prepare, prefetch=30, on_error=told.append)
    with capture_logs() as logged:
        consumer.start()
        try:
            await publisher.publish(names.reports, "k", b"at last")
            [delivery] = await asyncio.wait_for(consumer.next_batch(10, 0), 30)
            assert (delivery.body, await consumer.ack([delivery])) == (b"at last", True)
        finally:
            await consumer.close()
    failed = {"prepare": "consumer on consume", "ensure": f"consumer of {names.reports}"}[failing]
    assert [(each["failed"], each["exc_info"]) for each in logged] == [(failed, True)]
    assert not told
