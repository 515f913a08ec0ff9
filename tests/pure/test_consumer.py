"""Which deliveries make a batch, how long it waits, and what is acknowledged; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from pamqp.commands import Basic

from taskherd import retry
from taskherd.broker import consumer as consumers
from taskherd.broker import topology
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.prefetch_window import PrefetchWindow
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.broker.subscription import QUIET, Source
from taskherd.errors import Unavailable
from tests.harness.buffers import until
from tests.harness.contexts import Waits

MIB = 1024 * 1024


class Message(Delivery):
    """A delivery of so many bytes, without any."""

    exchange = routing_key = ""
    properties = Basic.Properties()
    may_have_trace = False

    def __init__(self, tag: int, size: int = 1) -> None:
        super().__init__(b"", tag, redelivered=False)
        self.size = size


class Channel:
    """A channel that is open until it is closed."""

    is_closed = False

    async def close(self) -> None:
        """Close it."""
        self.is_closed = True


class Connection:
    """A connection without a broker."""

    name = "test"

    def __init__(self) -> None:
        self.drops = 0
        self.rests = 0
        self.is_unread = False
        self.read_again = asyncio.Event()
        self.channels: list[Channel] = []

    def drop(self) -> None:
        """Count it."""
        self.drops += 1

    async def channel(self) -> Channel:
        """Open a channel."""
        self.channels.append(Channel())
        return self.channels[-1]

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Read nothing in the block."""
        self.rests += 1
        self.is_unread = True
        yield
        self.is_unread = False
        self.read_again.set()


class Subscription:
    """What the consumer knows of a queue."""

    def __init__(self, consumer: Consumer, epoch: int, queue: str = "q", window: PrefetchWindow | None = None) -> None:
        self.epoch = epoch
        self.source = Source(queue)
        self.window = window or PrefetchWindow(100)
        self.channel = Channel()
        self.consuming = True
        self.is_lost = False
        self.attention = asyncio.Event()
        self.acked: list[int] = []
        self.changes: list[str] = []
        self.failure: Exception | None = None
        consumer._subscriptions[epoch] = self  # type: ignore[assignment]
        self._receive = consumer._receiver(self)  # type: ignore[arg-type]
        self._tags = count(1)

    def deliver(self, *sizes: int) -> list[Delivery]:
        """Deliver messages of these sizes."""
        messages: list[Delivery] = [Message(next(self._tags), size) for size in sizes]
        for message in messages:
            self._receive(message)
        return messages

    async def ack(self, deliveries: list[Delivery]) -> None:
        """Note which are acknowledged."""
        if self.failure is not None:
            raise self.failure
        self.acked += [delivery.delivery_tag for delivery in deliveries]

    async def consume(self, _: object) -> None:
        """Note it."""
        if self.failure is not None:
            raise self.failure
        self.changes.append("consume")

    async def cancel(self) -> None:
        """Note it."""
        if self.failure is not None:
            raise self.failure
        self.changes.append("cancel")

    async def adjust(self) -> None:
        """Note it."""
        if self.failure is not None:
            raise self.failure
        self.changes.append("adjust")

    def lose(self) -> None:
        """Note it."""
        self.is_lost = True


def make(prefetch: int = 100, queues: int = 1, **options: Any) -> tuple[Consumer, Connection, list[Subscription]]:
    """Return a consumer of so many queues."""

    async def prepare(_: object) -> list[Source]:
        return []

    connection = Connection()
    consumer = Consumer(connection, prepare, prefetch=prefetch, **options)  # type: ignore[arg-type]
    consumer._sources = [Source(f"q{number}") for number in range(queues)]
    return consumer, connection, [Subscription(consumer, number + 1, f"q{number}") for number in range(queues)]


def tags(deliveries: list[Delivery]) -> list[int]:
    """Return the tags of deliveries."""
    return [delivery.delivery_tag for delivery in deliveries]


async def taking(consumer: Consumer, *arguments: Any) -> asyncio.Task[list[Delivery]]:
    """Return a task that waits for a batch."""
    task = asyncio.create_task(consumer.next_batch(*arguments))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def done(task: asyncio.Task[Any]) -> bool:
    """Return whether a task, such as one that takes a batch, waits for nothing more."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


@pytest.mark.parametrize(
    ("sizes", "limit", "batches"),
    [
        ([1] * 5, 3, [3, 2]),
        ([8 * MIB - 1, 1], 10, [2]),
        ([8 * MIB, 1], 10, [1, 1]),
        ([4 * MIB, 4 * MIB, 1], 10, [2, 1]),
        ([9 * MIB, 1], 10, [1, 1]),
        ([4 * MIB, 5 * MIB, 3 * MIB], 10, [1, 2]),
    ],
)
async def test_a_batch_has_up_to_8_mib(sizes: list[int], limit: int, batches: list[int]) -> None:
    """Or one delivery that is larger; the rest comes with the next ones."""
    consumer, _, (queue,) = make()
    queue.deliver(*sizes)
    assert [len(await consumer.next_batch(limit, 0)) for _ in batches] == batches
    assert (consumer.buffered, consumer._buffered_bytes) == (0, 0)


def test_a_batch_is_there_when_it_has_enough_or_is_large() -> None:
    """It has 8 MiB at least then."""
    consumer, _, (queue,) = make()
    assert not consumer.has_batch(1)
    queue.deliver(8 * MIB - 1)
    assert [consumer.has_batch(limit) for limit in (1, 2)] == [True, False]
    queue.deliver(1)
    assert [consumer.has_batch(limit) for limit in (2, 3)] == [True, True]


async def test_a_batch_waits_for_more_until_it_has_enough() -> None:
    """That is its limit by default, the prefetch, or what it has enough with; 8 MiB are enough in any case."""
    for prefetch, queues, arguments, enough in (
        (100, 1, (4, 600), 4),
        (3, 1, (100, 600), 3),
        (100, 1, (100, 600, 5), 5),
        (100, 1, (2, 600, 5), 2),
        (8, 2, (100, 600, 5), 4),
        (8, 2, (100, 600), 8),
        (1, 2, (100, 600, 5), 1),
    ):
        consumer, connection, subscriptions = make(prefetch, queues)
        task = await taking(consumer, *arguments)
        for missing in range(enough, 0, -1):
            assert not task.done(), missing
            subscriptions[0].deliver(1)
            await done(task)
        assert task.done()
        assert (len(await task), connection.rests) == (enough, 0)
    consumer, _, (queue,) = make()
    task = await taking(consumer, 100, 600)
    queue.deliver(8 * MIB - 1)
    assert not await done(task)
    queue.deliver(1)
    assert await done(task)


async def test_a_batch_waits_only_as_long_as_it_may() -> None:
    """For further deliveries, not for the first; not at all with no time, and then it takes what is there."""
    consumer, _, (queue,) = make()
    task = await taking(consumer, 100, 0)
    assert not task.done()
    queue.deliver(1, 1)
    assert await done(task)
    assert tags(await task) == [1, 2]
    queue.deliver(1)
    async with asyncio.timeout(20):
        assert tags(await consumer.next_batch(100, 0.05)) == [3]


async def test_an_exclusive_connection_rests_while_a_batch_waits() -> None:
    """Unless the broker could not send on: each queue may still deliver twice as many as are enough."""
    for options, size, arguments, rests in (
        ({"exclusive": True}, 10, (100, 600, 5), 1),
        ({"exclusive": True}, 9, (100, 600, 5), 0),
        ({"exclusive": True}, 10, (5, 600), 0),
        ({"exclusive": True}, 10, (100, 0.01, 5), 0),
        ({}, 10, (100, 600, 5), 0),
    ):
        consumer, connection, subscriptions = make(100, 2, **options)
        subscriptions[0].window.size = size
        task = await taking(consumer, *arguments)
        subscriptions[0].deliver(1)
        await done(task)
        assert (connection.rests, connection.is_unread) == (rests, bool(rests))
        subscriptions[1].deliver(1, 1, 1, 1)
        async with asyncio.timeout(20):
            assert 1 <= len(await task) <= 5
        assert not connection.is_unread
        consumer._buffer.clear()
    consumer, connection, (queue,) = make(exclusive=True)
    consumer._acks_allowed.clear()
    task = await taking(consumer, 100, 600, 5)
    queue.deliver(1)
    assert not await done(task)
    assert connection.rests == 0
    task.cancel()


async def test_what_came_while_nothing_was_read_is_read_at_the_end() -> None:
    """A moment before the time is over."""
    consumer, connection, (queue,) = make(exclusive=True)
    task = await taking(consumer, 100, 0.1, 5)
    queue.deliver(1)
    async with asyncio.timeout(20):
        await connection.read_again.wait()
        queue.deliver(1)
        assert tags(await task) == [1, 2]


async def test_the_time_for_a_batch_is_that_without_reading_and_a_moment_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Together as long as it may wait."""
    consumer, connection, (queue,) = make(exclusive=True)
    waits: list[tuple[int, float, bool]] = []

    async def wait(count: int, seconds: float) -> None:
        waits.append((count, round(seconds, 6), connection.is_unread))

    monkeypatch.setattr(consumer, "wait_buffered", wait)
    for number, enough in ((1, 5), (2, None)):
        queue.deliver(1)
        assert tags(await consumer.next_batch(90, 2.0, enough)) == [number]
    assert waits == [(5, 1.99, True), (5, 0.01, False), (90, 2.0, False)]


def test_without_time_there_is_no_wait_at_all() -> None:
    """Not even for the event loop's next turn."""
    consumer, _, (queue,) = make()
    queue.deliver(1)
    for waiting in (consumer.wait_buffered(5, 0), consumer.next_batch(5, 0)):
        with pytest.raises(StopIteration):
            waiting.send(None)


async def test_a_stop_ends_the_time_in_which_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it waits until nothing comes: it would not see what does."""
    consumer, connection, (queue,) = make(exclusive=True)
    quiet = asyncio.Event()
    monkeypatch.setattr(consumer, "_wait_quiet", quiet.wait)
    task = await taking(consumer, 100, 600, 5)
    queue.deliver(1)
    await done(task)
    assert connection.is_unread
    stopping = asyncio.create_task(consumer.stop())
    await until(lambda: not connection.is_unread)
    assert not stopping.done()
    assert tags(await asyncio.wait_for(task, 30)) == [1]
    quiet.set()
    await asyncio.wait_for(stopping, 30)
    assert queue.changes == ["cancel"]


async def test_a_consumer_that_was_never_started_is_closed_at_once() -> None:
    """There is nothing to end."""
    consumer, _, (queue,) = make()
    await asyncio.wait_for(consumer.close(), 30)
    assert queue.channel.is_closed
    assert await consumer.next_batch(5, 600) == []


async def test_a_batch_that_was_lost_meanwhile_is_waited_for_again() -> None:
    """The deliveries of a lost channel are dropped, and only those; the broker delivers them again."""
    consumer, _, (first, second) = make(100, 2)
    task = await taking(consumer, 3, 600)
    first.deliver(1, 1)
    assert not await done(task)
    await consumer._drop(first)  # type: ignore[arg-type]
    assert (consumer.buffered, consumer._buffered_bytes, first.channel.is_closed) == (0, 0, True)
    first.deliver(1)
    assert consumer.buffered == 0, "nothing comes from it any more"
    consumer.wake()
    assert not await done(task)
    second.deliver(1, 2, 3)
    assert await done(task)
    assert [(each.epoch, each.queue) for each in await task] == [(2, "q1")] * 3
    second.deliver(5)
    third = Subscription(consumer, 3)
    third.deliver(7)
    await consumer._drop(third)  # type: ignore[arg-type]
    await consumer._drop(third)  # type: ignore[arg-type]
    assert (consumer.buffered, consumer._buffered_bytes) == (1, 5)


async def test_acks_are_sent_to_the_channels_of_their_deliveries() -> None:
    """Those of a lost one are not; the others count nevertheless, and the result says so."""
    consumer, connection, (first, second) = make(100, 2)
    deliveries = [*first.deliver(1, 1), *second.deliver(1)]
    assert await consumer.ack(deliveries)
    assert (first.acked, second.acked) == ([1, 2], [1])
    assert await consumer.ack([])
    more = [*first.deliver(1), *second.deliver(1)]
    assert consumer.holds(more[0])
    await consumer._drop(first)  # type: ignore[arg-type]
    assert not consumer.holds(more[0])
    assert not await consumer.ack(more)
    assert (first.acked, second.acked, connection.drops) == ([1, 2], [1, 2], 0)
    second.failure = Unavailable("no answer in time")
    assert not await consumer.ack(more[1:])
    assert connection.drops == 1, "whether they were sent is not known"
    second.channel.is_closed = True
    assert not await consumer.ack(more[1:])
    assert connection.drops == 1


async def test_a_consumer_is_subscribed_when_each_of_its_queues_is() -> None:
    """One without queues is not; a prefetch is shared by all, and is one at least."""
    consumer, _, (first, second) = make(7, 2)
    assert (consumer.consuming, consumer._prefetch_of_each) == (True, 3)
    second.consuming = False
    assert not consumer.consuming
    assert [consumer.consumes(queue) for queue in ("q0", "q1", "q2")] == [True, False, False]
    consumer._sources = consumer._sources[:1]
    assert (consumer.consuming, consumer._prefetch_of_each) == (True, 7)
    first.consuming = False
    assert not consumer.consuming
    consumer._sources = []
    assert (consumer.consuming, consumer._prefetch_of_each) == (False, 7)
    assert make(3, 5)[0]._prefetch_of_each == 1


async def test_a_pause_and_a_resume_reach_all_queues() -> None:
    """One that fails is told and lost, without keeping the others from it; after a stop nothing is resumed."""
    told: list[str] = []
    consumer, _, (first, second) = make(100, 2, on_error=told.append)
    first.failure = Unavailable("no answer in time")
    await consumer.pause()
    assert (first.is_lost, second.changes, told) == (True, ["cancel"], ["no answer in time"])
    first.failure = None
    await consumer.resume()
    assert second.changes == ["cancel", "consume"]
    assert not second.is_lost
    consumer._stopping = True
    await consumer.resume()
    assert second.changes == ["cancel", "consume", "cancel"]
    consumer.resubscribe()
    assert (second.is_lost, consumer._prepare_again.is_set()) == (True, True)


async def test_a_window_is_adjusted_unless_acks_are_held_back() -> None:
    """A wait is ended when more would be in vain. An adjustment without an answer costs only its queue's channel."""
    consumer, connection, _ = make()
    window = PrefetchWindow(100, 4 * MIB)
    queue = Subscription(consumer, 2, "q", window)
    task = await taking(consumer, 5, 600)
    queue.deliver(2 * MIB)
    assert queue.attention.is_set(), "the first one fills it"
    assert not await done(task)
    consumer._acks_allowed.clear()
    await consumer._adjust(queue)  # type: ignore[arg-type]
    assert (queue.changes, await done(task)) == ([], False)
    consumer._acks_allowed.set()
    await consumer._adjust(queue)  # type: ignore[arg-type]
    assert (queue.changes, await done(task)) == (["adjust"], True)
    queue.failure = Unavailable("no answer in time")
    with pytest.raises(Unavailable):
        await consumer._adjust(queue)  # type: ignore[arg-type]
    assert connection.drops == 0


async def test_a_window_with_room_ends_no_wait() -> None:
    """More comes soon."""
    consumer, _, _ = make()
    queue = Subscription(consumer, 2, "q", PrefetchWindow(100, 4 * MIB))
    task = await taking(consumer, 5, 600)
    queue.deliver(1)
    await consumer._adjust(queue)  # type: ignore[arg-type]
    assert not await done(task)
    task.cancel()


@pytest.mark.asyncio(loop_scope="function")
async def test_a_stop_waits_until_nothing_comes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile acks wait, because each would make room for more; then the queues are cancelled."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def let_pass() -> None:
        nonlocal now
        await done(stopping)
        now += 1.01 * QUIET
        await done(stopping)

    consumer, _, (queue,) = make()
    (first,) = queue.deliver(1)
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.sleep(0)
    acking = asyncio.create_task(consumer.ack([first]))
    for _ in range(5):
        queue.deliver(1)
        await let_pass()
        assert [queue.changes, queue.acked] == [[], []]
    await let_pass()
    await until(stopping.done)
    await stopping
    assert await acking
    assert (queue.changes, queue.acked) == (["cancel"], [1])
    assert len(await consumer.next_batch(100, 600)) == 6
    assert await consumer.next_batch(100, 600) == []


async def test_a_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times as long as it is to be quiet; a task that waits for a batch has an empty one then."""
    monkeypatch.setattr(consumers, "QUIET", 0.0)
    consumer, _, (queue,) = make()
    task = await taking(consumer, 100, 600)
    rounds = 0

    async def deliver() -> None:
        nonlocal rounds
        while True:
            consumer._received += 1
            rounds += 1
            await asyncio.sleep(0)

    delivering = asyncio.create_task(deliver())
    await consumer.stop()
    delivering.cancel()
    assert 19 <= rounds <= 23
    assert queue.changes == ["cancel"]
    assert await task == []


async def test_a_stop_that_fails_lets_acks_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong."""
    consumer, _, (queue,) = make()
    (first,) = queue.deliver(1)

    async def fail() -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(consumer, "_wait_quiet", fail)
    with pytest.raises(RuntimeError):
        await consumer.stop()
    assert await consumer.ack([first])


async def test_the_queue_with_the_fewest_consumers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel is closed afterwards, also if it cannot be asked."""
    consumer, connection, _ = make(100, 2)
    counts = {"q0": 3, "q1": 2}

    async def consumer_count(_: object, queue: str) -> int:
        if queue not in counts:
            raise Unavailable("no answer in time")
        return counts[queue]

    monkeypatch.setattr(topology, "consumer_count", consumer_count)
    assert await consumer.consumer_count() == 2
    del counts["q1"]
    with pytest.raises(Unavailable):
        await consumer.consumer_count()
    assert [channel.is_closed for channel in connection.channels] == [True, True]
    consumer._sources = []
    assert await consumer.consumer_count() == 0
    assert len(connection.channels) == 2


async def test_failures_in_a_row_are_those_that_come_soon() -> None:
    """One that had lasted for twice the time of a request ends the row."""
    now = asyncio.get_running_loop().time()
    assert consumers._failures_after(now, 0) == 1
    assert consumers._failures_after(now - 2 * REQUEST_TIMEOUT + 1, 4) == 5
    assert consumers._failures_after(now - 2 * REQUEST_TIMEOUT - 1, 4) == 0


async def test_sources_that_are_left_out_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stay keep their tasks; one that has ended begins again. A close ends all of them."""
    kept: list[str] = []

    async def keep(_: Consumer, source: Source) -> None:
        kept.append(source.queue)
        if source.queue != "ends":
            await asyncio.Event().wait()

    monkeypatch.setattr(Consumer, "_keep", keep)
    consumer, _, _ = make()
    for queues, begun in (
        (["a", "b", "ends"], ["a", "b", "ends"]),
        (["b", "c", "ends"], ["c", "ends"]),
        (["b", "c"], []),
    ):
        kept.clear()
        consumer._sources = [Source(queue) for queue in queues]
        before = dict(consumer._keepers)
        await consumer._start_keepers()
        assert all(task.done() for queue, task in before.items() if queue not in queues)
        for _ in range(3):
            await asyncio.sleep(0)
        assert kept == begun
        assert {*consumer._keepers} == {*queues}
        if "b" in before:
            assert consumer._keepers["b"] is before["b"]
    tasks = [*consumer._keepers.values()]
    async with asyncio.timeout(20):
        await consumer.close()
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("keeps", [False, True])
async def test_what_cannot_be_subscribed_to_is_tried_again(monkeypatch: pytest.MonkeyPatch, *, keeps: bool) -> None:
    """At growing intervals; so is one queue that declares itself (``ensure``), until the consumer is stopped."""
    waits: list[int] = []
    told: list[str] = []

    def delay(failures: int) -> float:
        waits.append(failures)
        consumer._stopping = failures == 3
        return 0

    async def fail(*_: object) -> list[Source]:
        raise Unavailable(f"no answer {len(waits)}")

    monkeypatch.setattr(retry, "delay", delay)
    consumer, _, _ = make(on_error=told.append)
    consumer._prepare = fail
    keeping = consumer._keep(Source("q", ensure=fail)) if keeps else consumer._keep_subscribed()  # type: ignore[arg-type]
    await asyncio.wait_for(keeping, 30)
    assert (waits, told) == ([1, 2, 3], ["no answer 0", "no answer 1", "no answer 2"])


async def test_a_subscription_that_lasted_is_no_failure() -> None:
    """What is tried twice as long as an answer may take was there."""
    now = asyncio.get_running_loop().time()
    assert consumers._failures_after(now - 2 * REQUEST_TIMEOUT - 1, 3) == 0
    assert consumers._failures_after(now - REQUEST_TIMEOUT, 3) == 4


class Subscribed(Channel):
    """A channel on which a queue is consumed."""

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.requests: list[tuple[Any, ...]] = []

    async def basic_qos(self, *, prefetch_count: int) -> None:
        """Note it."""
        self.requests.append(("qos", prefetch_count))

    async def basic_consume(self, queue: str, _: Any, *, arguments: Any, consumer_tag: str) -> None:
        """Note it; a tag has the kind, the epoch, and something else."""
        self.requests.append(("consume", queue, arguments, *consumer_tag.split(".")[:-1]))

    async def basic_cancel(self, _: str) -> None:
        """Note it."""
        self.requests.append(("cancel",))


class Queues(Connection):
    """A connection to queues that are consumed; what is asked before each attempt is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Subscribed] = []
        self.asked: list[str] = []

    async def channel(self) -> Channel:
        """Open a channel."""
        self.opened.append(Subscribed())
        return self.opened[-1]

    async def prepare(self, channel: object) -> list[Source]:
        """Return two queues, the first of which declares itself (``ensure``)."""
        assert channel is self.opened[-1]
        self.asked.append("sources")
        return [Source("a", 5, self.ensure), Source("b")]

    async def ensure(self) -> None:
        """Note it."""
        self.asked.append("a")

    def on(self, queue: str) -> list[Subscribed]:
        """Return the channels on which a queue was consumed."""
        return [each for each in self.opened if any(request[:2] == ("consume", queue) for request in each.requests)]

    def requests(self, queue: str) -> list[tuple[Any, ...]]:
        """Return what was asked of the latest channel of a queue."""
        return self.on(queue)[-1].requests


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Return the waits between attempts, which take no time."""
    made = Waits()
    monkeypatch.setattr(retry, "delay", made.delay)
    return made


@pytest.mark.parametrize(
    ("options", "size", "tag"), [({}, 3, ("taskherd",)), ({"max_bytes": 8 * MIB}, 1, ("taskherd", "limited"))]
)
async def test_each_queue_is_consumed_on_a_channel_of_its_own(
    waits: Waits, options: dict[str, Any], size: int, tag: tuple[str, ...]
) -> None:
    """With its share of the prefetch, and of the bytes; the channel for finding the queues is closed."""
    connection = Queues()
    consumer = Consumer(connection, connection.prepare, prefetch=7, **options)  # type: ignore[arg-type]
    assert not consumer.consuming
    consumer.start()
    consumer.start()
    await until(lambda: consumer.consuming)
    assert connection.asked == ["sources", "a"]
    epochs = sorted(consumer._subscriptions)
    assert epochs == [1, 2]
    assert [each.source.queue for each in consumer._subscriptions.values()] == ["a", "b"]
    assert connection.requests("a") == [("qos", size), ("consume", "a", {"x-priority": 5}, *tag, "1")]
    assert connection.requests("b") == [("qos", size), ("consume", "b", None, *tag, "2")]
    assert [channel.is_closed for channel in connection.opened] == [True, False, False]
    assert [each.window._max_bytes for each in consumer._subscriptions.values()] == [
        4 * MIB if options else None,
        4 * MIB if options else None,
    ]
    waiting = await taking(consumer, 5, 600)
    await asyncio.wait_for(consumer.close(), 30)
    assert await asyncio.wait_for(waiting, 30) == []
    assert all(channel.is_closed for channel in connection.opened)
    assert (consumer.consuming, waits.after) == (False, [])


async def test_a_queue_that_is_found_while_paused_is_not_consumed(waits: Waits) -> None:
    """Until the consumer is resumed."""
    connection = Queues()
    consumer = Consumer(connection, connection.prepare, prefetch=7)  # type: ignore[arg-type]
    await consumer.pause()
    consumer.start()
    await until(lambda: len(consumer._subscriptions) == 2)
    assert (consumer.consuming, connection.on("a"), connection.on("b")) == (False, [], [])
    await consumer.resume()
    assert (consumer.consuming, len(connection.on("a")), len(connection.on("b"))) == (True, 1, 1)
    await consumer.pause()
    assert connection.requests("b")[2:] == [("cancel",)]
    await consumer.close()
    assert waits.after == []
