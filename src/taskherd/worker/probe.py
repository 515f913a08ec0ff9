"""The probe: a message that a worker sends itself through the report queue, to know whether the queue is drained.

Whoever takes it answers to the sender, after all that came before it is committed. Drained means that the last one
came back in time; any gap starts the listening anew.
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

    from taskherd.broker.consume import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.metrics import Metrics

BODY = b'{"type":"taskherd.probe"}'
MAX_ANSWERS = 64


def is_probe(delivery: Delivery) -> bool:
    """Whether a delivery of the report queue is a worker's probe."""
    return delivery.body == BODY and delivery.reply_to is not None


class Probe:
    """Sends probes, answers those it is shown, and knows since when the queue has been drained."""

    def __init__(
        self,
        publisher: Publisher,
        names: TopologyNames,
        replies: Consumer,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        """``replies`` takes from this worker's own queue, whose name ``reply_queue`` is set to."""
        self._publisher = publisher
        self._names = names
        self._replies = replies
        self._metrics = metrics
        self._now = now
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._answers: asyncio.Queue[Delivery] = asyncio.Queue(MAX_ANSWERS)
        self.reply_queue = ""
        self.drained_since: datetime | None = None

    def acknowledge(self, delivery: Delivery) -> None:
        """Answer a probe that was taken from the report queue; one too many is dropped, and its sender sees a gap."""
        with suppress(asyncio.QueueFull):
            self._answers.put_nowait(delivery)

    def reset(self) -> None:
        """Listening was interrupted: begin anew."""
        self.drained_since = None
        self._metrics.drained.set(0)

    async def answer(self) -> None:
        """Answer probes, one after the other."""
        while True:
            delivery = await self._answers.get()
            with suppress(Unavailable):
                await self._publisher.publish(
                    "", delivery.reply_to or "", BODY, correlation_id=delivery.correlation_id, expiration=60
                )

    async def receive(self) -> None:
        """Take the answers to our own probes."""
        while deliveries := await self._replies.batch(100, 0):
            for delivery in deliveries:
                waiting = self._waiting.get(delivery.correlation_id or "")
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
            await self._replies.ack(deliveries)

    async def send(self, every: float, timeout: float, queues: Sequence[str]) -> None:  # noqa: ASYNC109 - the bound
        """Send a probe through each report queue ``every`` so many seconds; each must be back within ``timeout``."""
        while True:
            began = monotonic()
            if self.reply_queue and await self._through(queues, timeout):
                self._metrics.probe_seconds.observe(monotonic() - began)
                self.drained_since = self.drained_since or self._now()
                self._metrics.drained.set(1)
            else:
                self.reset()
            await asyncio.sleep(max(0.0, every - (monotonic() - began)))

    async def _through(self, queues: Sequence[str], timeout: float) -> bool:  # noqa: ASYNC109 - the bound
        ids = [uuid4().hex for _ in queues]
        backs = [asyncio.get_running_loop().create_future() for _ in queues]
        self._waiting = dict(zip(ids, backs, strict=True))
        try:
            async with asyncio.timeout(timeout):
                for identity, queue in zip(ids, queues, strict=True):
                    # Without an expiration: a report queue buries what expires, and a probe is nothing to look at.
                    await self._publisher.publish("", queue, BODY, reply_to=self.reply_queue, correlation_id=identity)
                await asyncio.gather(*backs)
        except (TimeoutError, Unavailable):
            return False
        return True
