"""Declare exchanges and queues without holding up consuming.

A declaration waits while a node of RabbitMQ's cluster hangs, for a minute and more, and a passive check does not. So
before it consumes, a worker checks and declares only what is missing; once after each connection, in the background and
on a connection of its own, it declares all, which also repairs bindings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskherd import retry
from taskherd.broker import topology
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.topology import TopologyNames


class Topology:
    """The exchanges and shared queues of an installation."""

    def __init__(
        self,
        checking: SupervisedConnection,
        declaring: SupervisedConnection,
        names: TopologyNames,
        partitions: int,
        on_error: Callable[[str], None],
    ) -> None:
        """Create the object; ``run`` starts the background part.

        Args:
            checking: the connection on which is checked what exists: the one that will consume from it.
            declaring: the connection on which is declared; RabbitMQ may close it while a node hangs.
            names: the names of exchanges and queues.
            partitions: the number of partitions of the reports.
            on_error: called with each error in the background.
        """
        self._checking = checking
        self._declaring = declaring
        self._names = names
        self._partitions = partitions
        self._on_error = on_error
        self._lock = asyncio.Lock()
        self._due = asyncio.Event()
        self._due.set()

    def reset(self) -> None:
        """Have all declared again: after a reconnect the broker may be another one."""
        self._due.set()

    async def ensure(self, queue: str) -> None:
        """Declare the shared queue ``queue``, and what it is bound to, if one of them is missing.

        Raises:
            Unavailable: the broker cannot be reached, or what is missing could not be declared in time.
            Misconfigured: an exchange or queue exists with other properties.
        """
        has_exchanges, has_queue = await self._check(queue)
        if not has_exchanges:
            async with self._lock:  # of all that find them missing, one declares them
                has_exchanges, has_queue = await self._check(queue)
                if not has_exchanges:
                    await self._declare()
                    return
        if not has_queue:
            async with self._declaring.temporary_channel() as channel:
                await topology.declare_queue(channel, self._names, queue, self._partitions)

    async def _check(self, queue: str) -> tuple[bool, bool]:
        """Return whether the exchanges that the queue needs exist, and whether the queue does too.

        Only partitions need that which distributes the reports: others must not wait until all of them are declared.
        """
        exchanges = [*self._names.exchanges] + ([] if queue in self._names.queues else [self._names.report_hash])
        async with self._checking.temporary_channel() as channel:
            has_exchanges = await topology.exist(channel, exchanges)
            return has_exchanges, has_exchanges and await topology.exist(channel, queues=[queue])

    async def run(self) -> None:
        """Declare all at the start and after each ``reset``, until it succeeds."""
        failures = 0
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.declare_once()
                failures = 0
            except (Unavailable, Misconfigured) as error:
                failures += 1
                self._due.set()
                self._on_error(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def declare_once(self) -> None:
        """Declare all. Raise as ``ensure`` does."""
        async with self._lock:
            await self._declare()

    async def _declare(self) -> None:
        async with self._declaring.temporary_channels(topology.channels_for(self._partitions)) as (channel, *others):
            await topology.declare(channel, self._names, self._partitions, others)
