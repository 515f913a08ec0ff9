"""Find everything that is overdue (silent agents, unanswered requests, due timers) and reconcile it.

Of the live workers, the one with the lowest id sweeps. It measures silence only from the watermark; any
interruption of a worker's consuming moves the watermark forward.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from taskherd import retry
from taskherd.domain.liveness import (
    MAX_SKEW,
    MassLossDecision,
    WorkerWatermark,
    decide_mass_loss,
    is_mass_loss,
    shared_watermark,
)
from taskherd.domain.updates import TimerCheck
from taskherd.domain.value import replace
from taskherd.errors import Retry, Unavailable
from taskherd.store import database_clock, directory, tasks, work_requests, workers
from taskherd.store.database_clock import ClampPosition
from taskherd.store.engine import DataError, transaction
from taskherd.worker import metric_labels
from taskherd.worker.directory_cache import MAX_TEMPLATE_POOLS
from taskherd.worker.lease_scan import LeaseScan

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from taskherd.store import AsyncConnection
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.indexer import Indexer
    from taskherd.worker.lease_scan import LeaseSample
    from taskherd.worker.maintenance import Maintenance
    from taskherd.worker.probe import Probe
    from taskherd.worker.timer_checks import TimerChecks

log = structlog.get_logger(__name__)

MAX_TASKS = 100
"""Maximum number of tasks that are checked in one batch.

Reports of these tasks wait for it: with 500, checks of 10,000 tasks that were due at once delayed them by 0.1 s each.
"""

MAX_ROUNDS = 200
"""Maximum number of such batches in one sweep; the next sweep continues."""

MAX_CLAMPED = 5_000
"""Maximum number of rows whose times are compared with the clock in one transaction, after it has jumped."""

CHECK_TIME = 2.0
"""Seconds after which a sweep starts no further batch of one kind; the next sweep continues."""

REGISTER_EVERY = 2.0
"""Maximum number of seconds between two updates of a worker's row, however rare its sweeps are."""

ROW_FRESH_FOR = timedelta(seconds=6)
"""Maximum age of a worker's row; the worker of an older one may not sweep and does not count as drained.

A running worker updates its row every ``REGISTER_EVERY`` seconds, and later only after a long sweep. One that does not
may be frozen, with unacked deliveries.
"""

WORKER_EXPIRY = timedelta(seconds=60)
"""Age of a worker's row after which the worker is ignored: the broker has redelivered its deliveries by then."""


class Sweeper:
    """Registers this worker and checks all timers periodically."""

    def __init__(
        self,
        worker_id: str,
        context: WorkerContext,
        timer_checks: TimerChecks,
        probe: Probe,
        correct: Callable[[datetime], bool],
        *,
        indexer: Indexer,
        maintenance: Maintenance,
    ) -> None:
        """Create the sweeper. ``correct`` sets the worker's clock and returns whether the time jumped."""
        self._id = worker_id
        self._context = context
        self._timer_checks = timer_checks
        self._probe = probe
        self._correct = correct
        self._started_at = self._earliest_watermark = context.now()  # the latter: when it last saw an interruption
        self._registered = False
        self._clamping: ClampPosition | None = None  # how far, after the clock jumped
        self._mass_held_since: datetime | None = None  # of the present mass loss, even after it was accepted
        self._mass_held = False
        self._leases = LeaseScan()
        self._indexer = indexer
        self._maintenance = maintenance

    async def run(self, every: float) -> None:
        """Sweep ``every`` seconds until the worker stops, and keep its row fresh in between.

        A failure is logged and repeated.
        """
        stopping = self._context.stopping
        due_at = monotonic()
        while not stopping.is_set():
            is_due = monotonic() >= due_at
            try:
                await (self.sweep_once() if is_due else self._follow_workers())
                self._context.metrics.database_up.set(1)
            except (Unavailable, Retry, DataError) as error:
                self._earliest_watermark = self._context.now()
                self._context.metrics.database_up.set(0)
                self._context.on_error(str(error))
            if is_due:
                due_at = monotonic() + every
            await retry.wait(stopping, max(0.0, min(REGISTER_EVERY, due_at - monotonic())))

    async def deregister(self) -> None:
        """Delete this worker's row, so that the others need not wait until it expires."""
        async with transaction(self._context.engine) as connection:
            await workers.delete(connection, self._id)

    async def sweep_once(self) -> None:
        """Check all timers once, and have index and maintenance follow. Raises ``Unavailable`` and ``Retry``."""
        now, watermark, is_first = await self._follow_workers()
        if not is_first:
            return
        self._context.metrics.sweeps.inc()
        try:
            await self._check_all(watermark, now)
        finally:  # they depend on no check: one that always fails must not stop them
            self._indexer.request()
            self._maintenance.request(watermark)

    async def _follow_workers(self) -> tuple[datetime, datetime | None, bool]:
        """Register; return the time, the watermark, and whether this is the worker that sweeps."""
        rows = await self._register()
        await self._clamp()
        now = self._context.now()
        fresh = {row.worker_id for row in rows if now - row.seen_at <= ROW_FRESH_FOR}
        watermarks = [
            WorkerWatermark(row.seen_at, row.drained_since if row.worker_id in fresh else None) for row in rows
        ]
        watermark = shared_watermark(watermarks, now, WORKER_EXPIRY)
        if watermark is None:
            self._earliest_watermark = now
        else:
            watermark = max(watermark, self._earliest_watermark)
        is_first = not fresh or self._id == min(fresh)
        if not is_first:
            self._end_mass_hold()
            self._indexer.hand_over()
        return now, watermark, is_first

    async def _check_all(self, watermark: datetime | None, now: datetime) -> None:
        if watermark is not None:
            await self._check_silent(watermark, now)
        check = TimerCheck(watermark, mass_held=self._mass_held, silence_counted_at=now)
        if watermark is not None:
            await self._check_expired_inputs(watermark, check)
        await self._check_due(check)

    async def _register(self) -> list[workers.WorkerRow]:
        """Set the clock by the database's, update this worker's row, and return all live workers."""
        async with transaction(self._context.engine) as connection:
            before = self._context.now()
            clock = await database_clock.read(connection)
            jumped = self._correct(clock)
            if not self._registered:  # the clock had this machine's time before, so a jump would not show
                self._started_at = self._earliest_watermark = clock
                jumped = jumped or await database_clock.moved_back(connection, clock + MAX_SKEW)
            if jumped:
                self._on_jump(before, clock)
            if self._clamping is not None:
                await database_clock.clamp_workers(connection, clock)
            row = workers.WorkerRow(self._id, self._started_at, self._context.now(), self._probe.drained_since)
            await workers.record_seen(connection, row)
            await self._follow_directory(connection)
            live = await workers.live(connection, self._context.now() - WORKER_EXPIRY)
        self._registered = True
        return live

    def _on_jump(self, before: datetime, clock: datetime) -> None:
        """Start to measure all silences again. Stored times are clamped until that has succeeded, see ``_clamp``."""
        log.warning("database clock jumped", previous=before.isoformat(), current=clock.isoformat())
        self._probe.reset()
        self._earliest_watermark = clock
        self._end_mass_hold()
        self._clamping = ClampPosition()
        self._maintenance.on_jump()

    async def _clamp(self) -> None:
        """Clamp stored times after a jump of the clock, for a limited time; the next sweep continues."""
        until = monotonic() + CHECK_TIME
        while self._clamping is not None and monotonic() < until:
            async with transaction(self._context.engine) as connection:
                position = await database_clock.clamp_chunk(
                    connection, self._context.now(), self._clamping, MAX_CLAMPED
                )
            self._clamping = position

    async def _follow_directory(self, connection: AsyncConnection) -> None:
        """If the directory has changed, read again which templates and pools metrics name, and clear the cache."""
        cache = self._context.directory_cache
        revision = await directory.revision(connection)
        if revision != cache.revision:
            template_pools = await directory.template_pools(connection, MAX_TEMPLATE_POOLS)
            metric_labels.follow(self._context.metrics, cache.template_pools, template_pools)
            cache.replace(revision, template_pools)

    async def _check_due(self, check: TimerCheck) -> None:
        until = monotonic() + CHECK_TIME
        for _ in range(MAX_ROUNDS):
            async with transaction(self._context.engine) as connection:
                due = await tasks.due(connection, self._context.now(), MAX_TASKS)
            await self._timer_checks.run(dict.fromkeys(due, check))
            if len(due) < MAX_TASKS or monotonic() > until:
                break

    async def _check_silent(self, watermark: datetime, now: datetime) -> None:
        """Check the agents of the next leases that have sent no heartbeat for too long, unless their loss is held."""
        lost_after = self._context.timeouts.agent_lost_after
        if now - watermark <= lost_after:
            return
        sample = await self._leases.read(self._context.engine, now, lost_after)
        held_duration = now - max(self._mass_held_since, watermark) if self._mass_held_since else timedelta(0)
        decision = decide_mass_loss(sample.connected, sample.lost, held_duration, self._context.timeouts)
        if decision is MassLossDecision.HOLD:
            self._hold_mass_loss(now, sample)
            return
        if is_mass_loss(sample.connected, sample.lost):
            self._mark_mass_held(held=False)  # believed, and so is the rest of it, which the next sweeps read
        else:
            self._end_mass_hold()
        await self._check_sample(sample, TimerCheck(watermark, silence_counted_at=now))

    async def _check_sample(self, sample: LeaseSample, check: TimerCheck) -> None:
        """Check the silent agents of a sample, range by range, and continue there in the next sweep."""
        waiting: list[UUID] = []
        until = monotonic() + CHECK_TIME
        for number, each in enumerate(sample.ranges, start=1):
            waiting += each.silent
            if len(waiting) >= MAX_TASKS or number == len(sample.ranges):
                for start in range(0, len(waiting), MAX_TASKS):
                    part = waiting[start : start + MAX_TASKS]
                    await self._timer_checks.run(dict.fromkeys(part, check))
                waiting = []
                self._leases.continue_at(each.next_position)
                if monotonic() > until:
                    break

    def _hold_mass_loss(self, now: datetime, sample: LeaseSample) -> None:
        if self._mass_held_since is None:
            self._mass_held_since = now
            log.warning(
                "most agents fell silent at once, waiting before marking them lost",
                connected=sample.connected,
                silent=sample.lost,
            )
        self._context.metrics.sweeps_held.inc()
        self._mark_mass_held(held=True)

    def _end_mass_hold(self) -> None:
        self._mass_held_since = None
        self._mark_mass_held(held=False)

    def _mark_mass_held(self, *, held: bool) -> None:
        self._mass_held = held
        self._context.metrics.mass_silence_held.set(held)

    async def _check_expired_inputs(self, watermark: datetime, check: TimerCheck) -> None:
        ttl = self._context.timeouts.request_ttl
        if self._context.now() - watermark <= ttl:
            return
        async with transaction(self._context.engine) as connection:
            expired = await work_requests.expired_inputs(connection, self._context.now() - ttl, MAX_TASKS)
        checks: dict[UUID, TimerCheck] = {}
        for task_id, input_id in expired:
            earlier = checks.get(task_id, check)
            checks[task_id] = replace(earlier, expired_inputs=(*earlier.expired_inputs, input_id))
        await self._timer_checks.run(checks)
