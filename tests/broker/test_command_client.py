"""Calls over RabbitMQ, with replies on the channel that publishes them."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from taskherd.broker import command_client
from taskherd.broker.command_client import CommandClient, Reply
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo
from tests.harness.tcp_proxy import TcpProxy


async def _take(amqp_url: str, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
    """Take the next message of a queue, which must arrive."""
    async with await aio_pika.connect(amqp_url, timeout=30) as connection:
        source = await (await connection.channel()).get_queue(queue, ensure=False)
        async with asyncio.timeout(20):
            while (message := await source.get(no_ack=True, fail=False, timeout=5)) is None:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.02)
        return message


async def _reply(amqp_url: str, message: aio_pika.abc.AbstractIncomingMessage, body: bytes, **headers: str) -> None:
    async with await aio_pika.connect(amqp_url, timeout=30) as connection:
        exchange = (await connection.channel()).default_exchange
        reply = aio_pika.Message(body, headers=dict(headers), correlation_id=message.correlation_id)
        await exchange.publish(reply, message.reply_to or "", mandatory=False, timeout=30)


async def test_each_call_gets_its_own_reply(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> None:
    """Replies that arrive in another order reach the calls that they answer."""
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.commands, timeout=20)
    first = asyncio.create_task(client.call("one", b"1"))
    one = await _take(amqp_url, names.commands)
    second = asyncio.create_task(client.call("two", b"2"))
    two = await _take(amqp_url, names.commands)
    await _reply(amqp_url, two, b"reply to 2")
    await _reply(amqp_url, one, b"reply to 1")
    assert ((await first).body, (await second).body) == (b"reply to 1", b"reply to 2")


async def test_a_call_is_repeated_when_its_channel_is_lost(
    names: TopologyNames, amqp_url: str, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """The reply to the first message cannot arrive any more, so the message is published again on a new connection."""
    proxy, url = proxied
    client = CommandClient(Publisher(connect_to(url, "calls")), names.commands, timeout=30)
    calling = asyncio.create_task(client.call("any", b"?"))
    lost = await _take(amqp_url, names.commands)
    proxy.cut()
    again = await _take(amqp_url, names.commands)
    assert (again.body, again.reply_to != lost.reply_to) == (b"?", True)
    await _reply(amqp_url, lost, b"too late")
    await _reply(amqp_url, again, b"in time")
    assert (await calling).body == b"in time"


async def test_a_call_without_a_reply_fails_in_time(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a reply is asked for again and again, and returned; without one, the call fails with the reason."""
    monkeypatch.setattr(command_client, "RECORDED_AFTER", 0.05)
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.commands, timeout=1.5)
    asked = 0

    async def recorded() -> Reply | None:
        nonlocal asked
        asked += 1
        return Reply(b"recorded", {}) if asked == 3 else None

    assert (await client.call("any", b"?", recorded=recorded)).body == b"recorded"
    with pytest.raises(Unavailable, match=r"no reply to any within 1\.5 s: it was published"):
        await client.call("any", b"?")


async def test_a_record_that_takes_long_to_find_holds_up_no_reply(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that arrives while its record is looked for is returned at once, and the look is ended."""
    monkeypatch.setattr(command_client, "RECORDED_AFTER", 0.05)
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.commands, timeout=20)
    looking, ended = asyncio.Event(), asyncio.Event()

    async def recorded() -> Reply | None:
        looking.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    calling = asyncio.create_task(client.call("any", b"?", recorded=recorded))
    await looking.wait()
    await _reply(amqp_url, await _take(amqp_url, names.commands), b"arrived")
    assert (await calling).body == b"arrived"
    assert ended.is_set()


async def test_a_message_expires_with_its_call_unless_it_shall_stay(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """By default the queue drops it when nobody waits for the reply any more. The headers of both pass."""
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    publisher = Publisher(connect_to(amqp_url, "calls"))
    client = CommandClient(publisher, names.commands, timeout=60, trace=lambda: trace)
    loop = asyncio.get_running_loop()
    for no_expiry, deadline, expected in ((False, None, 60), (False, loop.time() + 600, 600), (True, None, None)):
        calling = asyncio.create_task(client.call("any", b"?", no_expiry=no_expiry, deadline=deadline))
        message = await _take(amqp_url, names.commands)
        assert message.headers == trace
        if expected is None:
            assert message.expiration is None
        else:
            assert isinstance(message.expiration, int | float)
            assert expected - 30 < message.expiration <= expected
        await _reply(amqp_url, message, b"!", status="late")
        reply = await calling
        assert (reply.body, reply.headers) == (b"!", {"status": "late"})


async def test_the_calls_that_wait_are_bounded(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than the maximum fails at once; when one of them has its reply, the next one is made."""
    monkeypatch.setattr(command_client, "MAX_WAITING", 1)
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.commands, timeout=30)
    for number in range(2):
        calling = asyncio.create_task(client.call("any", b"%d" % number))
        message = await _take(amqp_url, names.commands)
        with pytest.raises(Unavailable, match="1 calls are waiting for a reply already"):
            await client.call("any", b"too many")
        await _reply(amqp_url, message, b"reply to %d" % number)
        assert (await calling).body == b"reply to %d" % number


async def test_a_call_that_no_queue_takes_says_so(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> None:
    """It is tried until its deadline, whatever the client's timeout is, because a queue may be bound meanwhile."""
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.events, timeout=600)
    deadline = asyncio.get_running_loop().time() + 0.5
    with pytest.raises(Unavailable, match=f"no queue is bound to exchange {names.events}; `taskherd topology apply`"):
        await client.call("any", b"?", deadline=deadline)
    assert asyncio.get_running_loop().time() >= deadline


async def test_a_call_is_started_once_nothing_has_to_be_waited_for(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """Without a channel it is not. A call that got no reply in time is continued, without being published again."""
    untried = CommandClient(Publisher(connect_to(amqp_url, "untried")), names.commands, timeout=30)
    deadline = asyncio.get_running_loop().time() + 600
    assert await untried.start("any", b"too early", deadline) is None
    client = await _client_with_channel(names, amqp_url, connect_to)
    started = await client.start("any", b"?", deadline)
    assert started is not None
    message = await _take(amqp_url, names.commands)
    assert isinstance(message.expiration, int | float)
    assert 500 < message.expiration <= 600
    assert await started.reply_within(0.01) is None
    calling = asyncio.create_task(client.call("any", b"?", started=started))
    await _reply(amqp_url, message, b"late")
    assert await calling == Reply(b"late", {}, sent_again=False)
    assert await started.reply_within(0) == Reply(b"late", {})
    client.end(started)


async def test_what_was_recorded_of_a_started_call_is_looked_for_at_once(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """It has waited for its reply before it is continued."""
    client = await _client_with_channel(names, amqp_url, connect_to)
    started = await client.start("any", b"?", asyncio.get_running_loop().time() + 600)
    assert started is not None

    async def recorded() -> Reply | None:
        return Reply(b"recorded", {})

    assert (await client.call("any", b"?", recorded=recorded, started=started)).body == b"recorded"
    client.end(started)


async def test_a_started_call_whose_message_is_lost_is_published_again(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, proxied: tuple[TcpProxy, str]
) -> None:
    """A lost channel is noticed at once."""
    proxy, url = proxied
    client = await _client_with_channel(names, amqp_url, connect_to, url)
    deadline = asyncio.get_running_loop().time() + 600
    started = await client.start("any", b"?", deadline)
    assert started is not None
    await _take(amqp_url, names.commands)
    proxy.cut()
    assert await started.reply_within(600) is None
    calling = asyncio.create_task(client.call("any", b"?", started=started))
    await _reply(amqp_url, await _take(amqp_url, names.commands), b"again")
    assert await calling == Reply(b"again", {}, sent_again=True)
    client.end(started)


async def test_a_started_call_that_no_queue_takes_is_not_waited_for(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """The broker returns it, so there will be no reply."""
    client = CommandClient(Publisher(connect_to(amqp_url, "calls")), names.events, timeout=600)
    now = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable):
        await client.call("any", b"opens a channel", deadline=now + 0.5)
    started = await client.start("any", b"?", now + 600)
    assert started is not None
    assert await started.reply_within(600) is None
    client.end(started)


async def _client_with_channel(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, url: str | None = None
) -> CommandClient:
    """Return a client that has had a reply, and so has a channel."""
    client = CommandClient(Publisher(connect_to(url or amqp_url, "calls")), names.commands, timeout=30)
    calling = asyncio.create_task(client.call("any", b"opens a channel"))
    await _reply(amqp_url, await _take(amqp_url, names.commands), b"opened")
    await calling
    return client
