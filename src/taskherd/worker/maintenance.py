"""What need not be done at every sweep: what is over is buried or dropped, and what is there is counted."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.broker.dead_letters import build_dead_letter, publish_dead_letter
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import Origin, encode
from taskherd.store import commands, parked, partitions, stats, workers
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from taskherd.store import AsyncConnection
    from taskherd.worker.context import WorkerContext

EVERY = timedelta(seconds=15)
WORKER_RETENTION = timedelta(minutes=10)
AT_ONCE = 500
MAX_ROUNDS = 200


class Maintenance:
    """Tends to the tables now and then; the first time at once."""

    def __init__(self, context: WorkerContext) -> None:
        """Begin without having done anything yet."""
        self._context = context
        self._done_at: datetime | None = None

    async def run_maintenance(self, now: datetime, since: datetime | None) -> None:
        """Expire, prune and count, if it is time. Raises Unavailable; then all of it is done again.

        Parked reports expire only when the whole of their time was listened to, ``since`` the watermark: while a worker
        is down, or a clock jumps, no create can come.
        """
        if since is not None and now - since > self._context.retention.parked_ttl:
            for _ in range(MAX_ROUNDS):
                if await self.expire_parked_once(now) < AT_ONCE:
                    break
        if self._done_at is not None and now - self._done_at < EVERY:
            return
        await self._prune(now)
        await self._count(now)
        self._done_at = now

    async def expire_parked_once(self, now: datetime) -> int:
        """Bury reports whose task never came; how many. A letter is confirmed before its row is gone."""
        context = self._context
        reason = DeadLetterReason.PARKED_EXPIRED
        async with transaction(context.engine) as connection:
            rows = await parked.expired(connection, now - context.retention.parked_ttl, AT_ONCE)
            for row in rows:
                origin = Origin(context.names.reports, context.names.reports, str(row.task_id))
                body, headers = encode(
                    row.report.encode(), reason, "Its task was not created in time, or refused it.", origin
                )
                dead_letter = build_dead_letter(context.names, origin.routing_key, body, headers)
                await publish_dead_letter(context.publisher, dead_letter)
                context.metrics.dead_lettered.labels(reason.value).inc()
            if rows:
                await parked.remove(connection, [row.id for row in rows])
        return len(rows)

    async def _prune(self, now: datetime) -> None:
        context = self._context
        terms = context.retention
        async with transaction(context.engine) as connection:
            await partitions.ensure_ahead(connection, now)
        async with transaction(context.engine) as connection:
            await partitions.prune(
                connection, events_before=now - terms.history_retention, logs_before=now - terms.log_retention
            )
        await self._prune_in_rounds(partitions.prune_feed, now - terms.history_retention)
        await self._prune_in_rounds(commands.prune, now - terms.command_memory)
        async with transaction(context.engine) as connection:
            await workers.prune(connection, now - WORKER_RETENTION)

    async def _prune_in_rounds(
        self, prune: Callable[[AsyncConnection, datetime, int], Awaitable[int]], before: datetime
    ) -> None:
        """Delete what is older, a little in each transaction; what is left after the last round waits its turn."""
        for _ in range(MAX_ROUNDS):
            async with transaction(self._context.engine) as connection:
                if await prune(connection, before, AT_ONCE) < AT_ONCE:
                    return

    async def _count(self, now: datetime) -> None:
        metrics = self._context.metrics
        async with transaction(self._context.engine) as connection:
            counts = await stats.counts(connection)
        metrics.replace(metrics.tasks, counts.tasks)
        metrics.replace(metrics.agents, counts.agents)
        metrics.parked.set(counts.parked)
        metrics.outbox_events.set(counts.unpublished)
        oldest = counts.oldest_unpublished_at
        metrics.outbox_oldest_seconds.set((now - oldest).total_seconds() if oldest else 0)
