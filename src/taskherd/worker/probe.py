"""Find out whether the report queues are drained: a worker sends itself probes through them.

The worker that receives a probe replies to its sender, after everything before the probe is committed; to itself
without a message. The queues are drained while every probe comes back in time; after an interruption, ``drained_since``
is reset. A pause of this process is one, too: a frozen process leaves what it has been delivered in its sockets.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from taskherd.broker.direct_replies import publisher_with_replies
from taskherd.broker.publisher import OutgoingMessage
from taskherd.broker.reply_queues import DIRECT, is_direct
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import Publisher
    from taskherd.broker.unconfirmed import UnconfirmedPublisher
    from taskherd.observability.metrics import Metrics

BODY = b'{"type":"taskherd.probe"}'


def is_probe(delivery: Delivery) -> bool:
    """Return whether a delivery of a report queue is a worker's probe."""
    return delivery.body == BODY and delivery.reply_to is not None


class Probe:
    """Sends probes, replies to the probes received, and records since when the queues have been drained."""

    def __init__(
        self,
        publisher: Publisher,
        replies: UnconfirmedPublisher,
        metrics: Metrics,
        now: Callable[[], datetime],
        on_missing: Callable[[], Awaitable[None]],
    ) -> None:
        """Create the probe.

        Args:
            publisher: publishes the probes.
            replies: sends the replies to the probes of other workers.
            metrics: records whether the queues are drained.
            now: the worker's clock.
            on_missing: called when a probe did not come back in time.
        """
        self._publisher = publisher_with_replies(publisher, self._receive_reply)
        self._replies = replies
        self._metrics = metrics
        self._now = now
        self._on_missing = on_missing
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._drained_since: datetime | None = None
        self._back_at = -math.inf
        """The monotonic time at which the latest probes came back."""
        self._longest_gap = math.inf
        """The seconds after which the next ones have come back, or are missing, unless this process was paused."""

    @property
    def drained_since(self) -> datetime | None:
        """Since when the queues have been drained; None if they are not, or this process was paused a moment ago."""
        return None if monotonic() - self._back_at > self._longest_gap else self._drained_since

    def reply(self, delivery: Delivery) -> None:
        """Reply to a probe that was received."""
        if self._resolve(delivery.correlation_id) or delivery.reply_to is None or not is_direct(delivery.reply_to):
            return
        self._replies.offer(OutgoingMessage("", delivery.reply_to, BODY, correlation_id=delivery.correlation_id))

    def reset(self) -> None:
        """Reset ``drained_since`` after an interruption."""
        self._drained_since = None
        self._metrics.drained.set(0)

    def note_drained(self) -> None:
        """Note that all probes have come back."""
        self._drained_since = self.drained_since or self._now()
        self._back_at = monotonic()
        self._metrics.drained.set(1)

    def _receive_reply(self, delivery: Delivery) -> None:
        self._resolve(delivery.correlation_id)

    def _resolve(self, probe_id: str | None) -> bool:
        """Note that a probe came back, and return whether it is one of this worker's."""
        waiting = self._waiting.get(probe_id or "")
        if waiting is None:
            return False
        if not waiting.done():
            waiting.set_result(None)
        return True

    async def send_probes(self, every: float, timeout: float, queues: Sequence[str]) -> None:  # noqa: ASYNC109 - a limit
        """Probe all report queues ``every`` seconds; each probe must come back within ``timeout`` seconds."""
        self._longest_gap = every + timeout
        while True:
            started_at = monotonic()
            if await self.probe_once(queues, timeout):
                self._metrics.probe_seconds.observe(monotonic() - started_at)
                self.note_drained()
            else:
                self.reset()
                await self._on_missing()
            await asyncio.sleep(max(0.0, every - (monotonic() - started_at)))

    async def probe_once(self, queues: Sequence[str], timeout: float) -> bool:  # noqa: ASYNC109 - a limit
        """Send a probe through each queue, all together, and return whether all came back in time."""
        ids = [uuid4().hex for _ in queues]
        received = [asyncio.get_running_loop().create_future() for _ in queues]
        self._waiting = dict(zip(ids, received, strict=True))
        # Without an expiration, because expired messages of a report queue become dead letters.
        probes = [
            OutgoingMessage("", queue, BODY, reply_to=DIRECT, correlation_id=probe_id)
            for probe_id, queue in zip(ids, queues, strict=True)
        ]
        try:
            async with asyncio.timeout(timeout):
                outcomes = await self._publisher.publish_many(probes)
                if any(isinstance(outcome, Unavailable) for outcome in outcomes):
                    return False
                await asyncio.gather(*received)
        except TimeoutError:
            return False
        return True
