"""How deliveries and replies get to their receivers; without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader

from taskherd.broker import direct_replies
from taskherd.broker.delivery import DecodedDelivery, Delivery, RawDelivery
from taskherd.broker.direct_replies import publisher_with_replies
from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher
from taskherd.broker.patches.frame_reader import BODY_CONTINUES
from taskherd.errors import Unavailable
from tests.library_versions import pretended


class Consuming:
    """A channel that notes what is consumed on it, once it answers."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.closing = asyncio.get_running_loop().create_future()
        self.consumed: list[tuple[str, dict[str, Any]]] = []
        self.failure: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def basic_consume(self, queue: str, _: Any, **options: Any) -> None:
        """Consume a queue."""
        self.consumed.append((queue, options))
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure


def delivered(tag: str, body: bytes) -> RawDelivery:
    """Return a delivery to a consumer."""
    deliver = frame.marshal(Basic.Deliver(tag, 7, False, "e", "k"), 1)  # noqa: FBT003 - as pamqp has it
    return RawDelivery(deliver, frame.marshal(ContentHeader(body_size=len(body)), 1), body)


async def test_a_delivery_is_passed_to_the_consumer_of_its_tag() -> None:
    """All other frames stay in the channel's queue, in order, but for parts of a body that is not complete."""
    channel: Any = Consuming()
    first, second = list[Delivery](), list[Delivery]()
    dispatcher = DeliveryDispatcher(channel)
    dispatcher.register("first", first.append)
    dispatcher.register("second", second.append)
    one, two, three = delivered("second", b"1"), delivered("first", b"2"), delivered("second", b"3")
    for each in (one, BODY_CONTINUES, Basic.CancelOk("x"), two, three, Channel.CloseOk()):
        await channel.frames.put((1, each))
    assert (first, second) == ([two], [one, three])
    others = [channel.frames.get_nowait() for _ in range(channel.frames.qsize())]
    assert [(number, type(other)) for number, other in others] == [(1, Basic.CancelOk), (1, Channel.CloseOk)]
    dispatcher.unregister("first")
    dispatcher.unregister("first")
    with pytest.raises(KeyError):
        await channel.frames.put((1, two))
    await channel.frames.put((1, one))
    assert second == [one, three, one]


async def test_what_the_library_decodes_is_passed_on_by_the_callback() -> None:
    """Outside the range of the patch, all frames stay in the channel's queue."""
    message: Any = SimpleNamespace(body=b"decoded", delivery_tag=9, redelivered=False)
    received: list[Delivery] = []
    with pretended("aiormq", "7.3.0"):
        channel: Any = Consuming()
        with pytest.warns(RuntimeWarning, match="aiormq"):
            dispatcher = DeliveryDispatcher(channel)
        callback = dispatcher.register("tag", received.append)
        await channel.frames.put((1, BODY_CONTINUES))
        assert channel.frames.get_nowait() == (1, BODY_CONTINUES)
        await callback(message)
    assert [(type(each), each.body, each.delivery_tag) for each in received] == [(DecodedDelivery, b"decoded", 9)]


async def test_replies_are_consumed_on_the_channel_that_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without acks, each channel with a tag of its own; who waits is told when it is closed."""
    prepare: list[Any] = []
    own: Any = object()

    def on_own_channel(subscribe: object) -> Any:
        prepare.append(subscribe)
        return own

    publisher: Any = SimpleNamespace(on_own_channel=on_own_channel)
    replies, losses = list[Delivery](), list[int]()
    given = publisher_with_replies(publisher, replies.append, lambda: losses.append(len(replies)))
    assert given is own
    (subscribe,) = prepare
    channels = [Consuming(), Consuming()]
    for channel in channels:
        await subscribe(channel)
    tags = [options.pop("consumer_tag") for channel in channels for _, options in channel.consumed]
    assert [channel.consumed for channel in channels] == [[("amq.rabbitmq.reply-to", {"no_ack": True})]] * 2
    assert len({*tags}) == 2
    assert all(tag.startswith("taskherd.replies.") for tag in tags)
    reply = delivered(tags[1], b"reply")
    await channels[1].frames.put((1, reply))
    assert replies == [reply]
    channels[1].closing.set_result(None)
    await asyncio.sleep(0)
    assert losses == [1]
    monkeypatch.setattr(direct_replies, "REQUEST_TIMEOUT", 0.01)
    refusing, hung = Consuming(), Consuming()
    refusing.failure = ConnectionResetError("reset")
    hung.answers.clear()
    for channel, words in (refusing, "consuming replies: reset"), (hung, "consuming replies: no answer in time"):
        with pytest.raises(Unavailable, match=words):
            await asyncio.wait_for(subscribe(channel), 30)
    silent = publisher_with_replies(publisher, replies.append)
    assert silent is own
    await prepare[1](channels[0])
    channels[0].closing.cancel()
    await asyncio.sleep(0)
    assert losses == [1, 1]
