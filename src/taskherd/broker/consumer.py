"""A consumer that buffers deliveries, returns them in batches, and acknowledges them when the caller asks.

It uses the aiormq channel below aio-pika, because an ``aio_pika.Message`` costs more CPU than everything else here. The
callback only appends to the buffer: aiormq cancels callbacks when a connection drops, so nothing else may run there.
The prefetch limits the buffer, because the broker sends no more unacknowledged messages than that.
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
from taskherd.broker.connection import REQUEST_TIMEOUT, SupervisedConnection, map_errors
from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher, Receive
from taskherd.broker.patches.frame_reader import TAG_PREFIX
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

    from taskherd.broker.delivery import Delivery


QUIET = 0.1
"""While acks are held back, this many seconds without a delivery mean that none is in flight."""

MAX_QUIET_ROUNDS = 20
"""Maximum number of times ``QUIET`` that ``stop`` waits."""


@dataclass(frozen=True, slots=True)
class Source:
    """A queue to consume from; the broker serves the consumers of a queue with the highest ``priority`` first."""

    queue: str
    priority: int | None = None


class _Subscription:
    """The consumers on one channel, from its opening to its loss."""

    def __init__(self, channel: AbstractChannel, epoch: int, sources: Sequence[Source]) -> None:
        self.channel = channel
        self.epoch = epoch
        self.sources = sources
        self._acks = AckTracker()
        self.consumer_tags: list[str] = []
        self._dispatcher = DeliveryDispatcher(channel)
        self.lost = asyncio.Event()
        self._changing = asyncio.Lock()
        channel.closing.add_done_callback(lambda _: self.lost.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self.lost.set())

    async def consume(self, receive: Callable[[str], Receive], prefetch: int) -> None:
        """Start consuming; idempotent."""
        async with self._changing:
            if self.consumer_tags:
                return
            with map_errors("consuming"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self.channel.basic_qos(prefetch_count=max(1, prefetch // len(self.sources)))
                    for source in self.sources:
                        arguments: FieldTable | None = (
                            None if source.priority is None else {"x-priority": source.priority}
                        )
                        tag = f"{TAG_PREFIX}{self.epoch}.{uuid4().hex}"
                        callback = self._dispatcher.register(tag, receive(source.queue))
                        await self.channel.basic_consume(source.queue, callback, arguments=arguments, consumer_tag=tag)
                        self.consumer_tags.append(tag)

    async def cancel(self) -> None:
        """Stop consuming."""
        async with self._changing:
            with map_errors("cancelling a consumer"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    while self.consumer_tags:
                        await self.channel.basic_cancel(self.consumer_tags.pop())

    async def ack(self, tags: Iterable[int]) -> None:
        """Send the acks for ``tags`` and wait until they are written to the socket."""
        acks = self._acks.acknowledge(tags)
        frames = [(tag, False) for tag in acks.single]
        if acks.up_to is not None:
            frames.append((acks.up_to, True))
        with map_errors("acknowledging"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                for tag, multiple in frames:
                    # Frames are sent in order, so waiting for the last one suffices.
                    await self.channel.basic_ack(tag, multiple=multiple, wait=tag == frames[-1][0])


class Consumer:
    """A consumer of the sources that ``prepare`` returns; it subscribes again whenever the channel is lost.

    Only one task may call ``next_batch`` at a time.
    """

    def __init__(
        self,
        connection: SupervisedConnection,
        prepare: Callable[[AbstractChannel], Awaitable[Sequence[Source]]],
        *,
        prefetch: int,
        on_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create the consumer; it subscribes after ``start``.

        Args:
            connection: a connection that is not used for publishing.
            prepare: called with each new channel; declares the queues, including server-named ones.
            prefetch: maximum number of unacknowledged deliveries, divided equally over the sources.
            on_error: called with the reason when subscribing fails; the consumer retries by itself.
        """
        self._connection = connection
        self._prepare = prepare
        self._prefetch = prefetch
        self._on_error = on_error
        self._buffer: deque[Delivery] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_at = 1
        self._epoch = 0
        self._current: _Subscription | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._paused = False
        self._stopping = False
        self._received = 0
        self._acks_allowed = asyncio.Event()
        self._acks_allowed.set()

    @property
    def consuming(self) -> bool:
        """True while subscribed, as far as is known."""
        return self._current is not None and bool(self._current.consumer_tags)

    @property
    def buffered(self) -> int:
        """Number of deliveries in the buffer."""
        return len(self._buffer)

    def start(self) -> None:
        """Start consuming in the background, as soon as the connection is up."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._keep_subscribed(), name=f"consumer on {self._connection.name}")

    async def next_batch(self, limit: int, wait: float) -> list[Delivery]:
        """Return 1 to ``limit`` deliveries, in order: wait for the first one, then up to ``wait`` seconds for more.

        The result is empty only after ``stop``, when the buffer is empty.
        """
        while True:
            while not self._buffer:
                if self._stopping:
                    return []
                await self._wait_buffered(1)
            if len(self._buffer) < limit and wait > 0 and not self._stopping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wait_buffered(limit)
            if self._buffer:  # a lost channel may have cleared it in the meantime
                return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    async def ack(self, deliveries: Sequence[Delivery]) -> bool:
        """Acknowledge ``deliveries``, in one frame where possible.

        Return False if some deliveries belong to a closed channel; the broker redelivers those.
        """
        await self._acks_allowed.wait()
        current = self._current
        if current is None:
            return not deliveries
        tags = [each.delivery_tag for each in deliveries if each.epoch == current.epoch]
        try:
            await current.ack(tags)
        except Unavailable:
            if not current.channel.is_closed:
                self._connection.drop()  # unknown whether they were sent; a new channel makes it certain
            return False
        return len(tags) == len(deliveries)

    async def pause(self) -> None:
        """Stop the flow of deliveries; buffered ones stay."""
        self._paused = True
        await self._apply()

    async def resume(self) -> None:
        """Consume again after ``pause``."""
        self._paused = self._stopping
        await self._apply()

    def resubscribe(self) -> None:
        """Subscribe again, to the sources that ``prepare`` returns then; unacknowledged deliveries are requeued."""
        if self._current is not None:
            self._current.lost.set()

    async def stop(self) -> None:
        """Stop consuming for good; buffered deliveries can still be processed and acknowledged.

        A quorum queue delivers more as soon as something is acknowledged, and a message that it sends to a consumer
        that is being cancelled never arrives and is redelivered later. Therefore acks wait until the end.
        """
        self._acks_allowed.clear()
        try:
            await self._wait_quiet()
            await self.pause()
        finally:
            self._acks_allowed.set()
        self._stopping = True
        self._wake()

    async def close(self) -> None:
        """Close the channel; the broker requeues unacknowledged deliveries."""
        self._stopping = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait({supervisor})
        if self._current is not None:
            await self._drop(self._current)
        self._wake()

    async def consumer_count(self) -> int:
        """Return the broker's count of consumers of the source that has the fewest. May raise ``Unavailable``."""
        current = self._current
        if current is None:
            return 0
        channel = await self._connection.channel()
        try:
            return min([await topology.consumer_count(channel, source.queue) for source in current.sources])
        finally:
            await _close(channel)

    async def _wait_quiet(self) -> None:
        """Wait until no delivery arrives for ``QUIET`` seconds, at most ``MAX_QUIET_ROUNDS`` times that."""
        for _ in range(MAX_QUIET_ROUNDS):
            before = self._received
            await asyncio.sleep(QUIET)
            if self._received == before:
                return

    async def _keep_subscribed(self) -> None:
        failures = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            try:
                subscription = await self._subscribe()
            except (Unavailable, Misconfigured) as error:
                self._on_error(str(error))
            else:
                await subscription.lost.wait()
                await self._drop(subscription)
            lifetime = asyncio.get_running_loop().time() - began
            failures = 0 if lifetime > 2 * REQUEST_TIMEOUT else failures + 1
            await asyncio.sleep(retry.delay(failures))

    async def _subscribe(self) -> _Subscription:
        channel = await self._connection.channel()
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
        """Start or stop consuming on the current channel; on failure, drop the channel."""
        current = self._current
        if current is None:
            return
        try:
            if self._paused:
                await current.cancel()
            else:
                await current.consume(lambda queue: self._receiver(current.epoch, queue), self._prefetch)
        except Unavailable as error:
            self._on_error(str(error))
            current.lost.set()

    async def _drop(self, subscription: _Subscription) -> None:
        """Drop the deliveries of a closed channel; the broker redelivers them."""
        self._current = None
        self._epoch += 1
        self._buffer.clear()
        await _close(subscription.channel)

    def _receiver(self, epoch: int, queue: str) -> Receive:
        def receive(delivery: Delivery) -> None:
            if epoch == self._epoch:
                delivery.epoch, delivery.queue = epoch, queue
                self._received += 1
                self._buffer.append(delivery)
                if len(self._buffer) >= self._wake_at:
                    self._wake()

        return receive

    async def _wait_buffered(self, count: int) -> None:
        """Wait until ``count`` deliveries are buffered (at most the prefetch), or until ``_wake`` is called."""
        self._wake_at = min(count, self._prefetch)
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
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await channel.close()
