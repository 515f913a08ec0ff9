"""A consumer that buffers deliveries, returns them in batches, and acknowledges them when the caller asks.

It uses the aiormq channel below aio-pika, because an ``aio_pika.Message`` costs more CPU than everything else here. The
callback only appends to the buffer: aiormq cancels callbacks when a connection drops, so nothing else may run there.
The prefetch limits the buffer, because the broker sends no more unacknowledged messages than that; where their bytes
are limited too, ``prefetch_window`` chooses it.

Each queue is subscribed by itself, on a channel of its own, so that one which is missing or hangs holds up no other.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from contextlib import suppress
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Final

from taskherd import retry
from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.prefetch_window import PrefetchWindow
from taskherd.broker.requests import REQUEST_TIMEOUT, close_channel
from taskherd.broker.subscription import QUIET, Source, Subscription
from taskherd.broker.supervision import survive
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiormq.abc import AbstractChannel

    from taskherd.broker.delivery import Delivery
    from taskherd.broker.patches.delivery_dispatcher import Receive

MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
"""Maximum size of a batch, so that its statements end in time; a single delivery may be larger."""

READING_TIME: Final = 0.01
"""Seconds at the end of a wait in which what has come meanwhile is read."""

MAX_QUIET_ROUNDS = 20
"""Maximum number of times ``QUIET`` that ``stop`` waits."""


class Consumer:
    """A consumer of the sources that ``prepare`` returns; it subscribes again to each whose channel is lost.

    Only one task may call ``next_batch`` at a time.
    """

    def __init__(
        self,
        connection: SupervisedConnection,
        prepare: Callable[[AbstractChannel], Awaitable[Sequence[Source]]],
        *,
        prefetch: int,
        max_bytes: int | None = None,
        exclusive: bool = False,
        on_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create the consumer; it subscribes after ``start``.

        Args:
            connection: a connection that is not used for publishing.
            prepare: called with a channel for the time of the call, at the start and when a source without ``ensure``
                is lost; declares server-named queues.
            prefetch: maximum number of unacknowledged deliveries, divided equally over the sources.
            max_bytes: maximum size of the unacknowledged deliveries, divided equally over the sources, each of which
                may have a single larger one; of a body that exceeds ``delivery.MAX_BODY_BYTES`` only the beginning is
                kept. Only for a caller that acknowledges each delivery without waiting for others.
            exclusive: True if nothing else uses the connection, so that it need not be read while a batch waits.
            on_error: called with the reason when subscribing fails; the consumer retries by itself.
        """
        self._connection = connection
        self._prepare = prepare
        self._prefetch = prefetch
        self._max_bytes = max_bytes
        self._exclusive = exclusive
        self._on_error = on_error
        self._buffer: deque[Delivery] = deque()
        self._buffered_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._wake_at = 1
        self._epoch = 0
        self._sources: Sequence[Source] = ()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._prepare_again = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._paused = False
        self._stopping = False
        self._received = 0
        self._acks_allowed = asyncio.Event()
        self._acks_allowed.set()

    @property
    def consuming(self) -> bool:
        """True while subscribed to all sources, as far as is known."""
        subscribed = {each.source.queue for each in self._subscriptions.values() if each.consuming}
        return bool(self._sources) and subscribed.issuperset(source.queue for source in self._sources)

    def consumes(self, queue: str) -> bool:
        """Return whether subscribed to this queue, as far as is known."""
        return any(each.consuming for each in self._subscriptions.values() if each.source.queue == queue)

    @property
    def has_stopped(self) -> bool:
        """True once consuming has stopped for good: nothing comes after what is buffered."""
        return self._stopping

    @property
    def buffered(self) -> int:
        """Number of deliveries in the buffer."""
        return len(self._buffer)

    def has_batch(self, limit: int) -> bool:
        """Return whether the buffer holds a batch of ``limit`` deliveries, or one as large as a batch may be."""
        return len(self._buffer) >= limit or self._buffered_bytes >= MAX_BATCH_BYTES

    @property
    def _prefetch_of_each(self) -> int:
        """The number of unacknowledged deliveries that each source may have."""
        return max(1, self._prefetch // max(1, len(self._sources)))

    def start(self) -> None:
        """Start consuming in the background, as soon as the connection is up."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._keep_subscribed(), name=f"consumer on {self._connection.name}")

    async def next_batch(self, limit: int, wait: float, enough: int | None = None) -> list[Delivery]:
        """Return 1 to ``limit`` deliveries, in order: wait for the first, then up to ``wait`` seconds for more.

        It does not wait any longer with ``limit`` deliveries, ``MAX_BATCH_BYTES`` or as many bytes as one source may
        deliver, or with ``enough``, if given, or as many deliveries as one source may deliver, because the others may
        be empty. With ``enough``, an exclusive connection is not read while the batch waits, which saves the CPU of
        reading each delivery by itself, unless that may keep the broker from sending more.
        The result is empty only after ``stop``, when the buffer is empty.
        """
        while True:
            while not self._buffer:
                if self._stopping:
                    return []
                await self._wait_buffered(1)
            most = min(limit, self._prefetch)
            rests = enough is not None and wait > READING_TIME and self._may_rest(2 * enough)
            enough = most if enough is None else min(enough, most, self._prefetch_of_each)
            if not self.has_batch(enough):
                if rests:
                    with self._connection.unread():
                        await self.wait_buffered(enough, wait - READING_TIME)
                await self.wait_buffered(enough, READING_TIME if rests else wait)
            if self._buffer:  # a lost channel may have cleared it in the meantime
                return self._take(limit)

    async def wait_buffered(self, count: int, wait: float) -> None:
        """Wait up to ``wait`` seconds until ``count`` deliveries are buffered, or all that may be."""
        if len(self._buffer) < count and wait > 0 and not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wait_buffered(count)

    async def wait_for_change(self) -> None:
        """Wait until a delivery is buffered, consuming has stopped, or ``wake`` is called."""
        if not self._buffer and not self._stopping:
            await self._wait_buffered(1)

    def _may_rest(self, count: int) -> bool:
        """Return whether the connection need not be read for a moment: each source may still deliver so many."""
        may_deliver = all(each.window.size >= count for each in self._subscriptions.values())
        return self._exclusive and may_deliver and self._acks_allowed.is_set()

    def _take(self, limit: int) -> list[Delivery]:
        count = min(limit, len(self._buffer))
        if self._buffered_bytes > MAX_BATCH_BYTES:
            totals = accumulate(delivery.size for delivery in islice(self._buffer, count))
            count = max(1, sum(total <= MAX_BATCH_BYTES for total in totals))
        batch = [self._buffer.popleft() for _ in range(count)]
        self._buffered_bytes -= sum(delivery.size for delivery in batch)
        return batch

    async def ack(self, deliveries: Sequence[Delivery]) -> bool:
        """Acknowledge ``deliveries``, in one frame for each queue where possible.

        Return False if some deliveries belong to a closed channel; the broker redelivers those.
        """
        await self._acks_allowed.wait()
        by_epoch: defaultdict[int, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            by_epoch[delivery.epoch].append(delivery)
        acked = [await self._ack(epoch, of_channel) for epoch, of_channel in by_epoch.items()]
        return all(acked)

    def holds(self, delivery: Delivery) -> bool:
        """Return whether ``delivery`` can still be acknowledged; if not, the broker redelivers it."""
        return delivery.epoch in self._subscriptions

    async def _ack(self, epoch: int, deliveries: Sequence[Delivery]) -> bool:
        subscription = self._subscriptions.get(epoch)
        if subscription is None:
            return False
        try:
            await subscription.ack(deliveries)
        except Unavailable:
            if not subscription.channel.is_closed:
                self._connection.drop()  # unknown whether they were sent; a new channel makes it certain
            return False
        return True

    async def pause(self) -> None:
        """Stop the flow of deliveries; buffered ones stay."""
        self._paused = True
        await self._apply_to_all()

    async def resume(self) -> None:
        """Consume again after ``pause``."""
        self._paused = self._stopping
        await self._apply_to_all()

    def resubscribe(self) -> None:
        """Subscribe again, to the sources that ``prepare`` returns then; unacknowledged deliveries are requeued."""
        for subscription in self._subscriptions.values():
            subscription.lose()
        self._prepare_again.set()

    async def stop(self) -> None:
        """Stop consuming for good; buffered deliveries can still be processed and acknowledged.

        A quorum queue delivers more as soon as something is acknowledged, and a message that it sends to a consumer
        that is being cancelled never arrives and is redelivered later. Therefore acks wait until the end.
        """
        self._acks_allowed.clear()
        self.wake()
        try:
            await self._wait_quiet()
            await self.pause()
        finally:
            self._acks_allowed.set()
        self._stopping = True
        self.wake()

    async def close(self) -> None:
        """Close the channel; the broker requeues unacknowledged deliveries."""
        self._stopping = True
        supervisor, self._supervisor = self._supervisor, None
        tasks = {*self._keepers.values()} | ({supervisor} if supervisor is not None else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(*map(self._drop, [*self._subscriptions.values()]))
        self.wake()

    async def consumer_count(self) -> int:
        """Return the broker's count of consumers of the source that has the fewest. May raise ``Unavailable``."""
        if not self._sources:
            return 0
        channel = await self._connection.channel()
        try:
            return min([await topology.consumer_count(channel, source.queue) for source in self._sources])
        finally:
            await close_channel(channel)

    async def _wait_quiet(self) -> None:
        """Wait until no delivery arrives for ``QUIET`` seconds, at most ``MAX_QUIET_ROUNDS`` times that."""
        for _ in range(MAX_QUIET_ROUNDS):
            before = self._received
            await asyncio.sleep(QUIET)
            if self._received == before:
                return

    async def _keep_subscribed(self) -> None:
        """Have a task for each source that ``prepare`` returns, and end those of others."""
        failures = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            self._prepare_again.clear()
            with survive(f"consumer on {self._connection.name}", self._on_error):
                self._sources = await self._find_sources()
                await self._start_keepers()
                await self._prepare_again.wait()
            failures = _failures_after(began, failures)
            await asyncio.sleep(retry.delay(failures))

    async def _find_sources(self) -> Sequence[Source]:
        channel = await self._connection.channel()
        try:
            return await self._prepare(channel)
        finally:
            await close_channel(channel)

    async def _start_keepers(self) -> None:
        wanted = {source.queue: source for source in self._sources}
        unwanted = [self._keepers.pop(queue) for queue in [*self._keepers] if queue not in wanted]
        for keeper in unwanted:
            keeper.cancel()
        if unwanted:
            await asyncio.wait(unwanted)
        for queue, source in wanted.items():
            if queue not in self._keepers or self._keepers[queue].done():
                self._keepers[queue] = asyncio.create_task(self._keep(source), name=f"consumer of {queue}")

    async def _keep(self, source: Source) -> None:
        """Keep one source subscribed; one without ``ensure`` only until it is lost."""
        failures = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            with survive(f"consumer of {source.queue}", self._on_error):
                await self._subscribe_until_lost(source)
            if source.ensure is None:
                asyncio.get_running_loop().call_soon(self._prepare_again.set)  # when this task has ended
                return
            failures = _failures_after(began, failures)
            await asyncio.sleep(retry.delay(failures))

    async def _subscribe_until_lost(self, source: Source) -> None:
        if source.ensure is not None:
            await source.ensure()
        channel = await self._connection.channel()
        self._epoch += 1
        max_bytes = None if self._max_bytes is None else self._max_bytes // max(1, len(self._sources))
        window = PrefetchWindow(self._prefetch_of_each, max_bytes)
        subscription = Subscription(channel, self._epoch, source, window, truncating=max_bytes is not None)
        self._subscriptions[self._epoch] = subscription
        try:
            await self._apply(subscription)
            while not subscription.is_lost:
                await self._adjust(subscription)
                await subscription.attention.wait()
                subscription.attention.clear()
        finally:
            await self._drop(subscription)

    async def _apply(self, subscription: Subscription) -> None:
        """Start or stop consuming."""
        if self._paused:
            await subscription.cancel()
        else:
            await subscription.consume(self._receiver(subscription))

    async def _adjust(self, subscription: Subscription) -> None:
        """Adjust the prefetch; while acks are held back it stays as it is."""
        if not self._acks_allowed.is_set():
            return
        await subscription.adjust()
        if subscription.window.exhausted:
            self.wake()

    async def _apply_to_all(self) -> None:
        """Start or stop consuming on all channels; on failure, drop the channel."""
        await asyncio.gather(*map(self._try_apply, self._subscriptions.values()))

    async def _try_apply(self, subscription: Subscription) -> None:
        try:
            await self._apply(subscription)
        except Unavailable as error:
            self._on_error(str(error))
            subscription.lose()

    async def _drop(self, subscription: Subscription) -> None:
        """Drop the deliveries of a channel that is lost; the broker redelivers them."""
        if self._subscriptions.pop(subscription.epoch, None) is not None:
            kept = [each for each in self._buffer if each.epoch != subscription.epoch]
            self._buffer.clear()
            self._buffer.extend(kept)
            self._buffered_bytes = sum(each.size for each in kept)
        await close_channel(subscription.channel)

    def _receiver(self, subscription: Subscription) -> Receive:
        epoch, queue, window = subscription.epoch, subscription.source.queue, subscription.window

        def receive(delivery: Delivery) -> None:
            if epoch not in self._subscriptions:
                return
            self._received += 1
            if window.admit(delivery):
                delivery.epoch, delivery.queue = epoch, queue
                self._buffer.append(delivery)
                self._buffered_bytes += delivery.size
                if len(self._buffer) >= self._wake_at or self._buffered_bytes >= MAX_BATCH_BYTES:
                    self.wake()
            if window.full:
                subscription.attention.set()

        return receive

    async def _wait_buffered(self, count: int) -> None:
        """Wait until ``count`` deliveries are buffered, or until ``wake`` is called."""
        self._wake_at = count
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        """Let ``wait_for_change``, ``wait_buffered`` and a batch that waits for more deliveries wait no longer."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _failures_after(began: float, failures: int) -> int:
    """Return the number of failures in a row, after one that ``began`` at this time of the loop's clock."""
    lifetime = asyncio.get_running_loop().time() - began
    return 0 if lifetime > 2 * REQUEST_TIMEOUT else failures + 1
