from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext

import pytest
from aiormq.channel import Channel

from taskherd.broker.consume import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.publish import OutgoingMessage, Publisher
from taskherd.broker.topology import TopologyNames
from tests.broker.conftest import ConnectTo, ConsumeReports, TcpRelay, until
from tests.library_versions import unsupported


@pytest.fixture(autouse=True, params=[None, "aiormq", "pamqp"], ids=["patched", "unpatched aiormq", "unpatched pamqp"])
def _libraries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each law of consuming holds with our patches, and with a library whose version they do not support."""
    with nullcontext() if request.param is None else unsupported(request.param):
        yield


async def _publish(publisher: Publisher, names: TopologyNames, count: int) -> None:
    await publisher.publish_many([OutgoingMessage(names.reports, "k", str(n).encode()) for n in range(count)])


async def _unacked_and_ready(channel: Channel, queue: str) -> int:
    """Return how many messages come back once every consumer is gone, by taking them all."""
    count = 0
    while (await channel.basic_get(queue, no_ack=True, timeout=5)).delivery.name == "Basic.GetOk":
        count += 1
    return count


async def test_batches_keep_order_and_bounds(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A batch holds at most what was asked for, in order, and the buffer never more than the prefetch."""
    await _publish(publisher, names, 250)
    consumer = consume_reports(connect_to(amqp_url, "consume"), prefetch=100)
    bodies: list[bytes] = []
    while len(bodies) < 250:
        batch = await consumer.batch(40, 0.02)
        assert 1 <= len(batch) <= 40
        assert consumer.buffered <= 100
        bodies += [each.body for each in batch]
        assert await consumer.ack(batch)
    assert bodies == [str(n).encode() for n in range(250)]


async def test_only_what_is_acked_stays_away(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """Acks out of order settle just the deliveries they name; the rest goes back to the queue."""
    await _publish(publisher, names, 10)
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    got: list[Delivery] = []
    while len(got) < 10:
        got += await consumer.batch(10, 0)
    assert await consumer.ack([got[7], got[3]])
    assert await consumer.ack(got[:5])
    assert await consumer.ack([got[0], got[7]])  # again, which the broker must not see
    await consumer.close()
    channel = await connect_to(amqp_url, "look").channel()
    assert await _unacked_and_ready(channel, names.reports) == 4


async def test_stop_leaves_what_is_buffered(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """After `stop` nothing new comes, what is buffered can be taken and acked, then batches are empty."""
    await _publish(publisher, names, 5)
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    first = await consumer.batch(1, 0)
    await consumer.stop()
    await publisher.publish(names.reports, "k", b"late")
    rest: list[Delivery] = []
    while batch := await consumer.batch(10, 0):
        rest += batch
    assert [each.body for each in first + rest] == [b"0", b"1", b"2", b"3", b"4"]
    assert await consumer.ack(first + rest)
    await consumer.close()
    channel = await connect_to(amqp_url, "look").channel()
    assert await _unacked_and_ready(channel, names.reports) == 1


async def test_a_waiting_batch_ends_with_stop(
    amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """`stop` wakes who waits for a batch."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    waiting = asyncio.create_task(consumer.batch(10, 1))
    await asyncio.sleep(0)
    await consumer.stop()
    assert await asyncio.wait_for(waiting, 5) == []


async def test_a_cut_connection_is_made_again(
    names: TopologyNames,
    publisher: Publisher,
    proxied: tuple[TcpRelay, str],
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
) -> None:
    """After a reset the consumer consumes again; old deliveries can't be acked, and come again."""
    proxy, url = proxied
    await _publish(publisher, names, 3)
    consumer = consume_reports(connect_to(url, "consume"))
    old: list[Delivery] = []
    while len(old) < 3:
        old += await consumer.batch(10, 0)
    proxy.cut()
    again: list[Delivery] = []
    while len(again) < 3:
        again += await consumer.batch(10, 0)
    assert not await consumer.ack(old)
    assert [each.body for each in again] == [b"0", b"1", b"2"]
    assert all(each.redelivered and each.delivery_count >= 1 for each in again)
    assert await consumer.ack(again)


async def test_what_comes_back_thrice_is_suspect(
    names: TopologyNames,
    publisher: Publisher,
    proxied: tuple[TcpRelay, str],
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
) -> None:
    """A message that was delivered three times before is flagged."""
    proxy, url = proxied
    await _publish(publisher, names, 1)
    consumer = consume_reports(connect_to(url, "consume"))
    seen = []
    for _ in range(4):
        [delivery] = await consumer.batch(10, 0)
        seen.append(delivery.possible_poison)
        if len(seen) < 4:
            proxy.cut()
            await until(_consuming(consumer), lambda consuming: not consuming)
    assert seen == [False, False, False, True]


def _consuming(consumer: Consumer) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return consumer.consuming

    return look


async def test_a_deleted_queue_is_declared_and_consumed_again(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """Deleting the queue under its consumer stops nothing for long."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await publisher.publish(names.reports, "k", b"before")
    [before] = await consumer.batch(10, 0)
    channel = await connect_to(amqp_url, "delete").channel()
    await channel.queue_delete(names.reports)
    await until(_consuming(consumer), lambda consuming: not consuming)
    await until(_consuming(consumer), bool)
    await publisher.publish(names.reports, "k", b"after", mandatory=True)
    [after] = await consumer.batch(10, 0)
    assert not await consumer.ack([before])
    assert after.body == b"after"
    assert await consumer.ack([after])


async def test_a_closed_channel_is_opened_again(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A channel that the broker closes, as it does for `consumer_timeout`, is replaced on the same connection."""
    connection = connect_to(amqp_url, "consume")
    consumer = consume_reports(connection)
    await _publish(publisher, names, 1)
    [old] = await consumer.batch(10, 0)
    assert consumer._current is not None
    await consumer._current.channel.basic_ack(999)  # unknown: 406, the code of consumer_timeout
    [again] = await consumer.batch(10, 0)
    assert connection.is_up
    assert again.body == old.body
    assert again.epoch != old.epoch
    assert await consumer.ack([again])


async def test_pause_stops_the_flow_and_resume_starts_it(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A paused consumer is no consumer, a resumed one is; the broker's own count says so."""
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await until(consumer.consumers, lambda count: count == 1)
    await consumer.pause()
    await until(consumer.consumers, lambda count: count == 0)
    await publisher.publish(names.reports, "k", b"x")
    await consumer.resume()
    await until(consumer.consumers, lambda count: count == 1)
    [got] = await consumer.batch(10, 0)
    assert await consumer.ack([got])
