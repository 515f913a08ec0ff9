"""Periodic maintenance: expire parked reports, prune old rows, erase deleted tasks, count rows for the metrics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.broker.dead_letters import build_dead_letter, publish_dead_letter
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.updates import TimerCheck
from taskherd.messages.dead_letters import Origin, encode
from taskherd.store import (
    command_log,
    erasure,
    parked_reports,
    partitions,
    rates,
    stats,
    task_actions,
    task_index,
    workers,
)
from taskherd.store.engine import transaction
from taskherd.worker.batch import Batch
from taskherd.worker.rates import RETENTION as RATES_RETENTION
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from taskherd.store import AsyncConnection
    from taskherd.worker.context import WorkerContext

EVERY = timedelta(seconds=15)
"""Interval of pruning and counting."""

WORKER_RETENTION = timedelta(minutes=10)
"""Time for which the row of a worker that is no longer live is kept."""

MAX_ROWS = 500
"""Maximum number of rows that one transaction expires or deletes."""

MAX_FINISHED_ACTIONS = 20
"""Number of finished task actions that are kept of one user, the newest."""

MAX_ERASED = 100
"""Maximum number of deleted tasks whose contents are erased in one transaction."""

MAX_ROUNDS = 200
"""Maximum number of transactions for one table in one run; the next run continues."""


class Maintenance:
    """Periodic maintenance of the tables, every ``EVERY``; the first run is due immediately."""

    def __init__(self, context: WorkerContext) -> None:
        """Record that nothing has been maintained yet."""
        self._context = context
        self._done_at: datetime | None = None

    async def run_maintenance(self, now: datetime, watermark: datetime | None) -> None:
        """Expire parked reports; prune and count if ``EVERY`` has elapsed.

        Parked reports expire only if ``watermark`` is older than their maximum age: while workers are down, or after
        the clock has jumped, no create could have been consumed.

        Raises:
            Unavailable: the database or the broker cannot be reached; the next call repeats what failed.
        """
        if watermark is not None and now - watermark > self._context.retention.parked_ttl:
            for _ in range(MAX_ROUNDS):
                if await self.expire_parked_once(now) < MAX_ROWS:
                    break
        if self._done_at is not None and now - self._done_at < EVERY:
            return
        await self._prune(now)
        for _ in range(MAX_ROUNDS):
            if await self.erase_once(now) < MAX_ERASED:
                break
        await self._count(now)
        self._done_at = now

    async def expire_parked_once(self, now: datetime) -> int:
        """Dead-letter expired parked reports and return their number. Rows are deleted after the broker's confirm."""
        context = self._context
        reason = DeadLetterReason.PARKED_EXPIRED
        async with transaction(context.engine) as connection:
            rows = await parked_reports.lock_expired(connection, now - context.retention.parked_ttl, MAX_ROWS)
            for row in rows:
                origin = Origin(context.names.reports, context.names.reports, str(row.task_id))
                body, headers = encode(
                    row.report.encode(),
                    reason,
                    "The task was not created in time, or its create rejected the report.",
                    origin,
                    time=now,
                )
                dead_letter = build_dead_letter(context.names, origin.routing_key, body, headers)
                await publish_dead_letter(context.publisher, dead_letter)
                context.metrics.dead_lettered.labels(reason.value).inc()
                context.rates.count_dead_letter(reason.value, now)
            if rows:
                await parked_reports.delete(connection, [row.id for row in rows])
        return len(rows)

    async def erase_once(self, now: datetime) -> int:
        """Erase the contents of deleted tasks whose retention time has passed, and return their number."""
        context = self._context
        async with transaction(context.engine) as connection:
            ids = await erasure.due(connection, now - context.retention.deleted_retention, MAX_ERASED)
        if not ids:
            return 0
        for _ in range(MAX_ROUNDS):
            async with transaction(context.engine) as connection:
                if await erasure.delete_contents(connection, ids, MAX_ROWS) < MAX_ROWS:
                    break
        else:
            return 0  # the next run continues with the same tasks
        check = TimerCheck(None, erase=True)
        await reconcile(context, Batch(timer_checks=dict.fromkeys(ids, check)), now)
        context.metrics.tasks_erased.inc(len(ids))
        return len(ids)

    async def _prune(self, now: datetime) -> None:
        context = self._context
        retention = context.retention
        async with transaction(context.engine) as connection:
            await partitions.ensure_ahead(connection, now)
        async with transaction(context.engine) as connection:
            await partitions.prune(
                connection, events_before=now - retention.history_retention, logs_before=now - retention.log_retention
            )
        await self._prune_in_rounds(partitions.prune_feed, now - retention.history_retention)
        await self._prune_in_rounds(command_log.prune, now - retention.command_retention)
        await self._prune_in_rounds(rates.prune, now - RATES_RETENTION)
        await self._prune_in_rounds(_prune_actions, now - retention.action_retention)
        async with transaction(context.engine) as connection:
            await workers.prune(connection, now - WORKER_RETENTION)
        async with transaction(context.engine) as connection:
            await task_index.prune(connection)

    async def _prune_in_rounds(
        self, prune: Callable[[AsyncConnection, datetime, int], Awaitable[int]], before: datetime
    ) -> None:
        """Delete the rows older than ``before``, up to ``MAX_ROWS`` per transaction and ``MAX_ROUNDS`` transactions."""
        for _ in range(MAX_ROUNDS):
            async with transaction(self._context.engine) as connection:
                if await prune(connection, before, MAX_ROWS) < MAX_ROWS:
                    return

    async def _count(self, now: datetime) -> None:
        metrics = self._context.metrics
        async with transaction(self._context.engine) as connection:
            counts = await stats.counts(connection, self._context.directory_cache.template_pools)
        metrics.set_counts(metrics.tasks, counts.tasks)
        metrics.set_counts(metrics.agents, counts.agents)
        metrics.set_counts(metrics.agents_stalled, counts.stalled)
        metrics.parked.set(counts.parked)
        metrics.outbox_events.set(counts.unpublished)
        oldest = counts.oldest_unpublished_at
        metrics.outbox_oldest_seconds.set((now - oldest).total_seconds() if oldest else 0)


async def _prune_actions(connection: AsyncConnection, before: datetime, limit: int) -> int:
    return await task_actions.prune(connection, before, MAX_FINISHED_ACTIONS, limit)
