"""Read the change feed once per API process and distribute it to all subscribers, each with a bounded queue.

A wakeup triggers the reading: a message in an exclusive queue on an exchange of wakeups, whose body is ignored. More
changes may follow before the next one, so each is followed by several reads. Without wakeups, as while the broker
is unavailable, the feed is read every few seconds. Without subscribers it is not read at all.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from taskherd import retry
from taskherd.api.changes import Change, ChangeFilter
from taskherd.api.http.errors import too_many_open, unavailable
from taskherd.broker import topology
from taskherd.broker.consumer import Consumer
from taskherd.broker.subscription import Source
from taskherd.errors import Retry, Unavailable
from taskherd.store import feed

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.broker import AbstractChannel
    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.metrics import Metrics
    from taskherd.store.read_pool import ReadPool, Row

log = structlog.get_logger(__name__)

MAX_SUBSCRIBERS: Final = 4_000
"""Maximum number of subscribers of one process: streams, long polls and WebSockets of users, and waiting agents."""
MAX_BACKLOG: Final = 500
"""Maximum number of changes that wait for one subscriber."""
MAX_BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""Maximum size of the changes that wait for one subscriber, in bytes; all subscribers share the frames."""
PAGE_SIZE: Final = 500
"""Maximum number of changes that one statement reads."""
MAX_WAKEUPS: Final = 100
"""Maximum number of messages in the queue of wakeups; the oldest are dropped."""
POLL_INTERVAL: Final = 5.0
"""Seconds between two reads without a wakeup."""
READ_DELAYS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
"""Delays of the reads after a wakeup, in seconds; workers send few wakeups a second."""
MIN_READ_INTERVAL: Final = 0.002
"""Minimum number of seconds between two reads, so that simultaneous changes are read together."""
POLLS_PER_CHECK: Final = 10
"""Number of reads in a row without a change after which it is checked that the feed has not gone back."""
START_TIMEOUT: Final = 5.0
"""Maximum number of seconds to wait for the first position."""


class Subscriber:
    """The queue of changes of one subscriber. Once ended, it is empty and receives no more."""

    def __init__(self, change_filter: ChangeFilter, after: int) -> None:
        self.filter = change_filter
        self.after = after
        self.ended = False
        self._queue: deque[Change] = deque()
        self._bytes = 0
        self._wakeup = asyncio.Event()

    def offer(self, change: Change) -> None:
        """Queue a change if it matches. Beyond the limits, end the subscriber: its client must resume."""
        if self.ended or change.position <= self.after or not change.matches(self.filter):
            return
        self._bytes += len(change.frame_for(self.filter))
        if len(self._queue) >= MAX_BACKLOG or self._bytes > MAX_BACKLOG_BYTES:
            self.end()
            return
        self._queue.append(change)
        self._wakeup.set()

    def end(self) -> None:
        """Drop all queued changes and accept no more."""
        self.ended = True
        self._queue.clear()
        self._wakeup.set()

    async def next(self, timeout: float) -> Sequence[Change]:  # noqa: ASYNC109 - nothing within it is a result
        """Return all queued changes, in order, or none if none arrived within ``timeout`` seconds or it has ended."""
        if not self._queue and not self.ended:
            self._wakeup.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wakeup.wait()
        changes = list(self._queue)
        self._queue.clear()
        self._bytes = 0
        return changes


class ChangeFeed:
    """The single reader of the feed, which distributes it to all subscribers while ``run`` runs."""

    def __init__(
        self,
        consuming: SupervisedConnection,
        names: TopologyNames,
        reader: ReadPool,
        metrics: Metrics,
        *,
        nullable_ids_as_objects: bool,
        most_of_user: int,
    ) -> None:
        """Create the feed without subscribers.

        Args:
            consuming: the connection of the wakeups.
            names: the names of the exchanges.
            reader: reads the feed.
            metrics: counts subscribers.
            nullable_ids_as_objects: see ``ApiContext``.
            most_of_user: maximum number of subscribers of one user.
        """
        self._names = names
        self._reader = reader
        self._metrics = metrics
        self._nullable_ids_as_objects = nullable_ids_as_objects
        self._most_of_user = most_of_user
        self._poll_interval = POLL_INTERVAL
        self._wakeups = Consumer(consuming, self._prepare, prefetch=MAX_WAKEUPS, on_error=self._on_error)
        self._position: int | None = None
        self._empty_polls = 0
        self._positioned = asyncio.Event()
        self._wakeup = asyncio.Event()
        self._has_subscribers = asyncio.Event()
        self._subscribers: defaultdict[UUID, set[Subscriber]] = defaultdict(set)
        self._subscriber_count = 0
        self._count_by_user: Counter[UUID] = Counter()
        self._stopping = False

    @property
    def is_full(self) -> bool:
        """True if the limit of subscribers is reached."""
        return self._subscriber_count >= MAX_SUBSCRIBERS

    def check_room(self, user_id: UUID) -> None:
        """Raise a 503 if the limit of all subscribers is reached, and a 429 if that of this user is.

        A stream calls this before its status is sent, because ``subscription`` can refuse it only afterwards.
        """
        if self.is_full:
            raise unavailable("Too many streams are open.")
        if self._is_full_for(user_id):
            raise too_many_open(self._most_of_user)

    def _is_full_for(self, user_id: UUID) -> bool:
        return self._count_by_user[user_id] >= self._most_of_user

    def start(self) -> None:
        """Start to consume wakeups, as soon as the broker is available."""
        self._wakeups.start()

    async def run(self) -> None:
        """Read until ``stop`` is called; retry during an outage. Raise the unexpected error of either loop."""
        self.start()
        reading = asyncio.create_task(self._read(), name="change feed reads")
        wakeups = asyncio.create_task(self._consume_wakeups(), name="change feed wakeups")
        try:
            await asyncio.wait({reading, wakeups}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for loop in (reading, wakeups):
                loop.cancel()
            results = await asyncio.gather(reading, wakeups, return_exceptions=True)
            await self._wakeups.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def stop(self) -> None:
        """End all subscribers and stop reading."""
        self._stopping = True
        self._end_all()
        self._has_subscribers.set()
        self._wakeup.set()

    async def position(self) -> int:
        """Return the position up to which changes were distributed.

        Call this within ``subscription``. Raise ``Unavailable`` if the feed could not be read in time.
        """
        if not self._positioned.is_set():
            self._wakeup.set()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._positioned.wait()
        except TimeoutError:
            raise Unavailable("cannot read the change feed") from None
        assert self._position is not None
        return self._position

    @asynccontextmanager
    async def subscription(self, user_id: UUID | None) -> AsyncIterator[None]:
        """Add a subscriber, so that the feed is read while the block runs. Raise ``Unavailable`` at a limit.

        Args:
            user_id: the user whom the subscriber counts for; None for an agent, whose requests are limited by task.
        """
        if self.is_full or self._stopping or (user_id is not None and self._is_full_for(user_id)):
            raise Unavailable("too many subscribers of the change feed")
        self._subscriber_count += 1
        if user_id is not None:
            self._count_by_user[user_id] += 1
        self._has_subscribers.set()
        self._metrics.api_followers.set(self._subscriber_count)
        try:
            yield
        finally:
            self._subscriber_count -= 1
            if user_id is not None:
                self._count_by_user[user_id] -= 1
                if not self._count_by_user[user_id]:
                    del self._count_by_user[user_id]
            self._metrics.api_followers.set(self._subscriber_count)
            if not self._subscriber_count:
                self._position = None
                self._positioned.clear()
                if not self._stopping:
                    self._has_subscribers.clear()

    def subscribe(self, change_filter: ChangeFilter, after: int) -> Subscriber | None:
        """Subscribe to changes after position ``after``.

        Return None if the subscriber must first catch up with the feed's position.
        """
        if self._position is None or after < self._position:
            return None
        subscriber = Subscriber(change_filter, after)
        self._subscribers[change_filter.caller].add(subscriber)
        if self._stopping:
            subscriber.end()
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """End a subscriber and remove it."""
        subscriber.end()
        caller = subscriber.filter.caller
        same_caller = self._subscribers.get(caller)
        if same_caller is not None:
            same_caller.discard(subscriber)
            if not same_caller:
                del self._subscribers[caller]

    def changes_of(self, rows: Sequence[Row]) -> list[Change]:
        """Return the changes of rows that a statement has already filtered for one caller."""
        return [Change(row, nullable_ids_as_objects=self._nullable_ids_as_objects) for row in rows]

    async def _read(self) -> None:
        failures = reads = 0
        while not self._stopping:
            await self._has_subscribers.wait()
            if await self._woken(READ_DELAYS[reads] if reads < len(READ_DELAYS) else self._poll_interval):
                reads = 0
            try:
                await self.poll()
            except (Unavailable, Retry) as error:
                failures += 1
                self._empty_polls = POLLS_PER_CHECK  # what follows may be another server
                log.warning("cannot read the change feed", reason=str(error))
                await asyncio.sleep(retry.delay(failures))
            else:
                failures = 0
                reads += 1
                await asyncio.sleep(MIN_READ_INTERVAL)

    async def _woken(self, timeout: float) -> bool:  # noqa: ASYNC109 - no wakeup within it is a result
        try:
            async with asyncio.timeout(timeout):
                await self._wakeup.wait()
        except TimeoutError:
            return False
        self._wakeup.clear()
        return True

    async def poll(self) -> None:
        """Read the new changes and distribute them, if there are subscribers. Raise ``Unavailable`` in an outage."""
        if not self._subscriber_count or self._stopping:
            return
        if self._empty_polls >= POLLS_PER_CHECK:
            await self._check_position()
        if self._position is None:
            latest = await feed.latest(self._reader)
            if not self._subscriber_count:
                return
            self._position = latest
            self._positioned.set()
        self._empty_polls += 1
        while True:
            page = await feed.changes_after(self._reader, self._position, PAGE_SIZE)
            if self._position is None:  # the last subscriber left during the statement
                return
            for row in page.rows:
                self._distribute(
                    Change(
                        row,
                        nullable_ids_as_objects=self._nullable_ids_as_objects,
                        viewers=frozenset(row["admins"] or ()) | ({row["owner_id"]} if row["owner_can_see"] else set()),
                    )
                )
                self._position = row["position"]
                self._empty_polls = 0
            if not page.more:
                return

    async def _check_position(self) -> None:
        """If the feed ends before the position of the last read, end all subscribers and forget that position.

        A failover has then lost the last changes. Others get their positions, and would not be read.
        """
        latest = await feed.latest(self._reader)
        self._empty_polls = 0
        if self._position is not None and 0 < latest < self._position:  # 0: all of it has been pruned
            log.warning("the change feed has gone back", position=self._position, latest=latest)
            self._end_all()
            self._position = None
            self._positioned.clear()

    def _distribute(self, change: Change) -> None:
        if change.pruned:
            self._end_all()
            return
        if change.erased:
            return
        for user_id in change.viewers:
            for subscriber in self._subscribers.get(user_id, ()):
                subscriber.offer(change)

    def _end_all(self) -> None:
        for subscribers in self._subscribers.values():
            for subscriber in subscribers:
                subscriber.end()

    async def _consume_wakeups(self) -> None:
        while deliveries := await self._wakeups.next_batch(MAX_WAKEUPS, 0):
            self._wakeup.set()
            await self._wakeups.ack(deliveries)

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, [self._names.wakeups])
        queue = await topology.declare_exclusive_queue(
            channel, length=MAX_WAKEUPS, exchange=self._names.wakeups, routing_keys=("#",)
        )
        self._wakeup.set()  # wakeups may have been published before the queue existed
        return [Source(queue)]

    def _on_error(self, reason: str) -> None:
        log.warning("cannot subscribe to wakeups", reason=reason)
