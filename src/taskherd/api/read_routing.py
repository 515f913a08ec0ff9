"""Choose between the primary and a standby for each read: the standby, unless it may lack what the caller has seen.

All times are this process's monotonic time. The positions of primary and standby in the write-ahead log are compared
several times a second, which gives one number, ``shown_until``: the standby shows every change that was committed
before it. A caller's *mark* is the time until which that caller has seen changes: a write that was confirmed, an event,
a read from the primary. The standby serves a caller whose mark it has passed, while it lags no more than allowed
(docs/adr/0040). What the caller wrote through another process is known from the LSN that the request names.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store import replication

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.observability.metrics import Metrics
    from taskherd.store.read_pool import Reader, ReadPool, Row

log = structlog.get_logger(__name__)

SAMPLE_INTERVAL: Final = 0.2
"""Seconds between two comparisons of primary and standby."""
STANDBY_TIMEOUT: Final = 1.0
"""Seconds until a read from the standby is canceled, and executed at the primary instead."""
MIN_SUSPENSION: Final = 10.0
"""Seconds for which the standby is not used after it rejected a read, although it answers comparisons."""
MAX_MARKS: Final = 10_000
"""Maximum number of callers with a mark; beyond it, the oldest mark counts for all callers."""
MAX_SAMPLES: Final = 1_000
"""Maximum number of positions of the primary that are kept until the standby has reached them."""
LSN_TIMEOUT: Final = 0.5
"""Seconds for which the response to a write waits for the primary's position in the write-ahead log."""
MAX_LSN_LOOKUPS: Final = 2
"""Maximum number of statements at a time that ask the primary for its position, for the responses to writes."""
FAILURES: Final = (Unavailable, Retry, Misconfigured)


@dataclass(frozen=True, slots=True)
class Sample:
    """A position that the primary had reached at ``time`` or later."""

    time: float
    position: int


class ReplicationProgress:
    """The time until which the standby shows all changes, from samples of both positions."""

    def __init__(self) -> None:
        self.shown_until: float | None = None
        """None while it is not known."""
        self.replayed = 0
        """The newest position that the standby is known to show, since it was last known."""
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    def update(self, sample: Sample | None, replayed: int | None) -> None:
        """Take a new position of the primary, if there is one, and of the standby; None forgets what it shows."""
        if sample is not None:
            self._samples.append(sample)
        if replayed is None:
            self.forget()
            return
        if replayed < self.replayed:
            self.forget()
        self.replayed = replayed
        while self._samples and self._samples[0].position <= replayed:
            self.shown_until = self._samples.popleft().time

    def restart(self) -> None:
        """Forget everything: positions of before say nothing about those of now."""
        self._samples.clear()
        self.forget()

    def forget(self) -> None:
        """Use the standby no more until its position is known again: it may have restarted behind what it showed."""
        self.shown_until = None
        self.replayed = 0


class ReadMarks:
    """The time until which each caller has seen changes, for a bounded number of callers."""

    def __init__(self, limit: int = MAX_MARKS) -> None:
        self._limit = limit
        self._marks: OrderedDict[UUID, float] = OrderedDict()
        self._of_all = float("-inf")

    def set(self, caller: UUID, time: float) -> None:
        """Record that the caller has seen changes until now."""
        self._marks[caller] = time
        self._marks.move_to_end(caller)
        if len(self._marks) > self._limit:
            self._of_all = self._marks.popitem(last=False)[1]

    def allow(self, caller: UUID, shown_until: float) -> bool:
        """Return whether all that the caller has seen was committed before ``shown_until``."""
        if max(self._marks.get(caller, self._of_all), self._of_all) > shown_until:
            return False
        self._marks.pop(caller, None)
        return True


class ReadRouting:
    """The choice between primary and standby for all callers; without a standby it is always the primary."""

    def __init__(
        self, primary: ReadPool, standby: ReadPool | None, max_lag: float, metrics: Metrics, now: Callable[[], float]
    ) -> None:
        self._primary = primary
        self._standby = standby
        self._max_lag = max_lag
        self._metrics = metrics
        self._now = now
        self._marks = ReadMarks()
        self._lookup_slots = asyncio.Semaphore(MAX_LSN_LOOKUPS)
        self._lookups: set[asyncio.Task[str]] = set()
        self._next_lookup: asyncio.Task[str] | None = None
        self._suspended_until = float("-inf")
        self._suspensions = 0
        self._database: replication.DatabaseId | None = None
        """The primary's database, None until it is known."""
        self._timeline: int | None = None
        """The timeline that the primary writes, None until it is known."""
        self.progress = ReplicationProgress()
        self.problem: str | None = "not compared with the primary yet"
        """Why the standby is not used, None while it is."""

    def reader(self, caller: UUID, after: str = "") -> Reader:
        """Return what executes the reads of a request of this caller.

        Args:
            caller: who sent the request.
            after: the LSN that a response to a write of the same caller named, perhaps through another process. What is
                not one counts as none.
        """
        if self._standby is None:
            return self._primary
        return RoutedReader(self, self._primary, self._standby, caller, replication.parse_lsn(after) or 0)

    async def written_lsn(self) -> str | None:
        """Return the LSN from which a standby shows all that was committed until now; None without a standby.

        It is one that no standby reaches if the primary does not name its own within ``LSN_TIMEOUT``. The statement
        ends by itself then: a canceled one would cost its connection.
        """
        if self._standby is None:
            return None
        lookup = self._next_lookup
        if lookup is None:
            lookup = self._next_lookup = asyncio.create_task(self._look_up_lsn(), name="position of the primary")
            self._lookups.add(lookup)
            lookup.add_done_callback(self._lookups.discard)
        done, _ = await asyncio.wait({lookup}, timeout=LSN_TIMEOUT)
        return lookup.result() if done else replication.UNKNOWN_LSN

    async def _look_up_lsn(self) -> str:
        """Ask the primary once for all writes that were confirmed before the statement begins, when a slot is free."""
        async with self._lookup_slots:
            self._next_lookup = None
            try:
                return await replication.written_lsn(self._primary) or replication.UNKNOWN_LSN
            except FAILURES:
                return replication.UNKNOWN_LSN

    def mark(self, caller: UUID) -> None:
        """Record that the caller has now seen the newest changes, so that no later read shows an older state."""
        if self._standby is not None:
            self._marks.set(caller, self._now())

    def allows_standby(self, caller: UUID, after: int = 0) -> bool:
        """Return whether the standby may serve this caller now, and shows everything up to the position ``after``."""
        shown_until = self.progress.shown_until
        if shown_until is None or self._now() - shown_until > self._max_lag or self.progress.replayed < after:
            return False
        return self._marks.allow(caller, shown_until)

    def count(self, server: str) -> None:
        """Count a read by the server that executed it."""
        self._metrics.api_reads.labels(server).inc()

    def suspend(self, error: Exception) -> None:
        """Use the primary until a comparison begun from now on succeeds; after a ``Misconfigured`` for longer."""
        self.progress.forget()
        self._suspensions += 1
        if isinstance(error, Misconfigured):
            self._suspended_until = self._now() + MIN_SUSPENSION
        self._note(str(error))

    async def run(self) -> None:
        """Compare primary and standby again and again; without a standby do nothing, forever."""
        while self._standby is None:
            await asyncio.Event().wait()
        while True:
            await self.sample_once(self._standby)
            await asyncio.sleep(SAMPLE_INTERVAL)

    async def sample_once(self, standby: ReadPool) -> None:
        """Compare both positions once, and update the lag, unless the standby is suspended before or meanwhile."""
        started, suspensions = self._now(), self._suspensions
        self._metrics.api_standby_lag.set(self.lag)
        if started < self._suspended_until:
            return
        written, replayed = await asyncio.gather(
            replication.written(self._primary), replication.replayed(standby), return_exceptions=True
        )
        for result in (written, replayed):
            if isinstance(result, BaseException) and not isinstance(result, FAILURES):
                raise result
        if self._suspensions != suspensions:
            return
        problem = self._find_problem(written, replayed)
        sample = Sample(started, written.position) if isinstance(written, replication.WalPosition) else None
        shown = replayed.position if problem is None and isinstance(replayed, replication.WalPosition) else None
        self.progress.update(sample, shown)
        self._metrics.api_standby_lag.set(self.lag)
        if problem is None and self.lag > self._max_lag:
            problem = f"it lags more than {self._max_lag:g} s behind the primary"
        self._note(problem)

    def _find_problem(self, written: object, replayed: object) -> str | None:
        """Return why the standby may not be read whatever its lag is, None if it may."""
        if isinstance(written, replication.WalPosition):
            self._database = written.database
            if written.timeline != self._timeline:
                self._timeline = written.timeline
                self.progress.restart()
        if isinstance(replayed, BaseException):
            return str(replayed)
        if not isinstance(replayed, replication.WalPosition):
            return "the server at database_read_url is not a standby"
        if self._database is not None and replayed.database != self._database:
            return "database_read_url leads to another database than database_url"
        if self._timeline is not None and replayed.timeline != self._timeline:
            return f"it shows timeline {replayed.timeline}, and the primary writes timeline {self._timeline}"
        return None

    @property
    def lag(self) -> float:
        """Age in seconds of the newest change that the standby may lack; infinite if unknown."""
        shown_until = self.progress.shown_until
        return float("inf") if shown_until is None else self._now() - shown_until

    def _note(self, problem: str | None) -> None:
        if (problem is None) != (self.problem is None):
            log.warning("standby not used", reason=problem) if problem else log.info("standby used again")
        self.problem = problem


class RoutedReader:
    """The reads of one request: from the standby if it may serve the caller, else from the primary.

    What the standby does not find, or does not answer in time, is read from the primary: another API process may have
    just created it.
    """

    def __init__(self, routing: ReadRouting, primary: ReadPool, standby: ReadPool, caller: UUID, after: int) -> None:
        self._routing = routing
        self._primary = primary
        self._standby = standby
        self._caller = caller
        self._after = after

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows. Raise the same errors as ``ReadPool.fetch``."""
        if self._routing.allows_standby(self._caller, self._after):
            try:
                rows = await self._standby.fetch(statement, *values)
            except FAILURES as error:
                self._routing.suspend(error)
            else:
                if rows:
                    self._routing.count("standby")
                    return rows
        rows = await self._primary.fetch(statement, *values)
        self._routing.count("primary")
        self._routing.mark(self._caller)
        return rows

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Return the first row, or None if there is none. Raise the same errors as ``fetch``."""
        rows = await self.fetch(statement, *values)
        return rows[0] if rows else None
