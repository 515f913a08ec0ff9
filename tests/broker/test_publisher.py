"""Publishing with confirms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partialmethod
from urllib.parse import urlsplit

import pytest
from aiormq.channel import Channel

from taskherd.broker import publisher as publishers
from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import MAX_IN_FLIGHT, OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo, ConsumeReports, until
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy, through


async def test_a_mandatory_message_is_routed_or_returned(names: TopologyNames, publisher: Publisher) -> None:
    """The outcome states whether a mandatory message was routed; other messages are just confirmed."""
    assert await publisher.publish(names.reports, "k", b"{}", mandatory=True) is PublishOutcome.CONFIRMED
    assert await publisher.publish(names.events, "unbound", b"{}", mandatory=True) is PublishOutcome.UNROUTED
    assert await publisher.publish(names.events, "unbound", b"{}") is PublishOutcome.CONFIRMED


async def test_many_messages_keep_their_order_and_outcomes(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """Messages published together arrive in order, and outcomes match messages by index."""
    messages = [
        OutgoingMessage(names.reports if n % 10 else names.events, "k", str(n).encode(), mandatory=True)
        for n in range(1000)
    ]
    outcomes = await publisher.publish_many(messages)
    assert outcomes == [PublishOutcome.CONFIRMED if n % 10 else PublishOutcome.UNROUTED for n in range(1000)]
    consumer = consume_reports(connect_to(amqp_url, "consume"), prefetch=2000)
    deliveries: list[Delivery] = []
    while len(deliveries) < 900:
        deliveries += await consumer.next_batch(1000, 0)
    assert [int(each.body) for each in deliveries] == [n for n in range(1000) if n % 10]
    ids = {each.properties.message_id for each in deliveries}
    assert len(ids) == 900


async def test_an_unknown_exchange_fails_only_its_own_message(names: TopologyNames, publisher: Publisher) -> None:
    """A publish that closes the channel raises; the next one opens a new channel."""
    with pytest.raises(Unavailable, match="NOT_FOUND"):
        await publisher.publish(f"{names.prefix}.nowhere", "k", b"{}")
    assert await publisher.publish(names.reports, "k", b"{}") is PublishOutcome.CONFIRMED


async def test_an_expired_message_is_dropped(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo
) -> None:
    """``expiration`` is in seconds."""
    channel = await connect_to(amqp_url, "look").channel()
    queue = await topology.declare_exclusive_queue(channel, length=10, exchange=names.events, routing_keys=("#",))
    await publisher.publish(names.events, "k", b"short", expiration=0.05)
    await publisher.publish(names.events, "k", b"long", expiration=60)

    async def first() -> bytes:
        message = await channel.basic_get(queue, timeout=30)
        await channel.basic_reject(message.delivery_tag or 0)
        return message.body

    await until(first, lambda body: body == b"long")


async def test_publishing_fails_when_the_connection_is_cut_and_recovers(
    names: TopologyNames, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """Publishing on a lost connection raises ``Unavailable``, not ``CancelledError``, and works after the reconnect."""
    proxy, url = proxied
    publisher = Publisher(connect_to(url, "publish"))
    await publisher.publish(names.reports, "k", b"{}")
    proxy.freeze()
    stuck = [asyncio.create_task(publisher.publish(names.reports, "k", b"{}")) for _ in range(5)]
    await asyncio.sleep(0.05)
    proxy.cut()
    proxy.thaw()
    outcomes = await asyncio.gather(*stuck, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
    await until(lambda: _try(publisher, names), lambda outcome: outcome is PublishOutcome.CONFIRMED)


async def _try(publisher: Publisher, names: TopologyNames) -> PublishOutcome | None:
    try:
        return await publisher.publish(names.reports, "k", b"{}")
    except Unavailable:
        return None


@pytest.mark.slow
async def test_a_frozen_connection_is_dropped(
    names: TopologyNames, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """While the broker is frozen, publishing raises within seconds; it works when the broker answers again."""
    proxy, url = proxied
    connection = connect_to(url, "publish")
    publisher = Publisher(connection)
    await publisher.publish(names.reports, "k", b"{}")
    proxy.freeze()
    loop = asyncio.get_running_loop()
    began = loop.time()
    outcomes = await publisher.publish_many([OutgoingMessage(names.reports, "k", b"{}")] * 20)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert loop.time() - began < 8
    proxy.thaw()
    await until(lambda: _try(publisher, names), lambda outcome: outcome is PublishOutcome.CONFIRMED)


async def test_cancellation_is_not_swallowed(
    names: TopologyNames, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """Cancelling a task that is publishing cancels it."""
    proxy, url = proxied
    publisher = Publisher(connect_to(url, "publish"))
    await publisher.publish(names.reports, "k", b"{}")
    proxy.freeze()
    stuck = asyncio.create_task(publisher.publish(names.reports, "k", b"{}"))
    await asyncio.sleep(0.05)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    proxy.thaw()


@pytest.fixture
async def not_listening(amqp_url: str, free_port: int) -> AsyncIterator[tuple[TcpProxy, str]]:
    """Yield a proxy in front of the broker that is to be started on its port, and the broker's URL through it."""
    target = urlsplit(amqp_url)
    proxy = TcpProxy(target.hostname or "", target.port or 0)
    proxy.port = free_port
    yield proxy, through(amqp_url, proxy)
    await proxy.stop()


@pytest.mark.parametrize("number", [20, 300])
async def test_without_a_broker_all_are_refused_at_the_same_time(
    names: TopologyNames,
    not_listening: tuple[TcpProxy, str],
    connect_to: ConnectTo,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """Also those that get no slot; none of them waits for the others. Later ones are published."""
    limit = 1.0
    proxy, url = not_listening
    publisher = Publisher(connect_to(url, "publish"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with monkeypatch.context() as limits:
        limits.setattr(publishers, "REQUEST_TIMEOUT", limit)
        limits.setattr(SupervisedConnection, "wait_up", partialmethod(SupervisedConnection.wait_up, limit))
        async with asyncio.timeout(15 * limit):
            outcomes = await asyncio.gather(
                *(publisher.publish(names.reports, "k", b"{}") for _ in range(number)), return_exceptions=True
            )
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
    assert loop.time() - began < 3 * limit
    await proxy.start(port=proxy.port)
    await until(lambda: _try(publisher, names), lambda outcome: outcome is PublishOutcome.CONFIRMED)
    together = await publisher.publish_many([OutgoingMessage(names.reports, "k", b"{}")] * MAX_IN_FLIGHT)
    assert together == [PublishOutcome.CONFIRMED] * MAX_IN_FLIGHT, "each slot is free again"


async def test_who_waits_for_a_channel_publishes_when_the_broker_returns(
    names: TopologyNames, not_listening: tuple[TcpProxy, str], connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on the one channel that they wait for together, also if the first of them has left meanwhile."""
    proxy, url = not_listening
    connection = connect_to(url, "publish")
    open_channel, openings = connection.channel, list[bool]()

    async def channel(*, confirms: bool = False) -> Channel:
        openings.append(confirms)
        return await open_channel(confirms=confirms)

    monkeypatch.setattr(connection, "channel", channel)
    publisher = Publisher(connection)
    waiting = [asyncio.create_task(publisher.publish(names.reports, "k", b"{}")) for _ in range(20)]
    await eventually(lambda: bool(openings), 30)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    assert waiting[0].cancelled()
    await proxy.start(port=proxy.port)
    assert await asyncio.gather(*waiting[1:]) == [PublishOutcome.CONFIRMED] * 19
    assert openings == [True]
