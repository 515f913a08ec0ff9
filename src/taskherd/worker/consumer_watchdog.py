"""Subscribe again to queues whose consumers the broker has lost without telling us.

Nobody would notice: the worker waits for deliveries and is ready, while commands and claims stay in their queues.
Probes show it for the report queues.

Nor do probes show that the node hangs which delivers commands and claims, if reports come from another one. So their
connection is checked, and the worker leaves that node sooner than by heartbeats.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.consumer import Consumer

log = structlog.get_logger(__name__)

EVERY = 30.0
"""Seconds between two checks of the consumers."""

NODE_EVERY = 5.0
"""Seconds between two checks of the connection."""

MAX_MISSING = 2
"""Number of checks in a row that must find no consumer: after the first one it may just be about to subscribe."""


class ConsumerWatchdog:
    """Watches consumers that count as subscribed, and their connection."""

    def __init__(self, consumers: Sequence[Consumer], connection: SupervisedConnection) -> None:
        """Create the watchdog; ``run`` starts it."""
        self._consumers = consumers
        self._connection = connection
        self._missing: Counter[Consumer] = Counter()

    async def run(self) -> None:
        """Check until cancelled."""
        async with asyncio.TaskGroup() as checks:
            checks.create_task(self._check_consumers(), name="check consumers")
            checks.create_task(self._check_node(), name="check node")

    async def _check_consumers(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self.check_once()

    async def _check_node(self) -> None:
        while True:
            await asyncio.sleep(NODE_EVERY)
            await self._connection.drop_if_hung(REQUEST_TIMEOUT)

    async def check_once(self) -> int:
        """Ask the broker how many consumers each queue has, and return how many consumers subscribe again."""
        lost = [consumer for consumer in self._consumers if await self._is_lost(consumer)]
        for consumer in lost:
            log.warning("the broker has lost a consumer, subscribing again")
            consumer.resubscribe()
        return len(lost)

    async def _is_lost(self, consumer: Consumer) -> bool:
        try:
            missing = consumer.consuming and await consumer.consumer_count() == 0
        except (Unavailable, Misconfigured):  # nothing is known
            return False
        self._missing[consumer] = self._missing[consumer] + 1 if missing else 0
        return self._missing[consumer] % MAX_MISSING == 0 and missing
