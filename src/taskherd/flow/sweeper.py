"""The sweeper: notices what nobody reports, and closes the distance between what was asked for and what is.

Of the live workers the first by id sweeps. It judges silence only since the watermark, which any gap in any worker's
listening moves; what it finds goes through the corridor like everything else.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from taskherd.core.liveness import SKEW_MOST, Brake, Listening, brake, watermark
from taskherd.core.turn import Look
from taskherd.core.value import replace
from taskherd.errors import Retry, Unavailable
from taskherd.flow.batch import Batch
from taskherd.flow.corridor import reconcile
from taskherd.flow.housekeeping import Housekeeping
from taskherd.store import directory, leases, tasks, timers, workers
from taskherd.store.engine import DataError, transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from taskherd.flow.ground import Ground
    from taskherd.flow.probe import Probe
    from taskherd.flow.relay import Relay

log = structlog.get_logger(__name__)

AT_ONCE = 500
ROUNDS_MOST = 40
FRESH = timedelta(seconds=6)
"""A live worker writes its row more often than this; one that has not may be frozen with deliveries in hand."""

FORGOTTEN = timedelta(seconds=60)
"""By then the broker has taken a frozen worker's deliveries back and given them to others."""


class Sweeper:
    """Looks at the timers, again and again."""

    def __init__(
        self, worker_id: str, ground: Ground, relay: Relay, probe: Probe, correct: Callable[[datetime], bool]
    ) -> None:
        """Begin with no watermark: nothing was listened to before. ``correct`` sets the clock; whether it jumped."""
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
        """Sweep ``every`` so many seconds until stopping; trouble is told and waited out."""
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
        """Say that this worker ends of its own accord, so that the others need not wait for it."""
        async with transaction(self._ground.engine) as connection:
            await workers.gone(connection, self._id)

    async def sweep_once(self) -> int:
        """One look at all the timers; how many tasks were looked at. Raises Unavailable."""
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
        looked = 0
        if since is not None:
            looked += await self._look_at_silent(since, now)
        visit = Look(since, mass_held=self._held_since is not None, counted_at=now)
        if since is not None:
            looked += await self._look_at_inputs(since, visit)
        looked += await self._look_at_due(visit)
        await self._housekeeping.tend(now, since)
        return looked

    async def _check_in(self) -> list[workers.WorkerRow]:
        """Set the clock by the database's, say that we live and since when we listen, and see who else does."""
        async with transaction(self._ground.engine) as connection:
            before = self._ground.now()
            told = await timers.clock(connection)
            jumped = self._correct(told)
            if not self._begun:  # before, the time was this machine's own, and nobody saw what the database's did
                self._started_at = self._gap_at = told
                jumped = jumped or await timers.set_back(connection, told + SKEW_MOST)
            if jumped:
                log.warning("the database's clock jumped", was=before.isoformat(), told=told.isoformat())
                self._probe.gap()
                self._gap_at = told
                await timers.calm(connection, told)
            row = workers.WorkerRow(self._id, self._started_at, self._ground.now(), self._probe.drained_since)
            await workers.seen(connection, row)
            self._ground.book.refresh(await directory.revision(connection))
            live = await workers.live(connection, self._ground.now() - FORGOTTEN)
        self._begun = True
        return live

    async def _look_at_due(self, visit: Look) -> int:
        looked = 0
        for _ in range(ROUNDS_MOST):
            async with transaction(self._ground.engine) as connection:
                due = await tasks.due(connection, self._ground.now(), AT_ONCE)
            await self._look(dict.fromkeys(due, visit))
            looked += len(due)
            if len(due) < AT_ONCE:
                break
        return looked

    async def _look_at_silent(self, since: datetime, now: datetime) -> int:
        """Find agents silent for too long, all of it listened to; a mass of them is held back and looked at again."""
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
            await self._look({task_id: Look(since) for task_id in silent[start : start + AT_ONCE]})
        return len(silent)

    def _hold(self, now: datetime, connected: int, silent: int) -> None:
        if self._held_since is None:
            self._held_since = now
            log.warning("most agents fell silent at once; held back", connected=connected, silent=silent)
        self._ground.metrics.sweeps_held.inc()
        self._ground.metrics.mass_silence_held.set(1)

    async def _look_at_inputs(self, since: datetime, visit: Look) -> int:
        ttl = self._ground.patience.request_ttl
        if self._ground.now() - since <= ttl:
            return 0
        async with transaction(self._ground.engine) as connection:
            found = await timers.expired_inputs(connection, self._ground.now() - ttl, AT_ONCE)
        looks: dict[UUID, Look] = {}
        for task_id, input_id in found:
            known = looks.get(task_id, visit)
            looks[task_id] = replace(known, expired_inputs=(*known.expired_inputs, input_id))
        await self._look(looks)
        self._ground.metrics.requests_given_up.labels("agent.input").inc(len(found))
        return len(looks)

    async def _look(self, looks: dict[UUID, Look]) -> None:
        if not looks:
            return
        outcome = await reconcile(self._ground, Batch(looks=looks), self._ground.now())
        for kind in outcome.gave_up:
            self._ground.metrics.requests_given_up.labels(f"workspace.{kind}").inc()
        self._ground.metrics.deletes_retried.inc(outcome.deletes_retried)
        self._relay.offer(outcome.changes, requested=bool(outcome.requested))
