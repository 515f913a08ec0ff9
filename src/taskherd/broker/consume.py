"""The intake: deliveries wait in a bounded buffer, are taken in batches, and acknowledged after commit.

It consumes on aio-pika's own aiormq channel, since `aio_pika.Message` costs more than the rest of the way. The callback
only appends: aiormq cancels callbacks when a connection drops, so nothing else may run there. The buffer is bounded by
the prefetch, beyond which the broker sends nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from taskherd import retry
from taskherd.broker import topology
from taskherd.broker.ack_tracker import AckTracker
from taskherd.broker.connection import TIMEOUT, SupervisedConnection, map_errors
from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher, Receive
from taskherd.broker.patches.frame_reader import TAG_PREFIX
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

    from taskherd.broker.delivery import Delivery


QUIET = 0.1
"""Seconds without a delivery after which none is on its way, since nothing is acknowledged."""

MAX_QUIET_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Source:
    """A queue to consume from; of a queue's consumers, those with the highest `priority` are served first."""

    queue: str
    priority: int | None = None


class _Subscription:
    """The life of one channel that is consumed on."""

    def __init__(self, channel: AbstractChannel, epoch: int, sources: Sequence[Source]) -> None:
        self.channel = channel
        self.epoch = epoch
        self.sources = sources
        self.outstanding = AckTracker()
        self.tags: list[str] = []
        self._dispatcher = DeliveryDispatcher(channel)
        self.lost = asyncio.Event()
        self._changing = asyncio.Lock()
        channel.closing.add_done_callback(lambda _: self.lost.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self.lost.set())

    async def consume(self, receive: Callable[[str], Receive], prefetch: int) -> None:
        """Begin to consume; does nothing when it did already."""
        async with self._changing:
            if self.tags:
                return
            with map_errors("consuming"):
                async with asyncio.timeout(TIMEOUT):
                    await self.channel.basic_qos(prefetch_count=max(1, prefetch // len(self.sources)))
                    for source in self.sources:
                        arguments: FieldTable | None = (
                            None if source.priority is None else {"x-priority": source.priority}
                        )
                        tag = f"{TAG_PREFIX}{self.epoch}.{uuid4().hex}"
                        callback = self._dispatcher.register(tag, receive(source.queue))
                        await self.channel.basic_consume(source.queue, callback, arguments=arguments, consumer_tag=tag)
                        self.tags.append(tag)

    async def cancel(self) -> None:
        """Stop consuming."""
        async with self._changing:
            with map_errors("cancelling a consumer"):
                async with asyncio.timeout(TIMEOUT):
                    while self.tags:
                        await self.channel.basic_cancel(self.tags.pop())

    async def ack(self, tags: Iterable[int]) -> None:
        acks = self.outstanding.settle(tags)
        frames = [(tag, False) for tag in acks.single]
        if acks.up_to is not None:
            frames.append((acks.up_to, True))
        with map_errors("acknowledging"):
            async with asyncio.timeout(TIMEOUT):
                for tag, multiple in frames:
                    # Frames leave in order, so it is enough to see the last one off.
                    await self.channel.basic_ack(tag, multiple=multiple, wait=tag == frames[-1][0])


class Consumer:
    """Deliveries from the sources that `prepare` returns, subscribed to again whenever the channel was lost.

    `prepare` gets each new channel and declares what must be there; a server-named queue is thus no special case.
    `on_trouble` gets the reason each time subscribing fails. One task at a time may wait in `batch`.
    """

    def __init__(
        self,
        connection: SupervisedConnection,
        prepare: Callable[[AbstractChannel], Awaitable[Sequence[Source]]],
        *,
        prefetch: int = 4000,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._link = connection
        self._prepare = prepare
        self._prefetch = prefetch
        self._on_trouble = on_trouble
        self._buffer: deque[Delivery] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 1
        self._epoch = 0
        self._current: _Subscription | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._paused = False
        self._stopping = False
        self._arrived = 0
        self._acking = asyncio.Event()
        self._acking.set()

    @property
    def consuming(self) -> bool:
        """Whether the broker sends us deliveries, as far as we know."""
        return self._current is not None and bool(self._current.tags)

    @property
    def buffered(self) -> int:
        """How many deliveries wait here to be taken."""
        return len(self._buffer)

    def start(self) -> None:
        """Begin to consume, in the background, as soon as the link is up."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._keep_subscribed(), name=f"intake {self._link.name}")

    async def batch(self, limit: int, wait: float) -> list[Delivery]:
        """Return 1 to `limit` deliveries, in order: at least one, then what comes within `wait` seconds.

        Returns none only after `stop`, when the buffer is empty.
        """
        while True:
            while not self._buffer:
                if self._stopping:
                    return []
                await self._arrival(1)
            if len(self._buffer) < limit and wait > 0 and not self._stopping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._arrival(limit)
            if self._buffer:  # a lost channel may have emptied it meanwhile
                return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    async def ack(self, deliveries: Sequence[Delivery]) -> bool:
        """Acknowledge `deliveries`, all they came before included in one frame where possible.

        Returns whether all were; false means that some came on a channel that is gone, and will come again.
        """
        await self._acking.wait()
        current = self._current
        if current is None:
            return not deliveries
        tags = [each.delivery_tag for each in deliveries if each.epoch == current.epoch]
        try:
            await current.ack(tags)
        except Unavailable:
            if not current.channel.is_closed:
                self._link.drop()  # whether they were sent is unknown, and a new channel settles it
            return False
        return len(tags) == len(deliveries)

    async def pause(self) -> None:
        """Ask the broker for no more; what is buffered stays."""
        self._paused = True
        await self._apply()

    async def resume(self) -> None:
        """Consume again after `pause`."""
        self._paused = self._stopping
        await self._apply()

    async def stop(self) -> None:
        """Consume no more, for good; what is buffered can still be taken and acknowledged.

        A quorum queue hands out more as soon as something is acknowledged, and what it hands to a consumer that is
        being cancelled never arrives and comes again later. So acks are held back meanwhile.
        """
        self._acking.clear()
        try:
            await self._quiet()
            await self.pause()
        finally:
            self._acking.set()
        self._stopping = True
        self._wake()

    async def close(self) -> None:
        """Close the channel; what is not acknowledged goes back to its queue."""
        self._stopping = True
        keeper, self._supervisor = self._supervisor, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        if self._current is not None:
            await self._drop(self._current)
        self._wake()

    async def consumers(self) -> int:
        """Return how many consumers the broker counts, on the source that has the fewest; raises `Unavailable`."""
        current = self._current
        if current is None:
            return 0
        channel = await self._link.channel()
        try:
            return min([await topology.consumers(channel, source.queue) for source in current.sources])
        finally:
            await _close(channel)

    async def _quiet(self) -> None:
        """Return when nothing has arrived for a moment, at the latest after a few."""
        for _ in range(MAX_QUIET_ROUNDS):
            before = self._arrived
            await asyncio.sleep(QUIET)
            if self._arrived == before:
                return

    async def _keep_subscribed(self) -> None:
        failures = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            try:
                subscription = await self._subscribe()
            except (Unavailable, Misconfigured) as error:
                self._on_trouble(str(error))
            else:
                await subscription.lost.wait()
                await self._drop(subscription)
            lived = asyncio.get_running_loop().time() - began
            failures = 0 if lived > 2 * TIMEOUT else failures + 1
            await asyncio.sleep(retry.delay(failures))

    async def _subscribe(self) -> _Subscription:
        channel = await self._link.channel()
        try:
            sources = await self._prepare(channel)
        except BaseException:
            await _close(channel)
            raise
        self._epoch += 1
        self._current = _Subscription(channel, self._epoch, sources)
        await self._apply()
        return self._current

    async def _apply(self) -> None:
        """Consume on the current channel, or not, as is wanted now; a channel that fails to is given up."""
        current = self._current
        if current is None:
            return
        try:
            if self._paused:
                await current.cancel()
            else:
                await current.consume(lambda queue: self._receiver(current.epoch, queue), self._prefetch)
        except Unavailable as error:
            self._on_trouble(str(error))
            current.lost.set()

    async def _drop(self, subscription: _Subscription) -> None:
        """Forget what came on a channel that is gone; it comes again."""
        self._current = None
        self._epoch += 1
        self._buffer.clear()
        await _close(subscription.channel)

    def _receiver(self, epoch: int, queue: str) -> Receive:
        def receive(delivery: Delivery) -> None:
            if epoch == self._epoch:
                delivery.epoch, delivery.queue = epoch, queue
                self._arrived += 1
                self._buffer.append(delivery)
                if len(self._buffer) >= self._wanted:
                    self._wake()

        return receive

    async def _arrival(self, wanted: int) -> None:
        """Wait until `wanted` deliveries are buffered, or as many as the prefetch allows, or something changed."""
        self._wanted = min(wanted, self._prefetch)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _close(channel: AbstractChannel) -> None:
    with suppress(Unavailable), map_errors("closing a channel"):
        async with asyncio.timeout(TIMEOUT):
            await channel.close()
