"""Load a batch: lock its tasks in id order, and read everything that folding them needs.

If a task does not exist, its id is locked with an advisory lock and the task is read again. The create takes the same
lock, so a report is either parked before the create reads the parked reports, or it finds the task.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskherd.domain import lease as lease_module
from taskherd.domain.claims import ownership
from taskherd.domain.commands import Create, Resume, Send, digest
from taskherd.domain.handle_command import CommandContext, EarlierInput, TemplateVersionInfo
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    InputOutcomeReport,
    WorkspaceBuild,
)
from taskherd.domain.task_update import TaskUpdate, UpdateContext
from taskherd.messages.reports import decode_stored_report
from taskherd.store import build_claims, command_log, directory, inputs, leases, running_tasks, tasks
from taskherd.store import parked_reports as parked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.claims import BuildClaim, Ownership
    from taskherd.domain.commands import Command
    from taskherd.domain.directory import TemplatePool
    from taskherd.domain.reports import Report
    from taskherd.messages.claims import OwnershipQuery
    from taskherd.store import AsyncConnection
    from taskherd.store.command_log import RecordedCommand
    from taskherd.store.tasks import StoredTask
    from taskherd.worker.batch import Batch
    from taskherd.worker.context import WorkerContext

CONNECTION_REPORT_TYPES = frozenset(
    kind.type for kind in (WorkspaceBuild, AgentLifecycle, AgentHeartbeat, AgentDisconnected)
)
"""The types of reports that may change a task's connection: for their tasks the lease is loaded and saved too."""


@dataclass(slots=True)
class LoadedBatch:
    """A batch, the rows of its tasks and an update for each of them.

    Attributes:
        lease_checked: the tasks whose leases were looked up.
        leased: those of them that have a lease.
        parked: the reports that were parked until one of the creates, with their row ids, by task.
        recorded_replies: the earlier replies to commands of the batch, by command id.
        claims: the latest granted claim of each task that has one, of the tasks with claims in this batch.
        template_pools: the names of the templates and pools of at least its tasks, by template version.
    """

    batch: Batch
    rows: dict[UUID, StoredTask]
    updates: dict[UUID, TaskUpdate]
    update_context: UpdateContext
    lease_checked: frozenset[UUID]
    leased: frozenset[UUID]
    parked: Mapping[UUID, Sequence[tuple[int, Report]]]
    recorded_replies: Mapping[UUID, RecordedCommand]
    claims: dict[UUID, BuildClaim]
    template_pools: Mapping[UUID, TemplatePool]


async def load_batch(
    connection: AsyncConnection, context: WorkerContext, batch: Batch, indexes: Sequence[int], now: datetime
) -> LoadedBatch:
    """Lock the tasks of the batch's commands, claims, timer checks and reports at ``indexes``; read what they need."""
    reports = [batch.reports[index] for index in indexes]
    lease_checked = set(batch.timer_checks) | {command.task_id for command in batch.commands}
    claimed = {claim.task_id for claim in batch.claims}
    to_create = {command.task_id for command in batch.commands if isinstance(command, Create)}
    task_ids = {report.task_id for report in reports} | lease_checked | claimed
    rows = await _lock_tasks(connection, task_ids, to_create)
    lease_checked |= {report.task_id for report in reports if report.type in CONNECTION_REPORT_TYPES}
    lease_of = {lease.task_id: lease for lease in await leases.lock(connection, list(lease_checked & rows.keys()))}
    updates = {task_id: _start_update(row, lease_of.get(task_id)) for task_id, row in rows.items()}
    created = sorted(to_create - rows.keys())
    parked_reports = await _lock_parked_reports(connection, created, now) if created else {}
    input_keys = {(report.task_id, report.input_id) for report in reports if isinstance(report, InputOutcomeReport)}
    input_keys |= {(task_id, each) for task_id, check in batch.timer_checks.items() for each in check.expired_inputs}
    known_inputs, open_inputs = await _find_inputs(connection, input_keys)
    await _load_queues(connection, updates, input_keys)
    command_context = await load_command_context(connection, context, batch.commands, rows)
    versions = {row.task.template_version_id for row in rows.values()}
    policies = await context.directory_cache.recovery_policies(connection, versions)
    template_pools = context.directory_cache.known_template_pools()
    return LoadedBatch(
        batch=batch,
        rows=rows,
        updates=updates,
        update_context=UpdateContext(
            context.timeouts,
            context.delete_backoff,
            command_context,
            context.directory_cache.default_policy,
            policies,
            open_inputs,
            known_inputs,
        ),
        lease_checked=frozenset(lease_checked),
        leased=frozenset(lease_of),
        parked=parked_reports,
        recorded_replies=await _register_commands(connection, batch.commands, now),
        claims=await build_claims.latest(connection, claimed) if claimed else {},
        template_pools=template_pools,
    )


async def load_ownership(connection: AsyncConnection, queries: Sequence[OwnershipQuery]) -> list[dict[UUID, Ownership]]:
    """Return for each query where each of its tasks is. This locks and changes nothing."""
    task_ids = {task_id for query in queries for task_id in query.task_ids}
    states = await tasks.states(connection, task_ids)
    claims = await build_claims.latest(connection, task_ids)
    return [
        {task_id: ownership(states, claims, task_id, query.runner) for task_id in query.task_ids} for query in queries
    ]


def _start_update(row: StoredTask, lease: lease_module.Lease | None) -> TaskUpdate:
    task = row.task
    if lease is not None:
        task = lease_module.with_lease(task, lease)
    return TaskUpdate(task, task, core_document=row.document)


async def _lock_tasks(connection: AsyncConnection, ids: set[UUID], to_create: set[UUID]) -> dict[UUID, StoredTask]:
    """Lock and return the tasks that exist; those ``to_create`` are expected not to."""
    expected = list(ids - to_create)
    rows = {row.task.id: row for row in await tasks.lock(connection, expected)} if expected else {}
    missing = sorted(ids - rows.keys())
    if missing:
        await parked.lock_task_ids(connection, missing)
        rows.update((row.task.id, row) for row in await tasks.lock(connection, missing))
    return rows


async def _lock_parked_reports(
    connection: AsyncConnection, task_ids: Sequence[UUID], now: datetime
) -> dict[UUID, list[tuple[int, Report]]]:
    """Lock the reports parked for tasks and return them, with their row ids. Each was valid when it was parked."""
    reports: dict[UUID, list[tuple[int, Report]]] = defaultdict(list)
    for row in await parked.lock(connection, task_ids):
        reports[row.task_id].append((row.id, decode_stored_report(row.report, now)))
    return reports


async def _register_commands(
    connection: AsyncConnection, commands: Sequence[Command], now: datetime
) -> Mapping[UUID, RecordedCommand]:
    """Return the earlier replies to these commands, and register the others, to record their replies later."""
    if not commands:
        return {}
    triples = [(each.command_id, each.task_id, digest(each)) for each in commands]
    return await command_log.register(connection, triples, now)


async def _find_inputs(
    connection: AsyncConnection, keys: set[tuple[UUID, UUID]]
) -> tuple[frozenset[tuple[UUID, UUID]], frozenset[tuple[UUID, UUID]]]:
    """Return which user inputs of ``keys`` (task id, input id) exist, and which of those have no outcome yet."""
    if not keys:
        return frozenset(), frozenset()
    rows = await inputs.load(connection, sorted({input_id for _, input_id in keys}))
    existing = keys & {(row.task_id, row.input_id) for row in rows}
    decided = {(row.task_id, row.input_id) for row in rows if row.decided_at is not None}
    return frozenset(existing), frozenset(existing - decided)


async def _find_earlier_inputs(connection: AsyncConnection, sends: Sequence[Send]) -> dict[UUID, EarlierInput]:
    """Return the inputs that these very sends appended before: the id of an input is that of its command."""
    rows = await inputs.load(connection, sorted(send.command_id for send in sends))
    return {row.input_id: EarlierInput(row.task_id, row.content, row.actor_id, row.state == "queued") for row in rows}


async def _load_queues(
    connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], input_keys: set[tuple[UUID, UUID]]
) -> None:
    """Load the first queued user inputs of each task: one more than the batch can decide, so the next one is known."""
    waiting = [task_id for task_id, update in updates.items() if update.existing_task.state.inbox.queued]
    if not waiting:
        return
    decisions = Counter(task_id for task_id, _ in input_keys)
    queues = await inputs.first_queued(connection, {task_id: 1 + decisions[task_id] for task_id in waiting})
    for task_id, queue in queues.items():
        updates[task_id].queue = queue


async def load_command_context(
    connection: AsyncConnection, context: WorkerContext, commands: Sequence[Command], rows: Mapping[UUID, StoredTask]
) -> CommandContext:
    """Read the directory entries, names and earlier inputs that the commands refer to."""
    creates = [command for command in commands if isinstance(command, Create)]
    sends = [command for command in commands if isinstance(command, Send)]
    owners: Mapping[UUID, directory.Owner] = {}
    versions: Mapping[UUID, directory.TemplateVersion] = {}
    if creates:
        owners = await directory.owners(connection, sorted({create.owner_id for create in creates}))
        versions = await directory.template_versions(
            connection, sorted({create.template_version_id for create in creates})
        )
    chosen = [(create.owner_id, create.name.lower()) for create in creates if create.name]
    return CommandContext(
        owners={owner.id: owner.organizations for owner in owners.values() if owner.active},
        versions={
            version.id: TemplateVersionInfo(
                version.organization_id, version.template_id, version.presets, version.usable
            )
            for version in versions.values()
        },
        names_in_use=await tasks.names_in_use(connection, chosen) if chosen else {},
        generate_name=context.generate_name,
        strict_send=context.strict_send,
        earlier_inputs=await _find_earlier_inputs(connection, sends) if sends else {},
        running=await _count_running(connection, context, commands, rows),
        max_running=context.max_running,
    )


async def _count_running(
    connection: AsyncConnection, context: WorkerContext, commands: Sequence[Command], rows: Mapping[UUID, StoredTask]
) -> dict[UUID, int]:
    """Return the number of running tasks of each owner of a task that is to start, who cannot start others meanwhile.

    The numbers are exact up to the maximum and the number of commands, which may end some.
    """
    if not context.max_running:
        return {}
    owners = {command.owner_id for command in commands if isinstance(command, Create)}
    resumed = (rows.get(command.task_id) for command in commands if isinstance(command, Resume))
    owners |= {row.task.owner_id for row in resumed if row is not None}
    if not owners:
        return {}
    limit = context.max_running + len(commands)
    return await running_tasks.lock_and_count(connection, sorted(owners), limit)
