"""When dead letters are published, and when the deliveries that they come from are acknowledged; without a broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic
from structlog.testing import capture_logs

from taskherd import retry
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages.decoding import InvalidMessage
from taskherd.observability.metrics import Metrics
from taskherd.worker import dead_letter_sender
from taskherd.worker.dead_letter_sender import DeadLetterSender, Rejected
from taskherd.worker.rates import Rates
from tests.harness.buffers import until
from tests.harness.contexts import Waits, partial_context
from tests.harness.histories import NOON

INVALID, FAULT = DeadLetterReason.INVALID, DeadLetterReason.FAULT
MAX_AT_ONCE = 256


class Message(Delivery):
    """A delivery with this tag, which says nothing else."""

    def __init__(self, tag: int) -> None:
        super().__init__(b"[]", tag, redelivered=False)

    exchange = routing_key = ""
    properties = Basic.Properties()
    may_have_trace = False


def rejected(delivery: Delivery, body: bytes, reason: DeadLetterReason = INVALID, detail: str = "why") -> Rejected:
    """Return an element of a delivery that becomes a dead letter."""
    return delivery, InvalidMessage(None, reason, detail, body)


async def _nothing(_: AbstractChannel) -> Sequence[Source]:
    return ()


class Acks(Consumer):
    """A consumer that notes the tags that are acknowledged, and that has lost the channel of those in ``lost``."""

    def __init__(self) -> None:
        super().__init__(cast("SupervisedConnection", None), _nothing, prefetch=1)
        self.acked: list[int] = []
        self.lost: set[int] = set()

    async def ack(self, deliveries: Sequence[Delivery]) -> bool:
        """Note the tags."""
        self.acked += [delivery.delivery_tag for delivery in deliveries]
        return True

    def holds(self, delivery: Delivery) -> bool:
        """Return whether its channel is there."""
        return delivery.delivery_tag not in self.lost


class Broker:
    """A broker that confirms the dead letters for which ``confirms`` returns True, and the sender that it serves."""

    def __init__(self, confirms: Callable[[bytes], bool] = lambda _: True) -> None:
        self._confirms = confirms
        self.groups: list[list[bytes]] = []
        self.consumer = Acks()
        self.metrics, self.rates, self.stopping = Metrics(), Rates(), asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.told: list[str] = []
        self.poison: set[bytes] = set()
        context = partial_context(
            dead_publisher=self, metrics=self.metrics, rates=self.rates, stopping=self.stopping,
            on_unconfirmed=self.told.append, names=TopologyNames("test"), now=lambda: NOON,
        )  # fmt: skip
        self.sender = DeadLetterSender(self.consumer, context)

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Take dead letters, while it ``takes`` them; one that is poison closes the channel of all."""
        await self.takes.wait()
        self.groups.append([message.body for message in messages])
        if not self.poison.isdisjoint(self.groups[-1]):
            return [Unavailable("the channel is closed")] * len(messages)
        return [
            PublishOutcome.CONFIRMED if self._confirms(message.body) else Unavailable("full") for message in messages
        ]

    async def send(self, *rejected: Rejected) -> None:
        """Add dead letters together, and wait until all are sent."""
        async with self.sending():
            await self.sender.add(rejected)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send during the block, and for a while after it."""
        async with asyncio.timeout(20), self.sender.sending():
            yield

    def count(self, name: str, **labels: str) -> float:
        """Return a counter."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}_total", labels) or 0


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Return the waits after failures."""
    waits = Waits()
    monkeypatch.setattr(retry, "delay", waits.delay)
    return waits


def refusing_once(*bodies: bytes) -> Callable[[bytes], bool]:
    """Return a function that returns False once for each of these bodies."""
    refused = set(bodies)

    def confirms(body: bytes) -> bool:
        if body in refused:
            refused.remove(body)
            return False
        return True

    return confirms


async def test_a_delivery_is_acked_after_the_last_of_its_dead_letters() -> None:
    """What was not confirmed is published again after the others, and nothing is acknowledged twice."""
    broker = Broker(refusing_once(b"two"))
    first, second = Message(1), Message(2)
    async with broker.sending():
        await broker.sender.add([rejected(first, b"one", FAULT), rejected(first, b"two")])
        await broker.sender.add([rejected(second, b"three"), rejected(second, b"four")])
    assert broker.groups == [[b"one", b"two", b"three", b"four"], [b"two"]]
    assert broker.consumer.acked == [2, 1]
    assert (broker.told, broker.count("batch_failures", reason="broker")) == (["1 dead letters: full"], 1)
    assert (broker.count("dead_lettered", reason="fault"), broker.count("dead_lettered", reason="invalid")) == (1, 3)
    assert broker.rates._letters == Counter({(NOON, "fault"): 1, (NOON, "invalid"): 3})


async def test_a_dead_letter_that_the_broker_refuses_fails_no_other_for_ever(waits: Waits) -> None:
    """What failed together is published one at a time, so all others are stored, also those that come later."""
    broker = Broker()
    broker.poison = {b"poison"}
    async with broker.sending():
        await broker.sender.add([rejected(Message(tag), body) for tag, body in enumerate((b"0", b"poison", b"2"))])
        await until(lambda: len(broker.consumer.acked) == 2)
        await broker.sender.add([rejected(Message(3), b"3"), rejected(Message(4), b"4")])
        await until(lambda: len(broker.consumer.acked) == 4)
        broker.stopping.set()
    assert broker.consumer.acked == [0, 2, 3, 4]
    assert broker.groups[:4] == [[b"0", b"poison", b"2"], [b"0"], [b"poison"], [b"2"]]
    assert [group for group in broker.groups[4:] if group != [b"poison"]] == [[b"3", b"4"]]
    assert waits.after[:2] == [1, 1], "each one that is stored ends the failures in a row"


async def test_a_queue_that_takes_nothing_is_tried_less_and_less_often(waits: Waits) -> None:
    """Until it takes something again."""
    outcomes = iter([False, False, True, False, True])
    broker = Broker(lambda _: next(outcomes))
    async with broker.sending():
        for tag in (1, 2):
            await broker.sender.add([rejected(Message(tag), b"%d" % tag)])
            while len(broker.consumer.acked) < tag:  # noqa: ASYNC110 - it sends no event
                await asyncio.sleep(0)
    assert broker.groups == [[b"1"], [b"1"], [b"1"], [b"2"], [b"2"]]
    assert waits.after == [1, 2, 1]


async def test_dead_letters_are_published_a_number_at_a_time() -> None:
    """All of them in the end, although nothing is added any more."""
    broker = Broker()
    await broker.send(*(rejected(Message(tag), b"%d" % tag) for tag in range(2 * MAX_AT_ONCE + 1)))
    assert [len(group) for group in broker.groups] == [MAX_AT_ONCE, MAX_AT_ONCE, 1]
    assert broker.consumer.acked == list(range(2 * MAX_AT_ONCE + 1))


async def test_some_of_many_dead_letters_are_logged() -> None:
    """With their reasons and the beginning of the details."""
    broker = Broker()
    with capture_logs() as logged:
        await broker.send(*(rejected(Message(tag), b"x", FAULT, f"{tag}".ljust(200, "…")) for tag in range(9)))
    assert [(each["event"], each["count"]) for each in logged] == [("dead letters published", 9)]
    assert logged[0]["first"] == [("fault", f"{tag}".ljust(100, "…")) for tag in range(5)]


async def test_nothing_is_logged_while_none_is_confirmed() -> None:
    """The failure is told instead."""
    broker = Broker(refusing_once(b"x"))
    with capture_logs() as logged:
        await broker.send(rejected(Message(1), b"x"))
    assert [each["count"] for each in logged] == [1]


async def test_dead_letters_that_are_not_confirmed_are_abandoned_when_the_worker_stops() -> None:
    """Their deliveries are not acknowledged, so the broker delivers them again; the others are."""
    broker = Broker(lambda body: body != b"full")
    broker.stopping.set()
    await broker.send(rejected(Message(1), b"full"), rejected(Message(2), b"taken"))
    assert (broker.groups, broker.consumer.acked) == ([[b"full", b"taken"]], [2])


async def test_a_worker_that_stops_publishes_what_waits() -> None:
    """As long as the broker takes it."""
    broker = Broker()
    broker.stopping.set()
    await broker.send(*(rejected(Message(tag), b"x") for tag in range(MAX_AT_ONCE + 1)))
    assert broker.consumer.acked == list(range(MAX_AT_ONCE + 1))


async def test_what_the_broker_delivers_again_is_not_published_twice() -> None:
    """When the channel is lost, its deliveries come again and are rejected again; those of other channels stay."""
    broker = Broker(refusing_once(b"lost", b"kept"))
    broker.consumer.lost = {1}
    await broker.send(rejected(Message(1), b"lost"), rejected(Message(2), b"kept"))
    assert (broker.groups, broker.consumer.acked) == ([[b"lost", b"kept"], [b"kept"]], [2])


@pytest.mark.parametrize(
    ("sizes", "waits"), [((6, 4), False), ((6, 5), True), ((1, 1, 1), False), ((1, 1, 1, 1), True)]
)
async def test_a_consumer_waits_while_too_many_or_too_large_dead_letters_wait(
    monkeypatch: pytest.MonkeyPatch, sizes: Iterable[int], *, waits: bool
) -> None:
    """Up to the maximum number and size they wait in memory, beyond it the consumer waits until some are confirmed."""
    monkeypatch.setattr(dead_letter_sender, "MAX_WAITING", 3)
    monkeypatch.setattr(dead_letter_sender, "MAX_BYTES_WAITING", 10)
    broker = Broker()
    *before, last = (rejected(Message(tag), b"x" * size) for tag, size in enumerate(sizes))
    async with broker.sending():
        await broker.sender.add([rejected(Message(100), b"confirmed long ago")])
        while not broker.consumer.acked:  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0)
        broker.takes.clear()
        for each in before:
            await broker.sender.add([each])
        adding = asyncio.create_task(broker.sender.add([last]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert adding.done() is not waits
        broker.takes.set()
        await adding
    assert broker.consumer.acked == [100, *range(len(before) + 1)]


async def test_more_than_the_maximum_are_accepted_if_no_other_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery may have more elements than may wait, and all its dead letters are added together."""
    monkeypatch.setattr(dead_letter_sender, "MAX_WAITING", 3)
    broker = Broker()
    many = Message(1)
    await asyncio.wait_for(broker.sender.add([rejected(many, b"%d" % index) for index in range(5)]), 20)
    following = asyncio.create_task(broker.sender.add([rejected(Message(2), b"next")]))
    await broker.sender.add([])
    async with broker.sending():
        await following
    assert broker.consumer.acked == [1, 2]
    assert broker.groups == [[b"0", b"1", b"2", b"3", b"4"], [b"next"]]
