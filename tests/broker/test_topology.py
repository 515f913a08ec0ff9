from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from aiormq.abc import AbstractChannel
from pamqp.common import FieldTable

from taskherd.broker import topology
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.report_sender import ReportSender
from tests.broker.conftest import ConnectTo, ConsumeReports, until


async def test_declaring_is_idempotent(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """The topology can be declared repeatedly: no message is lost, each is routed once, and the check passes."""
    channel = await connect_to(amqp_url, "test").channel()
    queues = (names.reports, names.commands, names.claims)  # each bound to the exchange of the same name
    for queue in queues:
        assert await publisher.publish(queue, "before", b"1", mandatory=True) is PublishOutcome.CONFIRMED
    await topology.declare(channel, names)
    await topology.check(channel, names.exchanges, names.queues)
    for queue in queues:
        assert await publisher.publish(queue, "after", b"2", mandatory=True) is PublishOutcome.CONFIRMED
        received = [(await channel.basic_get(queue, no_ack=True, timeout=30)).body for _ in range(3)]
        assert received == [b"1", b"2", b""]


async def test_other_versions_declare_the_same(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> None:
    """They cannot start with what this one has declared in another way, or what it lacks."""
    channel = await connect_to(amqp_url, "test").channel()
    await topology.declare(channel, names, 2)
    await topology.declare_work_queue(channel, names, "pool")
    limited: FieldTable = {"x-delivery-limit": 200}
    dead_lettered: FieldTable = {**limited, "x-dead-letter-exchange": names.dead}
    partition: FieldTable = {**dead_lettered, "x-single-active-consumer": True}
    queues: dict[str, FieldTable] = {
        names.dead: {"x-delivery-limit": -1},
        names.reports: dead_lettered,
        names.commands: dead_lettered,
        names.claims: dead_lettered,
        f"{names.reports}.0": partition,
        f"{names.reports}.1": partition,
        f"{names.work}.pool": limited,
    }
    try:
        for queue, arguments in queues.items():
            quorum: FieldTable = {"x-queue-type": "quorum", **arguments}
            await channel.queue_declare(queue, durable=True, arguments=quorum, timeout=10)
        for name in ("dead", "reports", "commands", "claims", "events", "wakeups", "work"):
            exchange = f"{names.prefix}.{name}"
            await channel.exchange_declare(exchange, exchange_type="topic", durable=True, timeout=10)
        await channel.exchange_declare(
            f"{names.reports}.hash", exchange_type="x-consistent-hash", durable=True, timeout=10
        )
        assert not channel.is_closed, "the broker closes it when they differ"
    finally:
        channel = await connect_to(amqp_url, "cleaning up").channel()
        for queue in queues:
            await channel.queue_delete(queue)
        await channel.exchange_delete(f"{names.reports}.hash")


async def test_what_exists_and_who_consumes_is_known(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """Also of queues that are not there, without an error."""
    connection = connect_to(amqp_url, "test")
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    channel = await connection.channel()
    await until(partial(topology.has_consumer, channel, names.reports), bool)
    assert await topology.consumer_count(channel, names.reports) == await consumer.consumer_count() == 1
    assert not await topology.has_consumer(channel, names.commands)
    assert repr(await topology.consumer_count(channel, names.commands)) == "0", "a number, not False"
    assert not await topology.has_consumer(channel, "no such queue")
    with pytest.raises(Unavailable):
        await topology.consumer_count(await connection.channel(), "no such queue")
    for exchanges, queues, exist in (
        (names.exchanges, names.queues, True),
        ((), (), True),
        ((names.events, "no such exchange"), (), False),
        ((), (names.claims, "no such queue"), False),
    ):
        assert await topology.exist(await connection.channel(), exchanges, queues) is exist


async def test_the_check_names_what_is_missing(amqp_url: str, amqp_prefix: str, connect_to: ConnectTo) -> None:
    """The error of the check names the command that declares the topology."""
    channel = await connect_to(amqp_url, "test").channel()
    with pytest.raises(Unavailable, match="topology apply"):
        await topology.check(channel, TopologyNames(amqp_prefix).exchanges)


async def test_a_conflicting_queue_is_a_configuration_error(
    amqp_url: str, amqp_prefix: str, connect_to: ConnectTo
) -> None:
    """If a queue exists with other properties, the error names the setting for the prefix."""
    connection = connect_to(amqp_url, "test")
    names = TopologyNames(amqp_prefix)
    await (await connection.channel()).queue_declare(
        names.commands, durable=True, arguments={"x-queue-type": "classic"}
    )
    with pytest.raises(Misconfigured, match="TASKHERD_AMQP_PREFIX"):
        await topology.declare(await connection.channel(), names)


async def test_a_work_queue_receives_only_requests_for_its_target(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """A request is routed to the queue of its target and to no other queue."""
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


async def test_without_its_exchange_no_work_queue_is_declared(
    amqp_url: str, amqp_prefix: str, connect_to: ConnectTo
) -> None:
    """A queue that cannot be bound yet is not left behind unbound, since whoever finds it takes it for bound."""
    connection = connect_to(amqp_url, "runner")
    names = TopologyNames(amqp_prefix)
    with pytest.raises(Unavailable, match="topology apply"):
        await topology.declare_work_queue(await connection.channel(), names, "default")
    assert not await topology.exist(await connection.channel(), queues=[names.work_queue("default")])


async def test_an_exclusive_queue_drops_the_oldest(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """A full exclusive queue keeps the newest messages and rejects none."""
    channel = await connect_to(amqp_url, "reader").channel()
    queue = await topology.declare_exclusive_queue(channel, length=2, exchange=names.events, routing_keys=("task.*",))
    for n in range(5):
        assert (
            await publisher.publish(names.events, "task.updated", b"%d" % n, mandatory=True) is PublishOutcome.CONFIRMED
        )
    kept = [(await channel.basic_get(queue, no_ack=True, timeout=30)).body for _ in range(3)]
    assert kept == [b"3", b"4", b""]


@pytest.fixture
async def partitions(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> AsyncIterator[Consumer]:
    """Yield a consumer of three partitions, which are declared, and deleted afterwards."""
    connection = connect_to(amqp_url, "test")

    async def prepare(_: AbstractChannel) -> list[Source]:
        return [Source(queue, priority=5) for queue in names.report_queues(3)]

    consumer = Consumer(connection, prepare, prefetch=10)
    try:
        await topology.declare(await connection.channel(), names, 3)
        consumer.start()
        yield consumer
    finally:
        await consumer.close()
        channel = await connection.channel()
        for index in range(3):
            await channel.queue_delete(names.partition(index))
        await channel.exchange_delete(names.report_hash)


async def test_adding_and_removing_partitions_loses_no_report(
    *, names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, partitions: Consumer
) -> None:
    """Each task's reports go to one partition, and without partitions to the unpartitioned queue again."""
    messages = [OutgoingMessage(names.reports, f"task {n}", b"%d" % n, mandatory=True) for n in range(60)] * 2
    assert set(await publisher.publish_many(messages)) == {PublishOutcome.CONFIRMED}
    deliveries = await _consume(partitions, 120)
    assert {each.queue for each in deliveries} == {names.partition(index) for index in range(3)}
    assert len({(each.queue, each.body) for each in deliveries}) == 60
    await topology.declare(await connect_to(amqp_url, "test").channel(), names, 1)
    assert await publisher.publish(names.reports, "task", b"x", mandatory=True) is PublishOutcome.CONFIRMED
    [plain] = await _consume(partitions, 1)
    assert (plain.queue, plain.body) == (names.reports, b"x")


async def test_runners_share_the_partitions_and_each_keeps_to_one(
    names: TopologyNames, publisher: Publisher, partitions: Consumer, tmp_path: Path
) -> None:
    """All messages of a runner are in one partition, in the order sent; forty runners use all three."""
    senders = {f"r{n}": ReportSender(publisher, names, f"r{n}", Metrics(), pytest.fail) for n in range(40)}
    for number in range(2):
        for runner, sender in senders.items():
            Outbox(tmp_path / f"{runner}-{number}", Budget(10**9), sender.schedule).append([f'"{runner} {number}"'])
            await sender.flush()
    received: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for delivery in await _consume(partitions, 80):
        body = json.loads(delivery.body)
        received[body.split()[0]].append((delivery.queue, body))
    assert {runner: [body for _, body in found] for runner, found in received.items()} == {
        runner: [f"{runner} 0", f"{runner} 1"] for runner in senders
    }
    used = [{queue for queue, _ in found} for found in received.values()]
    assert {len(queues) for queues in used} == {1}
    assert set.union(*used) == {names.partition(index) for index in range(3)}


async def _consume(consumer: Consumer, count: int) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        batch = await consumer.next_batch(count, 0)
        assert await consumer.ack(batch)
        deliveries += batch
    return deliveries
