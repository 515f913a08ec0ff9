"""The one reader of the history in an API process: whoever follows tasks hangs on it, in bounded queues.

It reads forward from where it is, each change once, when a bell says that something was published: an own queue on the
events exchange, whose messages it does not look at. A change gets its position a moment after it was published, hence
the few looks behind each ring; without a broker it looks every few seconds. While nobody follows, it reads nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from taskherd import retry
from taskherd.api.changes import Change, FollowFilter
from taskherd.broker import topology
from taskherd.broker.consume import Consumer, Source
from taskherd.errors import Retry, Unavailable
from taskherd.store import feed

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.broker import AbstractChannel
    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.metrics import Metrics
    from taskherd.store.reader import Reader, Row

log = structlog.get_logger(__name__)

MAX_SUBSCRIBERS: Final = 4_000
"""Followers of one process, waiters among them."""
MAX_BACKLOG: Final = 500
MAX_BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""What may wait for one follower: changes, and the bytes of them, which all followers share."""
PAGE: Final = 500
MAX_WAKEUPS: Final = 100
POLL_INTERVAL: Final = 5.0
"""Seconds between looks that nothing rang for."""
LOOKS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
"""Seconds before each further look after a ring: positions are given right after publishing, in a transaction."""
GAP: Final = 0.002
"""Seconds between two looks at least, so that what happens at once is read at once."""
START_WITHIN: Final = 5.0


class Subscriber:
    """Who follows: the changes that wait for it, at most so many. Ended, it gets no more and holds nothing."""

    def __init__(self, wanted: FollowFilter, after: int) -> None:
        self.filter = wanted
        self.after = after
        self.ended = False
        self._waiting: deque[Change] = deque()
        self._bytes = 0
        self._ring = asyncio.Event()

    def offer(self, change: Change) -> None:
        """Keep a change for it; beyond the bound it is ended, to come back and read the history."""
        if self.ended or change.position <= self.after or not change.matches(self.filter):
            return
        self._bytes += len(change.frame)
        if len(self._waiting) >= MAX_BACKLOG or self._bytes > MAX_BACKLOG_BYTES:
            self.end()
            return
        self._waiting.append(change)
        self._ring.set()

    def end(self) -> None:
        """Tell it nothing more."""
        self.ended = True
        self._waiting.clear()
        self._ring.set()

    async def next(self, within: float) -> Sequence[Change]:
        """Return what waits, in order; none when nothing came within so many seconds, or it has ended."""
        if not self._waiting and not self.ended:
            self._ring.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._ring.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return taken


class ChangeFeed:
    """Reads the history for everybody; `run` until `stop`."""

    def __init__(
        self,
        consuming: SupervisedConnection,
        names: TopologyNames,
        reader: Reader,
        metrics: Metrics,
        *,
        objects: bool,
        every: float = POLL_INTERVAL,
    ) -> None:
        self._names = names
        self._reader = reader
        self._metrics = metrics
        self._objects = objects
        self._every = every
        self._wakeups = Consumer(consuming, self._prepare, prefetch=MAX_WAKEUPS, on_trouble=self._on_error)
        self._position: int | None = None
        self._placed = asyncio.Event()
        self._wakeup = asyncio.Event()
        self._subscribers: defaultdict[UUID, set[Subscriber]] = defaultdict(set)
        self._count = 0
        self._stopping = False

    @property
    def subscriber_count(self) -> int:
        """How many follow."""
        return self._count

    def start(self) -> None:
        """Begin to hear the bell, as soon as the broker is there."""
        self._wakeups.start()

    async def run(self) -> None:
        """Hear and read until stopped; an outage is waited out."""
        self.start()
        hearing = asyncio.create_task(self._listen(), name="tail bell")
        try:
            await self._read()
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            await self._wakeups.close()

    def stop(self) -> None:
        """End every follower, and read no more."""
        self._stopping = True
        self._end_all()
        self._wakeup.set()

    async def position(self) -> int:
        """Return how far the history was told to everybody. Raises Unavailable where that can't be known in time."""
        if not self._placed.is_set():
            self._wakeup.set()
        try:
            async with asyncio.timeout(START_WITHIN):
                await self._placed.wait()
        except TimeoutError:
            raise Unavailable("the history can't be read") from None
        assert self._position is not None
        return self._position

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[None]:
        """Keep the tail reading within the block. Raises Unavailable beyond the bound."""
        if self._count >= MAX_SUBSCRIBERS or self._stopping:
            raise Unavailable("too many follow already")
        self._count += 1
        self._metrics.api_followers.set(self._count)
        try:
            yield
        finally:
            self._count -= 1
            self._metrics.api_followers.set(self._count)
            if not self._count:
                self._position = None
                self._placed.clear()

    def subscribe(self, wanted: FollowFilter, after: int) -> Subscriber | None:
        """Hand over changes behind `after` from now on; None for who is not yet where the tail is."""
        if self._position is None or after < self._position:
            return None
        follower = Subscriber(wanted, after)
        self._subscribers[wanted.caller].add(follower)
        if self._stopping:
            follower.end()
        return follower

    def unsubscribe(self, follower: Subscriber) -> None:
        """Forget a follower and what waits for it."""
        follower.end()
        kin = self._subscribers.get(follower.filter.caller)
        if kin is not None:
            kin.discard(follower)
            if not kin:
                del self._subscribers[follower.filter.caller]

    def take(self, rows: Sequence[Row]) -> list[Change]:
        """Changes from rows of the history, without who else may see them."""
        return [Change(row, objects=self._objects) for row in rows]

    async def _read(self) -> None:
        failures = looks = 0
        while not self._stopping:
            if await self._woken(LOOKS[looks] if looks < len(LOOKS) else self._every):
                looks = 0
            try:
                await self.poll()
            except (Unavailable, Retry) as error:
                failures += 1
                log.warning("can't follow", reason=str(error))
                await asyncio.sleep(retry.delay(failures))
            else:
                failures = 0
                looks += 1
                await asyncio.sleep(GAP)

    async def _woken(self, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                await self._wakeup.wait()
        except TimeoutError:
            return False
        self._wakeup.clear()
        return True

    async def poll(self) -> None:
        """Read what is new, if anybody follows, and hand it over. Raises Unavailable."""
        if not self._count or self._stopping:
            return
        if self._position is None:
            latest = await feed.latest(self._reader)
            if not self._count:
                return
            self._position = latest
            self._placed.set()
        while True:
            rows = await feed.follow(self._reader, self._position, PAGE)
            if self._position is None:  # the last follower has left meanwhile
                return
            for row in rows:
                self._hand_over(Change(row, objects=self._objects, admins=frozenset(row["admins"] or ())))
                self._position = row["position"]
            if len(rows) < PAGE:
                return

    def _hand_over(self, change: Change) -> None:
        if change.pruned:
            self._end_all()
            return
        for who in change.admins | {change.owner_id}:
            for follower in self._subscribers.get(who, ()):
                follower.offer(change)

    def _end_all(self) -> None:
        for kin in self._subscribers.values():
            for follower in kin:
                follower.end()

    async def _listen(self) -> None:
        while deliveries := await self._wakeups.batch(MAX_WAKEUPS, 0):
            self._wakeup.set()
            await self._wakeups.ack(deliveries)

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, self._names)
        queue = await topology.declare_exclusive_queue(
            channel, length=MAX_WAKEUPS, exchange=self._names.events, routing_keys=("#",)
        )
        self._wakeup.set()  # for what was published while no queue of ours was there
        return [Source(queue)]

    def _on_error(self, reason: str) -> None:
        log.warning("no bell", reason=reason)
