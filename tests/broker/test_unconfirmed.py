"""Messages without confirms: nobody waits for them, and their number is bounded."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.channel import Channel

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.broker import unconfirmed
from taskherd.broker.publisher import OutgoingMessage
from taskherd.broker.unconfirmed import MAX_TOGETHER, UnconfirmedPublisher
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy


@pytest.mark.parametrize("bound", ["number", "size"])
async def test_waiting_messages_are_bounded_and_sent_before_the_end(
    amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Of those offered while nothing is sent, the newest are kept, and sent in order before ``run`` ends."""
    if bound == "size":
        monkeypatch.setattr(unconfirmed, "MAX_BYTES", len(b"first" + b"second"))
    reader = await connect_to(amqp_url, "reader").channel()
    queue = (await reader.queue_declare(exclusive=True, timeout=5)).queue or ""
    publisher = UnconfirmedPublisher(connect_to(amqp_url, "unconfirmed"), max_waiting=2 if bound == "number" else 100)
    for body in (b"dropped", b"first", b"second"):
        publisher.offer(OutgoingMessage("", queue, body))
    publisher.stop()
    await asyncio.wait_for(publisher.run(), 20)
    async with asyncio.timeout(20):
        received: list[bytes] = []
        while len(received) < 2:
            message = await reader.basic_get(queue, no_ack=True, timeout=30)
            received += [message.body] if message.delivery.name == "Basic.GetOk" else []
    assert received == [b"first", b"second"]


async def test_sending_goes_on_after_an_outage(
    amqp_url: str, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """When the connection is lost, later messages are sent on a new one."""
    proxy, url = proxied
    reader = await connect_to(amqp_url, "reader").channel()
    queue = (await reader.queue_declare(exclusive=True, timeout=5)).queue or ""
    publisher = UnconfirmedPublisher(connect_to(url, "unconfirmed"))
    running = asyncio.create_task(publisher.run())

    async def until_received(body: bytes) -> None:
        async with asyncio.timeout(30):
            while True:
                publisher.offer(OutgoingMessage("", queue, body))
                if (await reader.basic_get(queue, no_ack=True, timeout=30)).body == body:
                    return
                await asyncio.sleep(0.02)

    try:
        await until_received(b"before")
        proxy.cut()
        await until_received(b"after")
    finally:
        publisher.stop()
        await asyncio.wait_for(running, 20)


async def test_without_a_connection_the_oldest_message_is_dropped(
    amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more; each failure is told, and what is left is sent as soon as there is a connection."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0, 0))
    reader = await connect_to(amqp_url, "reader").channel()
    queue = (await reader.queue_declare(exclusive=True, timeout=5)).queue or ""
    connection = connect_to(amqp_url, "unconfirmed")
    open_channel, failures = connection.channel, ["no broker", "still no broker"]

    async def channel(*, confirms: bool = False) -> Channel:
        if failures:
            raise Unavailable(failures.pop(0))
        return await open_channel(confirms=confirms)

    monkeypatch.setattr(connection, "channel", channel)
    told: list[str] = []
    publisher = UnconfirmedPublisher(connection, told.append)
    for body in (b"first", b"second", b"third", b"fourth"):
        publisher.offer(OutgoingMessage("", queue, body))
    running = asyncio.create_task(publisher.run())
    received: list[bytes] = []
    async with asyncio.timeout(20):
        while len(received) < 2:
            message = await reader.basic_get(queue, no_ack=True, timeout=30)
            received += [message.body] if message.delivery.name == "Basic.GetOk" else []
    assert received == [b"third", b"fourth"]
    assert told == ["no broker", "still no broker"]
    publisher.stop()
    await asyncio.wait_for(running, 20)


async def test_a_connection_that_takes_nothing_is_left(
    proxied: tuple[TcpProxy, str], connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written to it would stay in memory beside what waits; a new connection takes what comes later."""
    monkeypatch.setattr(unconfirmed, "REQUEST_TIMEOUT", 1.0)
    monkeypatch.setattr(retry, "OUTAGE", Backoff(0, 0))
    proxy, url = proxied
    connection = connect_to(url, "unconfirmed")
    failed, told = asyncio.Event(), list[str]()

    def on_error(reason: str) -> None:
        told.append(reason)
        failed.set()

    publisher = UnconfirmedPublisher(connection, on_error)
    running = asyncio.create_task(publisher.run())
    try:
        publisher.offer(OutgoingMessage("", "gone", b"first"))
        await eventually(lambda: publisher._channel is not None and not publisher._waiting, 30)
        stuck = connection._connection
        proxy.freeze()
        for _ in range(MAX_TOGETHER):  # more than the buffers of the sockets have room for
            publisher.offer(OutgoingMessage("", "gone", bytes(256 * 1024)))
        async with asyncio.timeout(60):
            await failed.wait()
        assert told[0] == "publishing without a confirm: no answer in time"
        proxy.thaw()
        await eventually(lambda: connection._connection not in {stuck, None}, 30)
    finally:
        publisher.stop()
        await asyncio.wait_for(running, 60)


@pytest.mark.parametrize("stopped", ["before", "during a wait"])
async def test_what_cannot_be_sent_does_not_delay_the_end(
    free_port: int, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    """Without a connection there is one try to send what is left, however many messages there are."""
    monkeypatch.setattr(retry, "OUTAGE", Backoff(3_600, 3_600))
    told: list[str] = []
    failed = asyncio.Event()

    def on_error(reason: str) -> None:
        told.append(reason)
        failed.set()

    publisher = UnconfirmedPublisher(connect_to(f"amqp://127.0.0.1:{free_port}", "unconfirmed"), on_error)
    for number in range(100):
        publisher.offer(OutgoingMessage("", "gone", str(number).encode()))
    running = asyncio.create_task(publisher.run())
    async with asyncio.timeout(60):
        if stopped == "during a wait":
            await failed.wait()
        publisher.stop()
        await running
    assert len(told) == (1 if stopped == "before" else 2)
