"""Keep what is expensive to read for a moment, so that many open pages cost no more than one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from taskherd.broker import queue_depths
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.diagnostics import QueueInfo
    from taskherd.broker.topology import TopologyNames

log = structlog.get_logger(__name__)

Snapshot: TypeAlias = "dict[str, Any]"
MAX_AGE: Final = 2.0
"""Seconds for which a snapshot is used again."""
MAX_SNAPSHOTS: Final = 1_000
"""Maximum number of users whose snapshots are kept; the oldest is dropped."""
BROKER_TIMEOUT: Final = 3.0
"""Maximum number of seconds to wait for the broker."""


class FleetSnapshots:
    """The latest snapshot of each user; requests that come while it is made wait for the same one."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._made: dict[UUID, tuple[float, asyncio.Task[Snapshot]]] = {}

    async def get(self, caller: UUID, make: Callable[[], Awaitable[Snapshot]]) -> Snapshot:
        """Return the caller's snapshot, a new one if the last is too old. Raise what making it raised."""
        at, task = self._made.get(caller, (0.0, None))
        if task is None or (task.done() and (self._now() - at > MAX_AGE or task.cancelled() or task.exception())):
            task = asyncio.ensure_future(_awaited(make))
            self._made.pop(caller, None)
            self._made[caller] = self._now(), task
            if len(self._made) > MAX_SNAPSHOTS:
                del self._made[next(iter(self._made))]
        return await asyncio.shield(task)


async def _awaited(make: Callable[[], Awaitable[Snapshot]]) -> Snapshot:
    return await make()


class QueueDepths:
    """The depths of the queues, which the broker tells every user."""

    def __init__(self, connection: SupervisedConnection, names: TopologyNames) -> None:
        self.names = names
        self._connection = connection

    async def read(self, queues: Iterable[str]) -> dict[str, QueueInfo] | None:
        """Return those of ``queues`` that exist, or None if the broker does not answer in time."""
        if not self._connection.is_up:
            return None
        try:
            async with asyncio.timeout(BROKER_TIMEOUT):
                return await queue_depths.read(self._connection, queues)
        except (Unavailable, TimeoutError) as error:
            log.info("cannot read the depths of queues", reason=str(error) or "no answer in time")
            return None
