"""The consumer of one queue, on a channel that notes what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pamqp.commands import Basic

from taskherd.broker import subscription as subscriptions
from taskherd.broker.delivery import MAX_BODY_BYTES, Delivery
from taskherd.broker.patches.frame_reader import TAG_PREFIX
from taskherd.broker.prefetch_window import PrefetchWindow
from taskherd.broker.subscription import Source, Subscription
from taskherd.errors import Unavailable


class Message(Delivery):
    """A delivery of so many bytes, without any."""

    exchange = routing_key = ""
    properties = Basic.Properties()
    may_have_trace = False

    def __init__(self, tag: int, size: int = 1) -> None:
        super().__init__(b"", tag, redelivered=False)
        self.size = size


class Channel:
    """A channel without a broker."""

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.requests: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def _note(self, *request: Any) -> None:
        self.requests.append(request)
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure

    async def basic_qos(self, *, prefetch_count: int) -> None:
        """Note it."""
        await self._note("qos", prefetch_count)

    async def basic_consume(self, queue: str, _: Any, *, arguments: Any, consumer_tag: str) -> None:
        """Note it."""
        await self._note("consume", queue, arguments, consumer_tag)

    async def basic_cancel(self, tag: str) -> None:
        """Note it."""
        await self._note("cancel", tag)

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        """Note it."""
        await self._note("ack", tag, multiple, wait)

    async def basic_nack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        """Note it."""
        await self._note("nack", tag, multiple, wait)

    def take(self) -> list[tuple[Any, ...]]:
        """Return what was asked since the last call."""
        requests, self.requests = self.requests, []
        return requests


def make(window: PrefetchWindow | None = None, priority: int | None = None) -> tuple[Subscription, Channel]:
    """Return a subscription to a queue, the fifth of its consumer."""
    channel = Channel()
    given: Any = channel
    source = Source("queue", priority)
    window = window or PrefetchWindow(100)
    return Subscription(given, 5, source, window, truncating=window.size == 1), channel


def ignore(_: Delivery) -> None:
    """Receive a delivery."""


@pytest.mark.parametrize(("priority", "arguments"), [(None, None), (0, {"x-priority": 0}), (7, {"x-priority": 7})])
async def test_a_queue_is_consumed_once(priority: int | None, arguments: object) -> None:
    """With the prefetch first, and a tag of its own each time."""
    subscription, channel = make(priority=priority)
    consuming = [subscription.consuming]
    await subscription.consume(ignore)
    await subscription.consume(ignore)
    (qos, (kind, queue, given, tag)) = channel.take()
    assert (qos, kind, queue, given) == (("qos", 100), "consume", "queue", arguments)
    assert tag.startswith(f"{TAG_PREFIX}5.")
    consuming.append(subscription.consuming)
    await subscription.cancel()
    await subscription.cancel()
    assert channel.take() == [("cancel", tag)]
    assert [*consuming, subscription.consuming] == [False, True, False]
    await subscription.consume(ignore)
    assert channel.take()[1][3] != tag


async def test_a_channel_that_is_closed_is_lost() -> None:
    """So is a consumer that the broker cancels, and one that is given up."""
    for lose in (
        lambda _, channel: channel.closing.set_result(None),
        lambda _, channel: [callback(None) for callback in channel.on_consumer_cancel_callbacks],
        lambda subscription, _: subscription.lose(),
    ):
        subscription, channel = make()
        await subscription.consume(ignore)
        assert subscription.consuming
        lose(subscription, channel)
        await asyncio.wait_for(subscription.attention.wait(), 30)
        assert [subscription.is_lost, subscription.consuming] == [True, False]


async def test_a_consumer_that_was_stopped_is_cancelled_without_a_request() -> None:
    """It is no consumer any more; nor is one that could not begin."""
    window = PrefetchWindow(10, 80)
    subscription, channel = make(window)
    await subscription.consume(ignore)
    assert [window.admit(Message(tag, 60)) for tag in (1, 2)] == [True, False]
    await subscription.adjust()
    assert subscription.consuming
    channel.take()
    await subscription.cancel()
    assert (channel.take(), subscription.consuming) == ([], False)
    refused, channel = make()
    channel.failure = ConnectionResetError("reset")
    with pytest.raises(Unavailable, match="consuming queue: reset"):
        await refused.consume(ignore)
    assert not refused.consuming
    channel.failure = None
    await refused.consume(ignore)
    assert refused.consuming


async def test_acks_are_sent_together_and_the_last_one_is_waited_for() -> None:
    """One frame for all that are not open before; nobody needs attention while the consumer goes on."""
    subscription, channel = make()
    await subscription.consume(ignore)
    channel.take()
    await subscription.ack([Message(tag) for tag in (1, 2, 4, 6)])
    assert channel.take() == [("ack", 4, False, False), ("ack", 6, False, False), ("ack", 2, True, True)]
    await subscription.ack([Message(2)])
    assert (channel.take(), subscription.attention.is_set()) == ([], False)


@pytest.mark.parametrize("asked", ["consume", "cancel", "ack", "adjust"])
async def test_a_broker_that_does_not_answer_is_an_outage(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is given up after its time limit, and the error says what was tried."""
    window = PrefetchWindow(10, 80)
    subscription, channel = make(window)
    if asked != "consume":
        await subscription.consume(ignore)
    if asked == "adjust":
        window.admit(Message(1, 60))
        window.admit(Message(2, 60))
    work: dict[str, tuple[Callable[[], Awaitable[None]], str]] = {
        "consume": (lambda: subscription.consume(ignore), "consuming queue: no answer in time"),
        "cancel": (subscription.cancel, "cancelling the consumer of queue: no answer in time"),
        "ack": (lambda: subscription.ack([Message(1)]), "acknowledging: no answer in time"),
        "adjust": (subscription.adjust, "cancelling the consumer of queue: no answer in time"),
    }
    channel.answers.clear()
    monkeypatch.setattr(subscriptions, "REQUEST_TIMEOUT", 0.01)
    act, words = work[asked]
    with pytest.raises(Unavailable, match=words):
        await asyncio.wait_for(act(), 30)


async def test_a_consumer_that_is_cancelled_is_not_adjusted() -> None:
    """When it begins again it may have as many as its window says, whatever the one before it had."""
    window = PrefetchWindow(10, 80 * MAX_BODY_BYTES)
    subscription, channel = make(window)
    await subscription.consume(ignore)
    (_, (_, _, _, tag)) = channel.take()
    assert window.admit(Message(1))
    assert [*subscription._dispatcher._receivers] == [tag.encode()]
    await subscription.cancel()
    assert channel.take() == [("cancel", tag)]
    await subscription.adjust()
    assert (channel.take(), window.full, subscription._dispatcher._receivers) == ([], True, {})
    await subscription.consume(ignore)
    (qos, (_, _, _, second)) = channel.take()
    assert (qos, window.full) == (("qos", 1), False)
    assert [*subscription._dispatcher._receivers] == [second.encode()]
    assert window.admit(Message(2))
    await subscription.adjust()
    assert [request[0] for request in channel.take()] == ["qos", "consume", "cancel"]
    assert len(subscription._dispatcher._receivers) == 1


async def test_requests_about_a_consumer_wait_for_each_other() -> None:
    """An ack that came while it is replaced would make room for what nobody expects."""
    window = PrefetchWindow(10, 80 * MAX_BODY_BYTES)
    subscription, channel = make(window)
    await subscription.consume(ignore)
    assert window.admit(Message(1))
    channel.take()
    channel.answers.clear()
    adjusting = asyncio.create_task(subscription.adjust())
    acking = asyncio.create_task(subscription.ack([Message(1)]))
    cancelling = asyncio.create_task(subscription.cancel())
    for _ in range(5):
        await asyncio.sleep(0)
    assert [request[0] for request in channel.requests] == ["qos"]
    channel.answers.set()
    await asyncio.wait_for(asyncio.gather(adjusting, acking, cancelling), 30)
    assert [request[0] for request in channel.take()] == ["qos", "consume", "cancel", "ack", "cancel"]
    assert not subscription.consuming
