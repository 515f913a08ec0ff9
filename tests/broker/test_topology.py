from __future__ import annotations

import pytest
from aiormq.abc import AbstractChannel

from taskherd.broker import topology
from taskherd.broker.consume import Consumer, Source
from taskherd.broker.delivery import Delivery
from taskherd.broker.publish import OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from tests.broker.conftest import ConnectTo


async def test_declaring_again_changes_nothing(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> None:
    """The topology can be declared any number of times, and is found by who only looks."""
    channel = await connect_to(amqp_url, "test").channel()
    await topology.declare(channel, names)
    await topology.check(channel, names)


async def test_what_is_missing_is_named(amqp_url: str, amqp_prefix: str, connect_to: ConnectTo) -> None:
    """Who only looks is told what is not there and who declares it."""
    channel = await connect_to(amqp_url, "test").channel()
    with pytest.raises(Unavailable, match="topology apply"):
        await topology.check(channel, TopologyNames(amqp_prefix))


async def test_a_clash_names_the_setting(amqp_url: str, amqp_prefix: str, connect_to: ConnectTo) -> None:
    """A queue of ours that somebody declared differently is the installation's fault, and is said to be."""
    connection = connect_to(amqp_url, "test")
    names = TopologyNames(amqp_prefix)
    await (await connection.channel()).queue_declare(
        names.commands, durable=True, arguments={"x-queue-type": "classic"}
    )
    with pytest.raises(Misconfigured, match="TASKHERD_AMQP_PREFIX"):
        await topology.declare(await connection.channel(), names)


async def test_a_work_queue_takes_the_requests_of_its_target(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Requests reach the queue of their target, and only that."""
    channel = await connect_to(amqp_url, "runner").channel()
    queue = await topology.declare_work_queue(channel, names, "default")
    assert queue == f"{names.prefix}.work.default"
    assert (
        await publisher.publish(names.work, "workspace.start.default", b"{}", mandatory=True)
        is PublishOutcome.CONFIRMED
    )
    assert (
        await publisher.publish(names.work, "workspace.start.other", b"{}", mandatory=True) is PublishOutcome.UNROUTED
    )


async def test_an_own_queue_drops_the_oldest(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """A full own queue keeps the newest and refuses nothing."""
    channel = await connect_to(amqp_url, "reader").channel()
    queue = await topology.declare_exclusive_queue(channel, length=2, exchange=names.events, routing_keys=("task.*",))
    for n in range(5):
        assert (
            await publisher.publish(names.events, "task.updated", b"%d" % n, mandatory=True) is PublishOutcome.CONFIRMED
        )
    kept = [(await channel.basic_get(queue, no_ack=True, timeout=5)).body for _ in range(3)]
    assert kept == [b"3", b"4", b""]


async def test_partitions_lose_nothing_coming_or_going(
    *, names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Reports are spread over the partitions, all of a task on one, and back on the plain queue without them."""
    connection = connect_to(amqp_url, "test")
    channel = await connection.channel()
    partitions = [names.partition(index) for index in range(3)]

    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(queue, priority=5) for queue in names.report_queues(3)]

    consumer = Consumer(connection, prepare)
    try:
        try:
            await topology.declare(channel, names, 3)
        except Misconfigured as error:
            assert error.setting == "TASKHERD_REPORT_PARTITIONS"  # noqa: PT017 - a broker without the plugin
            return
        messages = [OutgoingMessage(names.reports, f"task {n}", b"%d" % n, mandatory=True) for n in range(60)] * 2
        assert set(await publisher.publish_many(messages)) == {PublishOutcome.CONFIRMED}
        consumer.start()
        got = await _take(consumer, 120)
        assert {each.queue for each in got} == set(partitions)
        assert len({(each.queue, each.body) for each in got}) == 60
        await topology.declare(channel, names, 1)
        assert await publisher.publish(names.reports, "task", b"x", mandatory=True) is PublishOutcome.CONFIRMED
        [plain] = await _take(consumer, 1)
        assert (plain.queue, plain.body) == (names.reports, b"x")
    finally:
        await consumer.close()
        channel = await connection.channel()
        for queue in partitions:
            await channel.queue_delete(queue)
        await channel.exchange_delete(names.report_hash)


async def _take(consumer: Consumer, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        batch = await consumer.batch(count, 0)
        assert await consumer.ack(batch)
        got += batch
    return got
