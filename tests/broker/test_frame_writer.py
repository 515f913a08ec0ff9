"""The frame writer, compared with pamqp's encoding and aiormq's publishing."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from taskherd.broker.patches.frame_writer import FrameWriter, encoded, properties_of
from taskherd.broker.publisher import MAX_IN_FLIGHT, OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.broker.unconfirmed import MAX_TOGETHER, UnconfirmedPublisher
from tests.broker.conftest import ConnectTo, until
from tests.harness.tcp_proxy import TcpProxy

PLAIN = OutgoingMessage("an exchange", "a.key", b"{}")
FULL = OutgoingMessage(
    "",
    "é",
    b"0123456789" * 2,
    None,
    {"traceparent": "00-1", "n": 7, "repeated": True},
    mandatory=True,
    expiration=1.5,
    reply_to="amq.rabbitmq.reply-to",
    correlation_id="c",
)


@pytest.mark.parametrize("message", [PLAIN, FULL, replace(PLAIN, body=b""), replace(PLAIN, expiration=0.0)])
@pytest.mark.parametrize("user", [None, "worker"])
@pytest.mark.parametrize("max_content", [7, 20, 4_096])
def test_frames_are_those_of_pamqp(message: OutgoingMessage, user: str | None, max_content: int) -> None:
    """A message has the same bytes as with pamqp, its body in as many frames as it needs."""
    properties = properties_of(message, user)
    properties.message_id = "m"
    publish = commands.Basic.Publish(
        exchange=message.exchange, routing_key=message.routing_key, mandatory=message.mandatory
    )
    header = ContentHeader(body_size=len(message.body), properties=properties)
    parts = [message.body[at : at + max_content] for at in range(0, len(message.body), max_content)]
    frames: list[Frame | ContentHeader | ContentBody] = [publish, header, *map(ContentBody, parts)]
    expected = b"".join(frame.marshal(each, 3) for each in frames)
    assert encoded(message, 3, max_content, "m", user) == expected


def test_a_text_that_is_too_long_is_refused() -> None:
    """A name or id of more than 255 bytes is an error of its own message, before anything is sent."""
    longest, too_long = "é" * 127, "é" * 128
    for message in (
        OutgoingMessage(too_long, "", b""),
        OutgoingMessage("", too_long, b""),
        replace(PLAIN, correlation_id=too_long),
        replace(PLAIN, reply_to=too_long),
    ):
        with pytest.raises(ValueError, match="is longer than 255 bytes"):
            encoded(message, 1, 100, "m", None)
    message = OutgoingMessage(longest, longest, b"", correlation_id=longest, reply_to=longest)
    assert encoded(message, 1, 100, "m", None).count(longest.encode()) == 4


async def test_what_is_published_at_the_same_time_is_written_at_once(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """One write has all messages of an iteration of the event loop, in order; each has a confirm of its own."""
    channel = await connect_to(amqp_url, "publish").channel(confirms=True)
    writes = _record_writes(channel)
    writer = FrameWriter(channel, 20)
    messages = [OutgoingMessage(names.reports, "k", b"%d" % number, mandatory=number % 2 == 0) for number in range(50)]
    confirms = [writer.publish(message, None) for message in messages]
    assert writes == []
    await asyncio.wait(confirms)
    assert [confirm.exception() for confirm in confirms] == [None] * 50
    assert len(writes) == 1
    assert (channel.delivery_tag, channel.message_id_delivery_tag) == (50, {})
    reader = await connect_to(amqp_url, "read").channel()
    received = [await reader.basic_get(names.reports, no_ack=True, timeout=30) for _ in messages]
    assert [each.body for each in received] == [message.body for message in messages]


def _record_writes(channel: Channel) -> list[ChannelFrame]:
    """Return a list to which what is written on the channel's connection is added from now on."""
    writes: list[ChannelFrame] = []
    put = channel.write_queue.put

    async def record(item: ChannelFrame) -> None:
        writes.append(item)
        await put(item)

    channel.write_queue.put = record  # type: ignore[method-assign]
    return writes


async def test_a_late_confirm_is_ignored(
    names: TopologyNames, proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """A confirm that does not come in time fails; when it comes later, it is taken for no other message's."""
    proxy, url = proxied
    writer = FrameWriter(await connect_to(url, "publish").channel(confirms=True), 0.2)
    proxy.freeze()
    with pytest.raises(TimeoutError):
        await writer.publish(OutgoingMessage(names.reports, "k", b"late", mandatory=True), None)
    proxy.thaw()

    async def confirmed() -> bool:
        confirm = writer.publish(OutgoingMessage(names.reports, "k", b"{}", mandatory=True), None)
        await asyncio.wait({confirm})
        return confirm.exception() is None

    await until(confirmed, lambda is_confirmed: is_confirmed)


async def test_a_confirm_that_never_comes_is_no_error_of_the_event_loop(
    names: TopologyNames, proxied: tuple[TcpProxy, str], connect_to: ConnectTo, loop_errors: list[str]
) -> None:
    """Nobody waits for a confirm that is late, so nothing is told of it when its channel closes."""
    proxy, url = proxied
    channel = await connect_to(url, "publish").channel(confirms=True)
    proxy.freeze()
    with pytest.raises(TimeoutError):
        await FrameWriter(channel, 0.2).publish(OutgoingMessage(names.reports, "k", b"late"), None)
    proxy.cut()
    await asyncio.wait({channel.closing})
    await asyncio.sleep(0)
    gc.collect()
    assert loop_errors == []


async def test_a_closed_channel_fails_every_missing_confirm(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """An error that closes the channel is that of all messages behind it, and of those that are published later."""
    channel = await connect_to(amqp_url, "publish").channel(confirms=True)
    writer = FrameWriter(channel, 20)
    bad = OutgoingMessage(f"{names.prefix}.nowhere", "k", b"{}")
    confirms = [writer.publish(bad, None), writer.publish(OutgoingMessage(names.reports, "k", b"{}"), None)]
    await asyncio.wait(confirms)
    assert ["NOT_FOUND" in str(confirm.exception()) for confirm in confirms] == [True, True]
    assert channel.confirmations == {}
    with pytest.raises(ChannelInvalidStateError, match="closed"):
        await writer.publish(OutgoingMessage(names.reports, "k", b"{}"), None)


async def test_a_canceled_publish_leaves_the_others_alone(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo
) -> None:
    """A message that nobody waits for any more may be left out; the confirms of the others are still theirs."""
    writer = FrameWriter(await connect_to(amqp_url, "publish").channel(confirms=True), 20)
    unbound = OutgoingMessage(names.events, "unbound", b"{}", mandatory=True)
    canceled, bound, returned = (
        writer.publish(each, None)
        for each in (unbound, OutgoingMessage(names.reports, "k", b"{}", mandatory=True), unbound)
    )
    canceled.cancel()
    await asyncio.wait({bound, returned})
    assert bound.exception() is None
    assert type(returned.exception()).__name__ == "PublishError"


async def test_several_large_groups_are_published_at_the_same_time(names: TopologyNames, publisher: Publisher) -> None:
    """Groups of as many messages as may be in flight wait for each other, and none for ever."""
    groups = [[OutgoingMessage(names.events, "k", b"{}")] * (MAX_IN_FLIGHT - 1) for _ in range(4)]
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*map(publisher.publish_many, groups))
    assert all(outcome is PublishOutcome.CONFIRMED for group in outcomes for outcome in group)


async def test_a_message_that_is_stuck_holds_up_no_other(
    names: TopologyNames, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the confirm of one message of a group is missing, others have the places of the rest of the group."""
    publish = FrameWriter.publish

    def keep_stuck(writer: FrameWriter, message: OutgoingMessage, user: str | None) -> asyncio.Future[None]:
        return asyncio.Future() if message.body == b"stuck" else publish(writer, message, user)

    monkeypatch.setattr(FrameWriter, "publish", keep_stuck)
    group = [OutgoingMessage(names.events, "k", b"{}")] * (MAX_IN_FLIGHT - 1)
    waiting = asyncio.create_task(publisher.publish_many([OutgoingMessage(names.events, "k", b"stuck"), *group]))
    async with asyncio.timeout(60):
        outcomes = [*await publisher.publish_many(group), await publisher.send(group[0])]
    assert outcomes == [PublishOutcome.CONFIRMED] * MAX_IN_FLIGHT
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_replies_that_wait_are_sent_together_in_order(amqp_url: str, connect_to: ConnectTo) -> None:
    """Messages without confirms are sent in order, many with one write."""
    reader = await connect_to(amqp_url, "reader").channel()
    queue = (await reader.queue_declare(exclusive=True, timeout=5)).queue or ""
    connection = connect_to(amqp_url, "unconfirmed")
    writes = _record_writes(await connection.channel())
    publisher = UnconfirmedPublisher(connection)
    for number in range(2 * MAX_TOGETHER):
        publisher.offer(OutgoingMessage("", queue, str(number).encode()))
    publisher.stop()
    await asyncio.wait_for(publisher.run(), 20)
    received: list[int] = []
    async with asyncio.timeout(20):
        while len(received) < 2 * MAX_TOGETHER:
            message = await reader.basic_get(queue, no_ack=True, timeout=30)
            received += [int(message.body)] if message.delivery.name == "Basic.GetOk" else []
    assert received == list(range(2 * MAX_TOGETHER))
    assert len([each for each in writes if len(each.payload) > 1_000]) == 2
