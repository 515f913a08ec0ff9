"""A queue to consume from, and the consumer of one queue on a channel of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

from taskherd.broker.ack_tracker import Acks, AckTracker
from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher, Receive
from taskherd.broker.patches.frame_reader import LIMITED_TAG_PREFIX, TAG_PREFIX
from taskherd.broker.prefetch_window import PrefetchWindow, Step
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

    from taskherd.broker.delivery import Delivery


QUIET: Final = 0.1
"""This many seconds without a delivery mean that none is in flight, while nothing is acknowledged."""

MAX_REFUSING: Final = 2.0
"""Seconds that deliveries are refused at most before their consumer is canceled."""


@dataclass(frozen=True, slots=True)
class Source:
    """A queue to consume from; the broker serves the consumers of a queue with the highest ``priority`` first.

    ``ensure`` is called before each attempt to consume, and raises ``Unavailable`` while the queue does not exist.
    Without it, a consumer that loses its queue asks for its sources again.
    """

    queue: str
    priority: int | None = None
    ensure: Callable[[], Awaitable[None]] | None = None


class Subscription:
    """The consumer of one queue, from the opening of its channel to its loss.

    Its channel has no other consumer, because the broker executes the requests on a channel one after the other: one
    about a queue whose leader hangs holds up those about other queues.
    """

    def __init__(
        self, channel: AbstractChannel, epoch: int, source: Source, window: PrefetchWindow, *, truncating: bool
    ) -> None:
        """Create it; with ``truncating`` only the beginning of a body that is too large is kept."""
        self.channel = channel
        self.epoch = epoch
        self.source = source
        self.window = window
        self._acks = AckTracker()
        self._receive: Receive | None = None
        self._tag = ""
        self._tag_prefix = LIMITED_TAG_PREFIX if truncating else TAG_PREFIX
        self._dispatcher = DeliveryDispatcher(channel)
        self.is_lost = False
        self.attention = asyncio.Event()
        """Set when the window may have to be adjusted, or the channel is lost."""

        self._changing = asyncio.Lock()
        channel.closing.add_done_callback(lambda _: self.lose())
        channel.on_consumer_cancel_callbacks.add(lambda _: self.lose())

    @property
    def consuming(self) -> bool:
        """True while the queue delivers, as far as is known, or will go on as soon as there is room."""
        return not self.is_lost and (bool(self._tag) or (self.window.stopped and self._receive is not None))

    def lose(self) -> None:
        """Note that the channel is lost, or is to be replaced."""
        self.is_lost = True
        self.attention.set()

    async def consume(self, receive: Receive) -> None:
        """Start consuming; idempotent."""
        async with self._changing:
            self._receive = receive
            if self.window.stopped:
                self.attention.set()
            elif not self._tag:
                self.window.resume()
                await self._start(receive)

    async def cancel(self) -> None:
        """Stop consuming."""
        async with self._changing:
            self._receive = None
            if self._tag:
                await self._cancel(self._tag)
                self._tag = ""

    async def adjust(self) -> None:
        """Do what the window says. Acks wait, so that a full consumer stays full until it is replaced."""
        async with self._changing:
            receive = self._receive
            if receive is None:
                return
            match self.window.next_step():
                case Step.STOP:
                    await self._refuse_rest()
                    await self._cancel(self._tag)
                    self._tag = ""
                    await self._return(self.window.stop())
                case Step.RESUME:
                    self.window.resume()
                    await self._start(receive)
                case Step.WIDEN:
                    replaced = self._tag
                    self.window.widen()
                    await self._start(receive)
                    await self._cancel(replaced)
                case Step.NOTHING:
                    pass
                case never:
                    assert_never(never)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Send the acks for ``deliveries`` and wait until they are written to the socket."""
        async with self._changing:
            self.window.settle(deliveries)
            acks = self._acks.acknowledge(delivery.delivery_tag for delivery in deliveries)
            with map_errors("acknowledging"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self._settle(acks, self.channel.basic_ack)
        if self.window.stopped:
            self.attention.set()

    async def _refuse_rest(self) -> None:
        """Wait for the deliveries that are in flight, so that all that are refused return to the queue in order.

        RabbitMQ itself returns those that reach a canceled consumer: before others that are older and were refused.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_REFUSING):
                while self.window.refusing_more and not self.is_lost:
                    self.attention.clear()
                    async with asyncio.timeout(QUIET):
                        await self.attention.wait()

    async def _return(self, tags: Sequence[int]) -> None:
        """Return deliveries to the queue, for any consumer of it. RabbitMQ before 4.3 counts that as a failure."""
        acks = self._acks.acknowledge(tags)
        with map_errors("returning messages"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._settle(acks, self.channel.basic_nack)

    async def _settle(self, acks: Acks, send: Callable[..., Awaitable[None]]) -> None:
        frames = [(tag, False) for tag in acks.single]
        if acks.up_to is not None:
            frames.append((acks.up_to, True))
        for tag, multiple in frames:
            # Frames are sent in order, so waiting for the last one suffices.
            await send(tag, multiple=multiple, wait=tag == frames[-1][0])

    async def _start(self, receive: Receive) -> None:
        """Start a consumer with the window's prefetch."""
        priority = self.source.priority
        arguments: FieldTable | None = None if priority is None else {"x-priority": priority}
        tag = f"{self._tag_prefix}{self.epoch}.{uuid4().hex}"
        callback = self._dispatcher.register(tag, receive)
        with map_errors(f"consuming {self.source.queue}"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self.channel.basic_qos(prefetch_count=self.window.size)
                await self.channel.basic_consume(self.source.queue, callback, arguments=arguments, consumer_tag=tag)
        self._tag = tag

    async def _cancel(self, tag: str) -> None:
        with map_errors(f"cancelling the consumer of {self.source.queue}"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self.channel.basic_cancel(tag)
        self._dispatcher.unregister(tag)
