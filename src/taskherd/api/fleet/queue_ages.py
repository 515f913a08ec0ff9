"""How long messages may have waited in the shared queues: since this process last found each queue empty.

RabbitMQ tells the age of a message only to who takes it out. Consumers take what comes at once, so messages wait in
these queues only while workers are away or behind, and none of them for longer than the queue has not been empty.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.api.fleet.snapshots import QueueDepths
    from taskherd.broker.diagnostics import QueueInfo

INTERVAL: Final = 10.0
"""Seconds between two looks at the queues."""


class QueueAges:
    """Watches the shared queues for as long as the process runs, whether or not anybody asks."""

    def __init__(self, depths: QueueDepths, queues: Sequence[str]) -> None:
        """Create it; ``run`` starts it."""
        self.queues = queues
        self._depths = depths
        self._empty_at: dict[str, datetime] = {}

    async def run(self) -> None:
        """Look at the queues until cancelled."""
        while True:
            asked_at = datetime.now(UTC)
            self.note(await self._depths.read(self.queues), asked_at)
            await asyncio.sleep(INTERVAL)

    def note(self, depths: Mapping[str, QueueInfo] | None, asked_at: datetime) -> None:
        """Note which of the queues the broker reported empty; ``depths`` is None if it did not answer."""
        for name in self.queues:
            if depths is not None and name in depths and not depths[name].messages:
                self._empty_at[name] = asked_at

    def waiting_since(self, queue: QueueInfo) -> datetime | None:
        """Return since when the messages of a queue wait at most; None if none waits, or if it was never empty."""
        return self._empty_at.get(queue.name) if queue.messages else None
