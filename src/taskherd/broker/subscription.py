"""A queue to consume from, and the consumer of one queue on a channel of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from taskherd.broker.ack_tracker import AckTracker
from taskherd.broker.connection import REQUEST_TIMEOUT, map_errors
from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher, Receive
from taskherd.broker.patches.frame_reader import LIMITED_TAG_PREFIX, TAG_PREFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable


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

    def __init__(self, channel: AbstractChannel, epoch: int, source: Source, *, truncating: bool) -> None:
        """Create it; with ``truncating`` only the beginning of a body that is too large is kept."""
        self.channel = channel
        self.epoch = epoch
        self.source = source
        self._acks = AckTracker()
        self._tag = ""
        self._tag_prefix = LIMITED_TAG_PREFIX if truncating else TAG_PREFIX
        self._dispatcher = DeliveryDispatcher(channel)
        self.lost = asyncio.Event()
        self._changing = asyncio.Lock()
        channel.closing.add_done_callback(lambda _: self.lost.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self.lost.set())

    @property
    def consuming(self) -> bool:
        """True while the queue delivers, as far as is known."""
        return bool(self._tag) and not self.lost.is_set()

    async def consume(self, receive: Receive, prefetch: int) -> None:
        """Start consuming; idempotent."""
        async with self._changing:
            if self._tag:
                return
            priority = self.source.priority
            arguments: FieldTable | None = None if priority is None else {"x-priority": priority}
            tag = f"{self._tag_prefix}{self.epoch}.{uuid4().hex}"
            callback = self._dispatcher.register(tag, receive)
            with map_errors(f"consuming {self.source.queue}"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self.channel.basic_qos(prefetch_count=prefetch)
                    await self.channel.basic_consume(self.source.queue, callback, arguments=arguments, consumer_tag=tag)
            self._tag = tag

    async def cancel(self) -> None:
        """Stop consuming."""
        async with self._changing:
            if not self._tag:
                return
            with map_errors(f"cancelling the consumer of {self.source.queue}"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self.channel.basic_cancel(self._tag)
            self._tag = ""

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
