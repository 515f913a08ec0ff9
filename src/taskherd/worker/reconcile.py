"""The corridor: a batch of inputs goes in, one transaction, and what changed comes out.

`reconcile` is all of it: it locks the tasks in id order, folds each task's inputs in pure code, and saves the result.
Reports, commands and the sweeper's timer checks all come through here, and nothing else writes a task. Running it
twice with the same inputs does no harm, so callers retry freely.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from taskherd.domain import lease as lease_module
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentHeartbeat
from taskherd.domain.task_update import TaskUpdate, apply_command, apply_report, apply_timer_check, finalize
from taskherd.observability.failpoints import Failpoint
from taskherd.store import leases
from taskherd.store.engine import transaction
from taskherd.worker import load, related_rows, save
from taskherd.worker.batch import Batch, BatchResult, Parking

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.store import AsyncEngine
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.load import LoadedBatch


async def reconcile(context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
    """Take a batch through the corridor. Raises Unavailable when the database is away; nothing is committed then."""
    result = BatchResult(now, [ReportOutcome.UNCHANGED] * len(batch.reports))
    heartbeats, rest = split_heartbeats(batch)
    renewing = asyncio.create_task(renew_leases(context.engine, batch, heartbeats, now), name="renew leases")
    try:
        await run_transaction(context, batch, rest, result)
    finally:
        await asyncio.wait({renewing})  # neither left behind nor cancelled, which would lose its connection
        if not renewing.cancelled():
            renewing.exception()  # where both failed, asyncio warns of an exception that was never retrieved
    renewed = renewing.result()
    left = [index for task_id, indexes in heartbeats.items() if task_id not in renewed for index in indexes]
    if left:
        await run_transaction(context, Batch(batch.reports), left, result)
    return result


def split_heartbeats(batch: Batch) -> tuple[dict[UUID, list[int]], list[int]]:
    """Split off the heartbeats of tasks whose connection nothing else in the batch moves.

    Returns:
        The indexes of those heartbeats by task id, and the indexes of all other reports, in order.
    """
    moving: set[UUID] = set(batch.timer_checks)
    heartbeats: dict[UUID, list[int]] = defaultdict(list)
    rest: list[int] = []
    for index, report in enumerate(batch.reports):
        if isinstance(report, AgentHeartbeat):
            heartbeats[report.task_id].append(index)
        else:
            rest.append(index)
            if report.type in load.MOVES_CONNECTION:
                moving.add(report.task_id)
    for task_id in moving & heartbeats.keys():
        rest.extend(heartbeats.pop(task_id))
    rest.sort()
    return heartbeats, rest


async def renew_leases(
    engine: AsyncEngine, batch: Batch, heartbeats: dict[UUID, list[int]], now: datetime
) -> set[UUID]:
    """Renew the leases of plain tasks, in a transaction of its own, and return the ids of those tasks."""
    if not heartbeats:
        return set()
    latest = lease_module.summarize_heartbeats(
        {task_id: [batch.reports[i] for i in indexes] for task_id, indexes in heartbeats.items()}, now
    )
    async with transaction(engine) as connection:
        return await leases.touch(connection, latest)


async def run_transaction(context: WorkerContext, batch: Batch, indexes: list[int], result: BatchResult) -> None:
    """Load, fold and save the reports at ``indexes``, the command and the timer checks, in one transaction."""
    if not (indexes or batch.command or batch.timer_checks):
        return
    now = result.now
    with context.tracing.span("commit", reports=len(indexes)):
        async with transaction(context.engine) as connection:
            loaded = await load.load(connection, context, batch, indexes, now)
            parking = fold_batch(loaded, indexes, result)
            writes = save.derive(loaded, context.timeouts, now)
            summarize(loaded, indexes, writes, result)
            context.failpoint(Failpoint.WRITE)
            await save.save(connection, loaded, writes, result)
            for index in await related_rows.save_parking(connection, parking, now, context.retention.max_parked):
                result.outcomes[index] = ReportOutcome.PARKED_OVERFLOW
            context.failpoint(Failpoint.PRE_COMMIT)


def fold_batch(loaded: LoadedBatch, indexes: list[int], result: BatchResult) -> Parking:
    """Apply the command, the reports in order and the timer checks to their tasks, and decide what follows."""
    batch, updates, policies, now = loaded.batch, loaded.updates, loaded.policies, result.now
    parking = Parking()
    if batch.command:
        _fold_command(loaded, batch.command, parking, now)
    for index in indexes:
        report = batch.reports[index]
        update = updates.get(report.task_id)
        if update is None or update.task is None:
            result.outcomes[index] = ReportOutcome.PARKED
            parking.new[index] = report
        else:
            result.outcomes[index] = apply_report(update, report, now, policies)
    for task_id, check in batch.timer_checks.items():
        if task_id in updates:
            apply_timer_check(updates[task_id], check, now, policies)
    for update in updates.values():
        finalize(update, now, policies)
    return parking


def _fold_command(loaded: LoadedBatch, command: Command, parking: Parking, now: datetime) -> None:
    """Apply the command unless it was replied to before, and to the task that it creates the reports parked for it."""
    update = loaded.updates.setdefault(command.task_id, TaskUpdate(None, None))
    if loaded.recorded_reply:
        return
    apply_command(update, command, now, loaded.policies)
    if update.before is None and update.task is not None:
        for row_id, report in loaded.parked:
            outcome = apply_report(update, report, now, loaded.policies)
            if outcome.dead_letter_reason is None:  # one that is refused stays parked, and expires to the dead letters
                parking.folded.append(row_id)


def summarize(loaded: LoadedBatch, indexes: list[int], writes: save.Writes, result: BatchResult) -> None:
    """Put into the result what the caller publishes and counts. A report without a visible change is unchanged."""
    changed = {change.task.id for change in writes.changes}
    for index in indexes:
        if result.outcomes[index] is ReportOutcome.APPLIED and loaded.batch.reports[index].task_id not in changed:
            result.outcomes[index] = ReportOutcome.UNCHANGED
    result.changes.extend(writes.changes)
    for update in loaded.updates.values():
        if update.requested_builds or update.sent_input:
            result.requested = True
        if update.timed_out:
            result.timed_out.append(update.timed_out)
        result.deletes_retried += update.delete_retried
