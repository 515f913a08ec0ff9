"""Tell APIs that the feed has new changes, so that they read it at once instead of every few seconds.

The exchange is not that of the events, because an API's queue on a hung node would hold up the confirms of all events.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from taskherd.broker.publisher import OutgoingMessage

if TYPE_CHECKING:
    from taskherd.broker.unconfirmed import UnconfirmedPublisher

MIN_INTERVAL: Final = 0.2
"""Minimum number of seconds between two wakeups.

RabbitMQ stops a channel after 400 messages to a classic queue that takes none, and needs up to 75 s to find out that a
node hangs (``credit_flow_default_credit``, ``net_ticktime``): fewer than 400 messages keep other APIs awake.
"""


class Wakeups:
    """The wakeups of one worker; those within ``MIN_INTERVAL`` are sent as one."""

    def __init__(self, publisher: UnconfirmedPublisher, exchange: str) -> None:
        """Create the object. ``publisher`` needs to keep one message only."""
        self._publisher = publisher
        self._exchange = exchange
        self._due = asyncio.Event()

    def notify(self) -> None:
        """Have a wakeup sent, after changes got their positions in the feed."""
        self._due.set()

    async def run(self) -> None:
        """Send wakeups when they are due."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._publisher.offer(OutgoingMessage(self._exchange, "feed", b""))
            await asyncio.sleep(MIN_INTERVAL)
