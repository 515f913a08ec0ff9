"""Reconcile a batch with the database: load and lock its tasks, fold its messages, save, commit.

Reports, commands, claims and timer checks all go through ``reconcile``; nothing else writes a task. Reconciling the
same batch again changes nothing, so callers retry freely.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from taskherd.domain.claims import ClaimOutcome, decide_claim
from taskherd.domain.directory import OTHER
from taskherd.domain.lease import summarize_heartbeats
from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
from taskherd.domain.reports import AgentHeartbeat
from taskherd.domain.task_update import apply_command, apply_report, apply_timer_check, finalize
from taskherd.domain.updates import TaskUpdate
from taskherd.observability.failpoints import Failpoint
from taskherd.store import leases
from taskherd.store.engine import transaction
from taskherd.worker.agent_events import agent_events, record
from taskherd.worker.batch import Batch, BatchResult, ParkingChanges
from taskherd.worker.load import CONNECTION_REPORT_TYPES, load_batch
from taskherd.worker.related_rows import save_parking
from taskherd.worker.save import derive_writes, save_batch
from taskherd.worker.usage import count_usage

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.claims import BuildClaim, ClaimDecision
    from taskherd.domain.commands import Command
    from taskherd.store import AsyncEngine
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.load import LoadedBatch
    from taskherd.worker.save import Writes
    from taskherd.worker.sender_pools import Pools


async def reconcile(context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
    """Apply a batch and return its result. Raises ``Unavailable`` if the database cannot be reached.

    Heartbeats that only renew a lease need no lock on their task: they have a transaction of their own, which runs at
    the same time. Those that did not renew one follow in another transaction.
    """
    result = BatchResult(now, [ReportOutcome.UNCHANGED] * len(batch.reports))
    heartbeats, others = split_heartbeats(batch)
    if heartbeats:
        renewed = await _renew_meanwhile(context, batch, heartbeats, others, result)
    else:
        renewed = set()
        await run_transaction(context, batch, others, result)
    not_renewed = [index for task_id, indexes in heartbeats.items() if task_id not in renewed for index in indexes]
    if not_renewed:
        await run_transaction(context, Batch(batch.reports, report_pools=batch.report_pools), not_renewed, result)
    record(context, result.agent_events)
    count_usage(context, result.new_usage)
    context.rates.count_changes(result.changes, now)
    return result


async def _renew_meanwhile(
    context: WorkerContext, batch: Batch, heartbeats: dict[UUID, list[int]], others: list[int], result: BatchResult
) -> set[UUID]:
    """Process the ``others`` while leases are renewed, and return the ids of the tasks whose lease was renewed."""
    renewing = asyncio.create_task(renew_leases(context.engine, batch, heartbeats, result.now), name="renew leases")
    try:
        await run_transaction(context, batch, others, result)
    finally:
        # Do not cancel: cancelling mid-query discards the pooled connection.
        await asyncio.wait({renewing})
        if not renewing.cancelled():
            renewing.exception()  # if both failed, asyncio would warn that this one was never retrieved
    return renewing.result()


async def run_transaction(context: WorkerContext, batch: Batch, indexes: list[int], result: BatchResult) -> None:
    """Load, fold and save the reports at ``indexes``, commands, claims and timer checks, in one transaction."""
    if not (indexes or batch.commands or batch.claims or batch.timer_checks):
        return
    now = result.now
    with context.tracing.span("commit", reports=len(indexes)):
        async with transaction(context.engine) as connection:
            loaded = await load_batch(connection, context, batch, indexes, now)
            parking = fold_batch(loaded, indexes, result)
            writes = derive_writes(loaded, context.timeouts, now)
            summarize(loaded, indexes, writes, result)
            context.failpoint(Failpoint.WRITE)
            await save_batch(connection, context, loaded, writes, result)
            for index in await save_parking(connection, parking, now, context.retention.max_parked):
                result.outcomes[index] = ReportOutcome.PARKED_OVERFLOW
            context.failpoint(Failpoint.PRE_COMMIT)


def fold_batch(loaded: LoadedBatch, indexes: list[int], result: BatchResult) -> ParkingChanges:
    """Apply commands, claims and reports in order, and timer checks, to their tasks, and decide what follows."""
    batch, updates, update_context, now = loaded.batch, loaded.updates, loaded.update_context, result.now
    parking = ParkingChanges()
    for command in batch.commands:
        _fold_command(loaded, command, parking, now)
    for number, claim in enumerate(batch.claims):
        pools = batch.claim_pools[number] if batch.claim_pools else None
        trusted = _may_speak_of(loaded, claim.task_id, pools)
        result.decisions.append(_fold_claim(loaded, claim) if trusted else DeadLetterReason.UNTRUSTED_SENDER)
    for index in indexes:
        report = batch.reports[index]
        update = updates.get(report.task_id)
        if batch.report_pools and not _may_speak_of(loaded, report.task_id, batch.report_pools[index]):
            result.outcomes[index] = ReportOutcome.UNTRUSTED_SENDER
        elif update is None or update.task is None:
            result.outcomes[index] = ReportOutcome.PARKED
            parking.new[index] = report
        else:
            result.outcomes[index] = apply_report(update, report, now, update_context)
    for task_id, check in batch.timer_checks.items():
        if task_id in updates:
            apply_timer_check(updates[task_id], check, now, update_context)
    for update in updates.values():
        finalize(update, now, update_context)
    return parking


def _may_speak_of(loaded: LoadedBatch, task_id: UUID, pools: Pools) -> bool:
    """Return whether a sender of these pools may speak of the task; a task that does not exist is in no pool."""
    if pools is None:
        return True
    update = loaded.updates.get(task_id)
    if update is None or update.task is None:
        return False
    template_pool = loaded.template_pools.get(update.task.template_version_id)
    return template_pool is not None and template_pool.pool in pools


def _fold_command(loaded: LoadedBatch, command: Command, parking: ParkingChanges, now: datetime) -> None:
    """Apply the command unless its reply is recorded. If it creates the task, apply the task's parked reports too."""
    update = loaded.updates.setdefault(command.task_id, TaskUpdate(None, None))
    if command.command_id in loaded.recorded_replies:
        return
    apply_command(update, command, now, loaded.update_context)
    if update.before is None and update.task is not None:
        for row_id, report in loaded.parked.get(command.task_id, ()):
            outcome = apply_report(update, report, now, loaded.update_context)
            if outcome.dead_letter_reason is None:  # a rejected one stays parked until it expires to the dead letters
                parking.folded.append(row_id)


def _fold_claim(loaded: LoadedBatch, claim: BuildClaim) -> ClaimDecision:
    update = loaded.updates.get(claim.task_id)
    decision = decide_claim(update.task if update else None, loaded.claims.get(claim.task_id), claim)
    if decision.outcome is ClaimOutcome.GRANTED:
        loaded.claims[claim.task_id] = claim
    return decision


def summarize(loaded: LoadedBatch, indexes: list[int], writes: Writes, result: BatchResult) -> None:
    """Add the changes and the counts to the result. An applied report without a visible change becomes unchanged."""
    changed = {change.task.id for change in writes.changes}
    for index in indexes:
        if result.outcomes[index] is ReportOutcome.APPLIED and loaded.batch.reports[index].task_id not in changed:
            result.outcomes[index] = ReportOutcome.UNCHANGED
    result.changes.extend(writes.changes)
    for update in loaded.updates.values():
        if update.task is None:
            continue
        template_pool = loaded.template_pools.get(update.task.template_version_id, OTHER)
        if update.timed_out:
            result.given_up.append((f"workspace.{update.timed_out}", template_pool))
        result.given_up.extend([("agent.input", template_pool)] * update.inputs_expired)
        result.given_up.extend([("agent.interrupt", template_pool)] * update.interrupt_expired)
        result.deletes_retried += update.delete_retried
        result.agent_events.extend(agent_events(update, template_pool))
        if update.usage is not None:
            result.new_usage.extend((template_pool, growth) for growth in update.usage.new.values())


def split_heartbeats(batch: Batch) -> tuple[dict[UUID, list[int]], list[int]]:
    """Split a batch into heartbeats that may only renew a lease and all other reports.

    If its task has a timer check or another report that may change the connection, a heartbeat is one of the others;
    so is one whose sender may not speak of all pools, because only the task tells its pool.

    Returns:
        The indexes of those heartbeats by task id, and the indexes of all other reports, in order.
    """
    connection_changing: set[UUID] = set(batch.timer_checks)
    heartbeats: dict[UUID, list[int]] = defaultdict(list)
    others: list[int] = []
    for index, report in enumerate(batch.reports):
        if isinstance(report, AgentHeartbeat) and (not batch.report_pools or batch.report_pools[index] is None):
            heartbeats[report.task_id].append(index)
        else:
            others.append(index)
            if report.type in CONNECTION_REPORT_TYPES:
                connection_changing.add(report.task_id)
    for task_id in connection_changing & heartbeats.keys():
        others.extend(heartbeats.pop(task_id))
    others.sort()
    return heartbeats, others


async def renew_leases(
    engine: AsyncEngine, batch: Batch, heartbeats: dict[UUID, list[int]], now: datetime
) -> set[UUID]:
    """Renew the leases of steady tasks and return the ids of the tasks whose lease was renewed."""
    if not heartbeats:
        return set()
    latest = summarize_heartbeats(
        {task_id: [batch.reports[i] for i in indexes] for task_id, indexes in heartbeats.items()}, now
    )
    async with transaction(engine) as connection:
        return await leases.renew(connection, latest)
