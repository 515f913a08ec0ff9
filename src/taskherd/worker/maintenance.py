"""Periodic maintenance: expire parked reports, prune old rows, erase deleted tasks, count rows for the metrics."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from functools import partial
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from taskherd.broker.dead_letters import build_dead_letter, publish_dead_letters
from taskherd.domain import fold
from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
from taskherd.domain.updates import TimerCheck
from taskherd.errors import Retry, Unavailable
from taskherd.messages.dead_letters import Origin, encode
from taskherd.messages.reports import decode_stored_report
from taskherd.store import (
    command_log,
    erasure,
    parked_reports,
    partitions,
    prompts,
    rates,
    stats,
    task_actions,
    task_index,
    tokens,
    workers,
)
from taskherd.store.engine import StatementTimeout, transaction
from taskherd.store.tables import PARTITIONED
from taskherd.worker.batch import MESSAGE_ERRORS
from taskherd.worker.load import load_states
from taskherd.worker.rates import RETENTION as RATES_RETENTION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.broker.publisher import OutgoingMessage
    from taskherd.domain.task import TaskState
    from taskherd.store import AsyncConnection
    from taskherd.store.parked_reports import ParkedReport
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.timer_checks import TimerChecks

log = structlog.get_logger(__name__)

EVERY = 15.0
"""Seconds between two runs of pruning and counting."""

PARTITION_LOCK_TIMEOUT = timedelta(milliseconds=200)
"""Time for which creating or dropping a partition waits for a lock, such as one of ``pg_dump``.

All writes to the table wait behind it for as long.
"""

SETTLED_AFTER = 3600.0
"""Seconds without a jump of the clock after which rows are deleted by their age again; people can correct it before."""

MOVE_TIME = timedelta(seconds=4)
"""Time for which rows may be moved from the default partition to a new one; if it is too short, none is moved.

All who use the default partition wait as long: reports with log entries, and whoever looks up a task's history or log.
"""

PAUSE_AFTER = 0.5
"""Seconds for which a partition may have been created so that another one of its table follows at once."""

PAST_EVERY = 3600.0
"""Seconds after which rows of past weeks are looked for again if none were found: all of the default partition is read.
"""

MAX_CREATED = 10
"""Maximum number of partitions of a table that are created in one run; the next run continues."""

PARTITIONS_RETRY = 300.0
"""Seconds until partitions are created or dropped again after that has failed."""

PRUNE_TOTALS_EVERY = 3_600.0
"""Seconds after which the totals are read once, as a whole, for those that count no task any more."""

WORKER_RETENTION = timedelta(minutes=10)
"""Time for which the row of a worker that is no longer live is kept."""

MAX_ROWS = 500
"""Maximum number of rows that one transaction deletes."""

MAX_EXPIRED = 200
"""Maximum number of parked reports that one transaction expires; all wait for their confirms at the same time."""

MAX_EXPIRED_BYTES = 4 * 1024 * 1024
"""Maximum total size of these reports, unless a single one is larger."""

EXPIRE_TIME = 2.0
"""Seconds after which a run begins no further such transaction; the next run, a second later, continues."""

MAX_FINISHED_ACTIONS = 20
"""Number of finished task actions that are kept of one user, the newest."""

MAX_ERASED = 100
"""Maximum number of deleted tasks whose contents are erased in one transaction."""

MAX_ROUNDS = 200
"""Maximum number of transactions for one table in one run; the next run continues."""


class MaintenanceStep(StrEnum):
    """A step that fails and is tried again by itself; metrics and logs name it."""

    EXPIRE_PARKED = "expire_parked"
    CREATE_PARTITIONS = "create_partitions"
    DROP_PARTITIONS = "drop_partitions"
    UPDATE_TABLES = "update_tables"
    PRUNE = "prune"
    ERASE = "erase"
    COUNT = "count"
    INDEX = "index"


class Maintenance:
    """Periodic maintenance of the tables: ``run`` does it after each sweep of this worker that asks for it.

    A failed step is logged and tried again later. It keeps neither the other steps nor the sweeps from going on.
    """

    def __init__(
        self, context: WorkerContext, timer_checks: TimerChecks, monotonic: Callable[[], float] = monotonic
    ) -> None:
        """Record that nothing has been maintained yet. ``monotonic`` returns seconds, whatever the database's clock."""
        self._context = context
        self._timer_checks = timer_checks
        self._monotonic = monotonic
        self._requested = asyncio.Event()
        self._watermark: datetime | None = None
        self._tables_due_at = self._partitions_due_at = self._totals_due_at = monotonic()
        self._past_due_at = monotonic()
        self._deleting_from = monotonic()
        self._prompts_until = prompts.START
        self._erased_until = erasure.START
        """The place of the last deleted task that was to be erased; ``START`` after all were."""

    def on_jump(self) -> None:
        """Delete nothing by its age for ``SETTLED_AFTER``: by a clock that is wrongly ahead, everything is too old."""
        self._deleting_from = self._monotonic() + SETTLED_AFTER
        log.warning("nothing is deleted by its age until the clock has not jumped for a while", seconds=SETTLED_AFTER)

    def request(self, watermark: datetime | None) -> None:
        """Have maintenance done soon; ``watermark`` is the present one."""
        self._watermark = watermark
        self._requested.set()

    async def run(self) -> None:
        """Do maintenance whenever it was requested."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await self.run_maintenance(self._context.now(), self._watermark)

    async def run_maintenance(self, now: datetime, watermark: datetime | None) -> None:
        """Expire parked reports; if ``EVERY`` seconds have elapsed, prune, unless the clock has jumped, and count.

        Parked reports expire only if ``watermark`` is older than their maximum age: while workers are down, or after
        the clock has jumped, no create could have been consumed.
        """
        if watermark is not None and now - watermark > self._context.retention.parked_ttl:
            await self._attempt(MaintenanceStep.EXPIRE_PARKED, self._expire_parked(now))
        if self._monotonic() < self._tables_due_at:
            return
        self._tables_due_at = self._monotonic() + EVERY
        await self._maintain_partitions(now)
        await self._attempt(MaintenanceStep.UPDATE_TABLES, self._update_tables(now))
        if self._monotonic() >= self._totals_due_at:
            self._totals_due_at = self._monotonic() + PRUNE_TOTALS_EVERY
            await self._attempt(MaintenanceStep.UPDATE_TABLES, self._prune_totals())
        if self._deletes:
            await self._attempt(MaintenanceStep.PRUNE, self._prune(now))
            await self._attempt(MaintenanceStep.ERASE, self._erase(now))
        await self._attempt(MaintenanceStep.COUNT, self._count(now))

    @property
    def _deletes(self) -> bool:
        return self._monotonic() >= self._deleting_from

    async def _attempt(self, step: MaintenanceStep, work: Awaitable[None]) -> bool:
        """Do a step and return whether it succeeded. A failure does not interrupt the drained time."""
        try:
            await work
        except (Unavailable, Retry, *MESSAGE_ERRORS) as error:
            log.warning("maintenance failed, it is tried again later", step=step.value, reason=repr(error)[:200])
            self._context.metrics.maintenance_failures.labels(step).inc()
            return False
        return True

    async def _expire_parked(self, now: datetime) -> None:
        until = self._monotonic() + EXPIRE_TIME
        while await self.expire_parked_once(now) and self._monotonic() < until:
            continue

    async def expire_parked_once(self, now: datetime) -> int:
        """Dead-letter some expired parked reports together and return their number. May raise ``Unavailable``.

        A row is deleted once its dead letter is confirmed. Until then it is locked, so that no other worker expires it.
        """
        context = self._context
        async with transaction(context.engine) as connection:
            before = now - context.retention.parked_ttl
            rows = _limit_bytes(await parked_reports.lock_expired(connection, before, MAX_EXPIRED))
            if not rows:
                return 0
            states = await load_states(connection, {row.task_id for row in rows})
            reasons = [_reason_of(row, states, now) for row in rows]
            letters = [self._dead_letter_of(row, reason, now) for row, reason in zip(rows, reasons, strict=True)]
            obstacles = await publish_dead_letters(context.dead_publisher, letters)
            expired = [row.id for row, obstacle in zip(rows, obstacles, strict=True) if obstacle is None]
            await parked_reports.delete(connection, expired)
        for (reason, _), obstacle in zip(reasons, obstacles, strict=True):
            if obstacle is None:
                context.metrics.dead_lettered.labels(reason.value).inc()
                context.rates.count_dead_letter(reason.value, now)
        if any(obstacles):
            raise Unavailable(next(filter(None, obstacles)))
        return len(rows)

    def _dead_letter_of(self, row: ParkedReport, why: tuple[DeadLetterReason, str], now: datetime) -> OutgoingMessage:
        names = self._context.names
        origin = Origin(names.reports, names.reports, str(row.task_id))
        reason, detail = why
        body, headers = encode(row.report.encode(), reason, detail, origin, time=now)
        return build_dead_letter(names, origin.routing_key, body, headers)

    async def erase_once(self, now: datetime) -> int:
        """Erase the contents of the next deleted tasks whose retention time has passed, and return their number.

        The following call goes on after them, whether they could be erased or not, and after the last ones at the start
        again; but with the same ones if they have contents left.
        """
        context = self._context
        after = self._erased_until
        async with transaction(context.engine) as connection:
            before = now - context.retention.deleted_retention
            ids, self._erased_until = await erasure.due(connection, before, MAX_ERASED, after)
        if not ids:
            return 0
        forgotten = now - context.retention.command_retention
        for _ in range(MAX_ROUNDS):
            async with transaction(context.engine) as connection:
                if await erasure.delete_contents(connection, ids, MAX_ROWS, forgotten) < MAX_ROWS:
                    break
        else:
            self._erased_until = after  # the next run continues with the same tasks
            return 0
        check = TimerCheck(None, erase=True)
        erased = await self._timer_checks.run(dict.fromkeys(ids, check))
        context.metrics.tasks_erased.inc(erased)
        return erased

    async def _erase(self, now: datetime) -> None:
        for _ in range(MAX_ROUNDS):
            after = self._erased_until
            await self.erase_once(now)
            if self._erased_until in {erasure.START, after}:
                break

    async def _maintain_partitions(self, now: datetime) -> None:
        """Create and drop partitions, unless that failed a moment ago: while it waits for a lock, all writes wait."""
        if self._monotonic() < self._partitions_due_at:
            return
        created = await self._attempt(MaintenanceStep.CREATE_PARTITIONS, self._create_partitions(now))
        dropped = not self._deletes or await self._attempt(MaintenanceStep.DROP_PARTITIONS, self._drop_partitions(now))
        if not (created and dropped):
            self._partitions_due_at = self._monotonic() + PARTITIONS_RETRY

    async def _create_partitions(self, now: datetime) -> None:
        """Create the missing partitions; a table for which that fails does not keep the other from having its own."""
        looks_back, has_found = self._monotonic() >= self._past_due_at, False
        failures: list[Exception] = []
        for parent in PARTITIONED:
            try:
                has_found |= await self._create_missing(parent, now, past=looks_back)
            except (Retry, StatementTimeout) as error:
                failures.append(error)
        if looks_back and not has_found:
            self._past_due_at = self._monotonic() + PAST_EVERY
        if failures:
            raise failures[0]

    async def _create_missing(self, parent: str, now: datetime, *, past: bool) -> bool:
        """Create partitions of a table, until one has taken long. Return whether the last one is of a past week."""
        for _ in range(MAX_CREATED):
            async with transaction(self._context.engine) as connection:
                week = await partitions.next_partition(connection, parent, now, MOVE_TIME, past=past)
            began, is_past = self._monotonic(), week < partitions.monday(now)
            async with transaction(self._context.engine) as connection:
                await partitions.limit_lock_waits(connection, PARTITION_LOCK_TIMEOUT)
                created = await partitions.create(connection, parent, week, MOVE_TIME)
            if is_past or not created or self._monotonic() - began > PAUSE_AFTER:
                return is_past  # it has had rows to move, for which others wait
        return False

    async def _drop_partitions(self, now: datetime) -> None:
        retention = self._context.retention
        async with transaction(self._context.engine) as connection:
            await partitions.limit_lock_waits(connection, PARTITION_LOCK_TIMEOUT)
            await partitions.prune(
                connection, events_before=now - retention.history_retention, logs_before=now - retention.log_retention
            )

    async def _prune(self, now: datetime) -> None:
        context = self._context
        retention = context.retention
        await self._prune_in_rounds(partial(partitions.prune_feed, now=now), now - retention.history_retention)
        await self._prune_in_rounds(command_log.prune, now - retention.command_retention)
        await self._prune_in_rounds(rates.prune, now - RATES_RETENTION)
        await self._prune_in_rounds(_prune_actions, now - retention.action_retention)
        await self._prune_prompts()
        await self._prune_in_rounds(tokens.prune, now - retention.history_retention)

    async def _prune_prompts(self) -> None:
        """Look at ``MAX_ROWS`` prompts, which go with the history of their versions; the next run looks at others."""
        async with transaction(self._context.engine) as connection:
            self._prompts_until = await prompts.prune(connection, self._prompts_until, MAX_ROWS)

    async def _update_tables(self, now: datetime) -> None:
        context = self._context
        async with transaction(context.engine) as connection:
            await workers.prune(connection, now - WORKER_RETENTION)

    async def _prune_totals(self) -> None:
        async with transaction(self._context.engine) as connection:
            await task_index.prune(connection)

    async def _prune_in_rounds(
        self, prune: Callable[[AsyncConnection, datetime, int], Awaitable[int]], before: datetime
    ) -> None:
        """Delete the rows older than ``before``, up to ``MAX_ROWS`` per transaction and ``MAX_ROUNDS`` transactions.

        ``prune`` returns how many it deleted, or looked at: less than the maximum if there are no more.
        """
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


def _limit_bytes(rows: Sequence[ParkedReport]) -> Sequence[ParkedReport]:
    """Return the first rows, at least one, with up to ``MAX_EXPIRED_BYTES`` of reports in all."""
    sizes = accumulate(len(row.report.encode()) for row in rows)
    return rows[: max(1, sum(size <= MAX_EXPIRED_BYTES for size in sizes))]


def _reason_of(
    row: ParkedReport, states: Mapping[UUID, TaskState | None], now: datetime
) -> tuple[DeadLetterReason, str]:
    """Return why a parked report was not folded, with a detail; ``states`` has that of its task, None if damaged."""
    if row.task_id not in states:
        return DeadLetterReason.PARKED_EXPIRED, "The task was not created in time."
    state = states[row.task_id]
    if state is None:
        return DeadLetterReason.PARKED_EXPIRED, "The state of the task is damaged."
    with suppress(ValueError):  # a report that is valid for another version only
        if fold.is_out_of_range(decode_stored_report(row.report, now), state):
            return DeadLetterReason.BUILD_OUT_OF_RANGE, ReportOutcome.BUILD_OUT_OF_RANGE.detail
    return DeadLetterReason.PARKED_EXPIRED, "The create of the task rejected the report."


async def _prune_actions(connection: AsyncConnection, before: datetime, limit: int) -> int:
    return await task_actions.prune(connection, before, MAX_FINISHED_ACTIONS, limit)
