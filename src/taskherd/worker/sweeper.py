"""The sweeper: notices what no report tells, and retries until what was requested is there.

Of the live workers, the one with the lowest id sweeps. It counts silence only from the watermark, which every gap in a
worker's consuming moves; what it finds goes through the corridor like everything else.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from taskherd.domain.liveness import SKEW_MOST, Brake, Listening, brake, watermark
from taskherd.domain.task_update import TimerCheck
from taskherd.domain.value import replace
from taskherd.errors import Retry, Unavailable
from taskherd.store import directory, leases, tasks, timers, workers
from taskherd.store.engine import DataError, transaction
from taskherd.worker.batch import Batch
from taskherd.worker.maintenance import Housekeeping
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from taskherd.worker.context import Ground
    from taskherd.worker.probe import Probe
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

AT_ONCE = 500
ROUNDS_MOST = 40
FRESH = timedelta(seconds=6)
"""A live worker writes its row more often than this; one that has not may be frozen with deliveries in hand."""

FORGOTTEN = timedelta(seconds=60)
"""By then the broker has taken a frozen worker's deliveries back and given them to others."""


class Sweeper:
    """Check the timers, again and again."""

    def __init__(
        self, worker_id: str, ground: Ground, relay: Relay, probe: Probe, correct: Callable[[datetime], bool]
    ) -> None:
        """Begin without a watermark. ``correct`` sets the clock and returns whether it jumped."""
        self._id = worker_id
        self._ground = ground
        self._relay = relay
        self._probe = probe
        self._correct = correct
        self._started_at = ground.now()
        self._gap_at = ground.now()
        self._begun = False
        self._held_since: datetime | None = None
        self._housekeeping = Housekeeping(ground)

    async def run(self, every: float) -> None:
        """Sweep ``every`` so many seconds until stopping; outages are reported and waited out."""
        stopping = self._ground.stopping
        while not stopping.is_set():
            try:
                await self.sweep_once()
                self._ground.metrics.database_up.set(1)
            except (Unavailable, Retry, DataError) as error:
                self._gap_at = self._ground.now()
                self._ground.metrics.database_up.set(0)
                self._ground.trouble(str(error))
            try:
                async with asyncio.timeout(every):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """Remove this worker from the live ones as it stops, so that the others need not wait for it."""
        async with transaction(self._ground.engine) as connection:
            await workers.gone(connection, self._id)

    async def sweep_once(self) -> int:
        """Check all timers once, and return how many tasks were checked. Raises Unavailable."""
        rows = await self._check_in()
        now = self._ground.now()
        live = [Listening(row.seen_at, row.drained_since if now - row.seen_at <= FRESH else None) for row in rows]
        since = watermark(live, now, FORGOTTEN)
        if since is None:
            self._gap_at = now
        else:
            since = max(since, self._gap_at)
        fresh = [row.worker_id for row in rows if now - row.seen_at <= FRESH]
        if fresh and self._id != min(fresh):
            return 0
        self._ground.metrics.sweeps.inc()
        checked = 0
        if since is not None:
            checked += await self._check_silent(since, now)
        check = TimerCheck(since, mass_held=self._held_since is not None, counted_at=now)
        if since is not None:
            checked += await self._check_expired_inputs(since, check)
        checked += await self._check_due(check)
        await self._housekeeping.tend(now, since)
        return checked

    async def _check_in(self) -> list[workers.WorkerRow]:
        """Set the clock by the database's, record that this worker is live, and return the live workers."""
        async with transaction(self._ground.engine) as connection:
            before = self._ground.now()
            clock = await timers.clock(connection)
            jumped = self._correct(clock)
            if not self._begun:  # before, we had this machine's own time, and did not see a jump of the database's
                self._started_at = self._gap_at = clock
                jumped = jumped or await timers.set_back(connection, clock + SKEW_MOST)
            if jumped:
                log.warning("the database's clock jumped", was=before.isoformat(), is_now=clock.isoformat())
                self._probe.gap()
                self._gap_at = clock
                await timers.calm(connection, clock)
            row = workers.WorkerRow(self._id, self._started_at, self._ground.now(), self._probe.drained_since)
            await workers.seen(connection, row)
            self._ground.book.refresh(await directory.revision(connection))
            live = await workers.live(connection, self._ground.now() - FORGOTTEN)
        self._begun = True
        return live

    async def _check_due(self, check: TimerCheck) -> int:
        checked = 0
        for _ in range(ROUNDS_MOST):
            async with transaction(self._ground.engine) as connection:
                due = await tasks.due(connection, self._ground.now(), AT_ONCE)
            await self._check(dict.fromkeys(due, check))
            checked += len(due)
            if len(due) < AT_ONCE:
                break
        return checked

    async def _check_silent(self, since: datetime, now: datetime) -> int:
        """Find agents that were silent for too long while we consumed; hold back if there is a mass of them."""
        lost_after = self._ground.patience.agent_lost_after
        if now - since <= lost_after:
            return 0
        async with transaction(self._ground.engine) as connection:
            connected, lost = await leases.census(connection, now - lost_after)
            silent = await leases.silent(connection, now - lost_after, AT_ONCE * ROUNDS_MOST) if lost else []
        held_for = now - max(self._held_since, since) if self._held_since else timedelta(0)
        if brake(connected, lost, held_for, self._ground.patience) is Brake.HOLD:
            self._hold(now, connected, lost)
            return 0
        self._held_since = None
        self._ground.metrics.mass_silence_held.set(0)
        for start in range(0, len(silent), AT_ONCE):
            await self._check({task_id: TimerCheck(since) for task_id in silent[start : start + AT_ONCE]})
        return len(silent)

    def _hold(self, now: datetime, connected: int, silent: int) -> None:
        if self._held_since is None:
            self._held_since = now
            log.warning("most agents fell silent at once; held back", connected=connected, silent=silent)
        self._ground.metrics.sweeps_held.inc()
        self._ground.metrics.mass_silence_held.set(1)

    async def _check_expired_inputs(self, since: datetime, check: TimerCheck) -> int:
        ttl = self._ground.patience.request_ttl
        if self._ground.now() - since <= ttl:
            return 0
        async with transaction(self._ground.engine) as connection:
            found = await timers.expired_inputs(connection, self._ground.now() - ttl, AT_ONCE)
        checks: dict[UUID, TimerCheck] = {}
        for task_id, input_id in found:
            earlier = checks.get(task_id, check)
            checks[task_id] = replace(earlier, expired_inputs=(*earlier.expired_inputs, input_id))
        await self._check(checks)
        self._ground.metrics.requests_given_up.labels("agent.input").inc(len(found))
        return len(checks)

    async def _check(self, checks: dict[UUID, TimerCheck]) -> None:
        if not checks:
            return
        result = await reconcile(self._ground, Batch(timer_checks=checks), self._ground.now())
        for kind in result.timed_out:
            self._ground.metrics.requests_given_up.labels(f"workspace.{kind}").inc()
        self._ground.metrics.deletes_retried.inc(result.deletes_retried)
        self._relay.offer(result.changes, requested=result.requested)
