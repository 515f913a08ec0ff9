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
from taskherd.api.changes import Change, Wanted
from taskherd.broker import topology
from taskherd.broker.consume import Intake, Source
from taskherd.errors import Retry, Unavailable
from taskherd.store import feed

if TYPE_CHECKING:
    from uuid import UUID

    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import Link
    from taskherd.broker.topology import Names
    from taskherd.observability.metrics import Metrics
    from taskherd.store.reader import Reader, Row

log = structlog.get_logger(__name__)

FOLLOWERS_MOST: Final = 4_000
"""Followers of one process, waiters among them."""
BACKLOG_MOST: Final = 500
BACKLOG_BYTES_MOST: Final = 8 * 1024 * 1024
"""What may wait for one follower: changes, and the bytes of them, which all followers share."""
PAGE: Final = 500
BELLS_MOST: Final = 100
LOOK_EVERY: Final = 5.0
"""Seconds between looks that nothing rang for."""
LOOKS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
"""Seconds before each further look after a ring: positions are given right after publishing, in a transaction."""
GAP: Final = 0.002
"""Seconds between two looks at least, so that what happens at once is read at once."""
START_WITHIN: Final = 5.0


class Follower:
    """Who follows: the changes that wait for it, at most so many. Ended, it gets no more and holds nothing."""

    def __init__(self, wanted: Wanted, after: int) -> None:
        self.wanted = wanted
        self.after = after
        self.ended = False
        self._waiting: deque[Change] = deque()
        self._bytes = 0
        self._ring = asyncio.Event()

    def offer(self, change: Change) -> None:
        """Keep a change for it; beyond the bound it is ended, to come back and read the history."""
        if self.ended or change.position <= self.after or not change.wanted(self.wanted):
            return
        self._bytes += len(change.frame)
        if len(self._waiting) >= BACKLOG_MOST or self._bytes > BACKLOG_BYTES_MOST:
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


class Tail:
    """Reads the history for everybody; `run` until `stop`."""

    def __init__(
        self,
        consuming: Link,
        names: Names,
        reader: Reader,
        metrics: Metrics,
        *,
        objects: bool,
        every: float = LOOK_EVERY,
    ) -> None:
        self._names = names
        self._reader = reader
        self._metrics = metrics
        self._objects = objects
        self._every = every
        self._bells = Intake(consuming, self._prepare, prefetch=BELLS_MOST, on_trouble=self._trouble)
        self._position: int | None = None
        self._placed = asyncio.Event()
        self._bell = asyncio.Event()
        self._followers: defaultdict[UUID, set[Follower]] = defaultdict(set)
        self._count = 0
        self._stopping = False

    @property
    def followers(self) -> int:
        """How many follow."""
        return self._count

    def start(self) -> None:
        """Begin to hear the bell, as soon as the broker is there."""
        self._bells.start()

    async def run(self) -> None:
        """Hear and read until stopped; an outage is waited out."""
        self.start()
        hearing = asyncio.create_task(self._hear(), name="tail bell")
        try:
            await self._read()
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            await self._bells.close()

    def stop(self) -> None:
        """End every follower, and read no more."""
        self._stopping = True
        self._end_all()
        self._bell.set()

    async def position(self) -> int:
        """Return how far the history was told to everybody. Raises Unavailable where that can't be known in time."""
        if not self._placed.is_set():
            self._bell.set()
        try:
            async with asyncio.timeout(START_WITHIN):
                await self._placed.wait()
        except TimeoutError:
            raise Unavailable("the history can't be read") from None
        assert self._position is not None
        return self._position

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Keep the tail reading within the block. Raises Unavailable beyond the bound."""
        if self._count >= FOLLOWERS_MOST or self._stopping:
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

    def follow(self, wanted: Wanted, after: int) -> Follower | None:
        """Hand over changes behind `after` from now on; None for who is not yet where the tail is."""
        if self._position is None or after < self._position:
            return None
        follower = Follower(wanted, after)
        self._followers[wanted.caller].add(follower)
        if self._stopping:
            follower.end()
        return follower

    def leave(self, follower: Follower) -> None:
        """Forget a follower and what waits for it."""
        follower.end()
        kin = self._followers.get(follower.wanted.caller)
        if kin is not None:
            kin.discard(follower)
            if not kin:
                del self._followers[follower.wanted.caller]

    def take(self, rows: Sequence[Row]) -> list[Change]:
        """Changes from rows of the history, without who else may see them."""
        return [Change(row, objects=self._objects) for row in rows]

    async def _read(self) -> None:
        failures = looks = 0
        while not self._stopping:
            if await self._rang(LOOKS[looks] if looks < len(LOOKS) else self._every):
                looks = 0
            try:
                await self.look()
            except (Unavailable, Retry) as error:
                failures += 1
                log.warning("can't follow", reason=str(error))
                await asyncio.sleep(retry.delay(failures))
            else:
                failures = 0
                looks += 1
                await asyncio.sleep(GAP)

    async def _rang(self, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                await self._bell.wait()
        except TimeoutError:
            return False
        self._bell.clear()
        return True

    async def look(self) -> None:
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
            for follower in self._followers.get(who, ()):
                follower.offer(change)

    def _end_all(self) -> None:
        for kin in self._followers.values():
            for follower in kin:
                follower.end()

    async def _hear(self) -> None:
        while deliveries := await self._bells.batch(BELLS_MOST, 0):
            self._bell.set()
            await self._bells.ack(deliveries)

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, self._names)
        queue = await topology.declare_own_queue(
            channel, length=BELLS_MOST, exchange=self._names.events, routing_keys=("#",)
        )
        self._bell.set()  # for what was published while no queue of ours was there
        return [Source(queue)]

    def _trouble(self, reason: str) -> None:
        log.warning("no bell", reason=reason)
