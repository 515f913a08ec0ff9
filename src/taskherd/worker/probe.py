"""Find out whether the report queues are drained: a worker sends itself probes through them.

The worker that receives a probe replies to its sender, after everything before the probe is committed. The queues are
drained while every probe comes back in time; after an interruption, ``drained_since`` is reset.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import Publisher
    from taskherd.observability.metrics import Metrics

BODY = b'{"type":"taskherd.probe"}'
MAX_PENDING_REPLIES = 64
"""Maximum number of received probes that wait for their reply; more are dropped."""

MAX_DELIVERIES = 100
"""Maximum number of replies that are taken from the buffer at a time."""


def is_probe(delivery: Delivery) -> bool:
    """Return whether a delivery of a report queue is a worker's probe."""
    return delivery.body == BODY and delivery.reply_to is not None


class Probe:
    """Sends probes, replies to the probes received, and records since when the queues have been drained."""

    def __init__(
        self,
        publisher: Publisher,
        replies: Consumer,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        """Create the probe. ``replies`` consumes this worker's reply queue, whose name ``reply_queue`` is set to."""
        self._publisher = publisher
        self._replies = replies
        self._metrics = metrics
        self._now = now
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._to_reply: asyncio.Queue[Delivery] = asyncio.Queue(MAX_PENDING_REPLIES)
        self.reply_queue = ""
        self.drained_since: datetime | None = None

    def enqueue_reply(self, delivery: Delivery) -> None:
        """Queue the reply to a probe. If the queue is full the probe is dropped, which its sender sees as a gap."""
        with suppress(asyncio.QueueFull):
            self._to_reply.put_nowait(delivery)

    def reset(self) -> None:
        """Reset ``drained_since`` after an interruption."""
        self.drained_since = None
        self._metrics.drained.set(0)

    async def send_replies(self) -> None:
        """Reply to the probes received, one after the other."""
        while True:
            await self._reply_once()

    async def _reply_once(self) -> None:
        delivery = await self._to_reply.get()
        with suppress(Unavailable):
            await self._publisher.publish(
                "", delivery.reply_to or "", BODY, correlation_id=delivery.correlation_id, expiration=60
            )

    async def receive_replies(self) -> None:
        """Receive the replies to this worker's probes until consuming has stopped and the buffer is empty."""
        while await self._receive_once():
            continue

    async def _receive_once(self) -> int:
        """Receive the next replies and return their number."""
        deliveries = await self._replies.next_batch(MAX_DELIVERIES, 0)
        for delivery in deliveries:
            waiting = self._waiting.get(delivery.correlation_id or "")
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        if deliveries:
            await self._replies.ack(deliveries)
        return len(deliveries)

    async def send_probes(self, every: float, timeout: float, queues: Sequence[str]) -> None:  # noqa: ASYNC109 - a limit
        """Probe all report queues ``every`` seconds; each probe must come back within ``timeout`` seconds."""
        while True:
            started_at = monotonic()
            if self.reply_queue and await self._probe_once(queues, timeout):
                self._metrics.probe_seconds.observe(monotonic() - started_at)
                self.drained_since = self.drained_since or self._now()
                self._metrics.drained.set(1)
            else:
                self.reset()
            await asyncio.sleep(max(0.0, every - (monotonic() - started_at)))

    async def _probe_once(self, queues: Sequence[str], timeout: float) -> bool:  # noqa: ASYNC109 - a limit
        """Send a probe through each queue and return whether all came back in time."""
        ids = [uuid4().hex for _ in queues]
        received = [asyncio.get_running_loop().create_future() for _ in queues]
        self._waiting = dict(zip(ids, received, strict=True))
        try:
            async with asyncio.timeout(timeout):
                for probe_id, queue in zip(ids, queues, strict=True):
                    # Without an expiration, because expired messages of a report queue become dead letters.
                    await self._publisher.publish("", queue, BODY, reply_to=self.reply_queue, correlation_id=probe_id)
                await asyncio.gather(*received)
        except (TimeoutError, Unavailable):
            return False
        return True
