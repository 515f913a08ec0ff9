"""The sweeper: notices what no report tells, and retries until what was requested is there.

Of the live workers, the one with the lowest id sweeps. It counts silence only from the watermark, which every gap in a
worker's consuming moves; what it finds goes through the corridor like everything else.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from taskherd.domain.liveness import MAX_SKEW, MassLossGuard, WorkerWatermark, guard_mass_loss, watermark
from taskherd.domain.task_update import TimerCheck
from taskherd.domain.value import replace
from taskherd.errors import Retry, Unavailable
from taskherd.store import directory, leases, tasks, timers, workers
from taskherd.store.engine import DataError, transaction
from taskherd.worker.batch import Batch
from taskherd.worker.maintenance import Maintenance
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from taskherd.worker.context import WorkerContext
    from taskherd.worker.probe import Probe
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

AT_ONCE = 500
MAX_ROUNDS = 40
FRESH = timedelta(seconds=6)
"""A live worker writes its row more often than this; one that has not may be frozen with deliveries in hand."""

FORGOTTEN = timedelta(seconds=60)
"""By then the broker has taken a frozen worker's deliveries back and given them to others."""


class Sweeper:
    """Check the timers, again and again."""

    def __init__(
        self, worker_id: str, context: WorkerContext, relay: Relay, probe: Probe, correct: Callable[[datetime], bool]
    ) -> None:
        """Begin without a watermark. ``correct`` sets the clock and returns whether it jumped."""
        self._id = worker_id
        self._context = context
        self._relay = relay
        self._probe = probe
        self._correct = correct
        self._started_at = context.now()
        self._gap_at = context.now()
        self._begun = False
        self._held_since: datetime | None = None
        self._maintenance = Maintenance(context)

    async def run(self, every: float) -> None:
        """Sweep ``every`` so many seconds until stopping; outages are reported and waited out."""
        stopping = self._context.stopping
        while not stopping.is_set():
            try:
                await self.sweep_once()
                self._context.metrics.database_up.set(1)
            except (Unavailable, Retry, DataError) as error:
                self._gap_at = self._context.now()
                self._context.metrics.database_up.set(0)
                self._context.on_error(str(error))
            try:
                async with asyncio.timeout(every):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def deregister(self) -> None:
        """Remove this worker from the live ones as it stops, so that the others need not wait for it."""
        async with transaction(self._context.engine) as connection:
            await workers.delete(connection, self._id)

    async def sweep_once(self) -> int:
        """Check all timers once, and return how many tasks were checked. Raises Unavailable."""
        rows = await self._register()
        now = self._context.now()
        live = [WorkerWatermark(row.seen_at, row.drained_since if now - row.seen_at <= FRESH else None) for row in rows]
        since = watermark(live, now, FORGOTTEN)
        if since is None:
            self._gap_at = now
        else:
            since = max(since, self._gap_at)
        fresh = [row.worker_id for row in rows if now - row.seen_at <= FRESH]
        if fresh and self._id != min(fresh):
            return 0
        self._context.metrics.sweeps.inc()
        checked = 0
        if since is not None:
            checked += await self._check_silent(since, now)
        check = TimerCheck(since, mass_held=self._held_since is not None, counted_at=now)
        if since is not None:
            checked += await self._check_expired_inputs(since, check)
        checked += await self._check_due(check)
        await self._maintenance.run_maintenance(now, since)
        return checked

    async def _register(self) -> list[workers.WorkerRow]:
        """Set the clock by the database's, record that this worker is live, and return the live workers."""
        async with transaction(self._context.engine) as connection:
            before = self._context.now()
            clock = await timers.clock(connection)
            jumped = self._correct(clock)
            if not self._begun:  # before, we had this machine's own time, and did not see a jump of the database's
                self._started_at = self._gap_at = clock
                jumped = jumped or await timers.clock_moved_back(connection, clock + MAX_SKEW)
            if jumped:
                log.warning("the database's clock jumped", was=before.isoformat(), is_now=clock.isoformat())
                self._probe.reset()
                self._gap_at = clock
                await timers.clamp_future_times(connection, clock)
            row = workers.WorkerRow(self._id, self._started_at, self._context.now(), self._probe.drained_since)
            await workers.record_seen(connection, row)
            self._context.directory_cache.refresh(await directory.revision(connection))
            live = await workers.live(connection, self._context.now() - FORGOTTEN)
        self._begun = True
        return live

    async def _check_due(self, check: TimerCheck) -> int:
        checked = 0
        for _ in range(MAX_ROUNDS):
            async with transaction(self._context.engine) as connection:
                due = await tasks.due(connection, self._context.now(), AT_ONCE)
            await self._check(dict.fromkeys(due, check))
            checked += len(due)
            if len(due) < AT_ONCE:
                break
        return checked

    async def _check_silent(self, since: datetime, now: datetime) -> int:
        """Find agents that were silent for too long while we consumed; hold back if there is a mass of them."""
        lost_after = self._context.timeouts.agent_lost_after
        if now - since <= lost_after:
            return 0
        async with transaction(self._context.engine) as connection:
            connected, lost = await leases.count(connection, now - lost_after)
            silent = await leases.silent(connection, now - lost_after, AT_ONCE * MAX_ROUNDS) if lost else []
        held_for = now - max(self._held_since, since) if self._held_since else timedelta(0)
        if guard_mass_loss(connected, lost, held_for, self._context.timeouts) is MassLossGuard.HOLD:
            self._hold(now, connected, lost)
            return 0
        self._held_since = None
        self._context.metrics.mass_silence_held.set(0)
        for start in range(0, len(silent), AT_ONCE):
            await self._check({task_id: TimerCheck(since) for task_id in silent[start : start + AT_ONCE]})
        return len(silent)

    def _hold(self, now: datetime, connected: int, silent: int) -> None:
        if self._held_since is None:
            self._held_since = now
            log.warning("most agents fell silent at once; held back", connected=connected, silent=silent)
        self._context.metrics.sweeps_held.inc()
        self._context.metrics.mass_silence_held.set(1)

    async def _check_expired_inputs(self, since: datetime, check: TimerCheck) -> int:
        ttl = self._context.timeouts.request_ttl
        if self._context.now() - since <= ttl:
            return 0
        async with transaction(self._context.engine) as connection:
            found = await timers.expired_inputs(connection, self._context.now() - ttl, AT_ONCE)
        checks: dict[UUID, TimerCheck] = {}
        for task_id, input_id in found:
            earlier = checks.get(task_id, check)
            checks[task_id] = replace(earlier, expired_inputs=(*earlier.expired_inputs, input_id))
        await self._check(checks)
        self._context.metrics.requests_given_up.labels("agent.input").inc(len(found))
        return len(checks)

    async def _check(self, checks: dict[UUID, TimerCheck]) -> None:
        if not checks:
            return
        result = await reconcile(self._context, Batch(timer_checks=checks), self._context.now())
        for kind in result.timed_out:
            self._context.metrics.requests_given_up.labels(f"workspace.{kind}").inc()
        self._context.metrics.deletes_retried.inc(result.deletes_retried)
        self._relay.offer(result.changes, requested=result.requested)
