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
from taskherd.domain.commands import Create, Resume, Send
from taskherd.domain.handle_command import CommandContext, EarlierInput, TemplateVersionInfo
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    AgentUsage,
    InputOutcomeReport,
    WorkspaceBuild,
)
from taskherd.domain.updates import TaskUpdate, UpdateContext
from taskherd.messages.reports import decode_stored_report
from taskherd.store import build_claims, command_log, command_preconditions, inputs, leases, tasks
from taskherd.store import parked_reports as parked
from taskherd.store.engine import transaction
from taskherd.worker.agent_requests import load_requests
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries
from taskherd.worker.usage import load_ledgers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.claims import BuildClaim, Ownership
    from taskherd.domain.commands import Command
    from taskherd.domain.directory import TemplatePool
    from taskherd.domain.reports import Report
    from taskherd.domain.task import TaskState
    from taskherd.messages.claims import OwnershipQuery
    from taskherd.store import AsyncConnection
    from taskherd.store.command_log import RecordedCommand
    from taskherd.store.command_preconditions import Preconditions
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
        leases: the leases that those of them have.
        parked: the reports that were parked until one of the creates, with their row ids, by task.
        recorded_replies: the earlier replies to commands of the batch, by command id.
        claims: the latest granted claim of each task that has one, of the tasks with claims in this batch.
        template_pools: the names of the templates and pools of at least its tasks, by template version.
        entries: the entries of the directory that its creates refer to.
    """

    batch: Batch
    rows: dict[UUID, StoredTask]
    updates: dict[UUID, TaskUpdate]
    update_context: UpdateContext
    lease_checked: frozenset[UUID]
    leases: Mapping[UUID, lease_module.Lease]
    parked: Mapping[UUID, Sequence[tuple[int, Report]]]
    recorded_replies: Mapping[UUID, RecordedCommand]
    claims: dict[UUID, BuildClaim]
    template_pools: Mapping[UUID, TemplatePool]
    entries: DirectoryEntries = NO_ENTRIES


async def load_batch(
    connection: AsyncConnection, context: WorkerContext, batch: Batch, indexes: Sequence[int], now: datetime
) -> LoadedBatch:
    """Lock the tasks of the batch's commands, claims, timer checks and reports at ``indexes``; read what they need."""
    reports = [batch.reports[index] for index in indexes]
    lease_checked = set(batch.timer_checks) | {command.task_id for command in batch.commands}
    claimed = {claim.task_id for claim in batch.claims}
    task_ids = {report.task_id for report in reports} | lease_checked | claimed
    if batch.commands:
        drawn_names = _draw_names(context, batch.commands)
        rows, preconditions = await _lock_for_commands(connection, context, batch.commands, task_ids, drawn_names)
    else:
        drawn_names = {}
        rows, preconditions = await _lock_tasks(connection, task_ids), None
    lease_checked |= {report.task_id for report in reports if report.type in CONNECTION_REPORT_TYPES}
    lease_of = {lease.task_id: lease for lease in await leases.lock(connection, list(lease_checked & rows.keys()))}
    updates = {task_id: _start_update(row, lease_of.get(task_id)) for task_id, row in rows.items()}
    input_keys = {(report.task_id, report.input_id) for report in reports if isinstance(report, InputOutcomeReport)}
    input_keys |= {(task_id, each) for task_id, check in batch.timer_checks.items() for each in check.expired_inputs}
    known_inputs, open_inputs = await _find_inputs(connection, input_keys)
    await _load_queues(connection, updates, input_keys)
    await load_ledgers(connection, updates, [report for report in reports if isinstance(report, AgentUsage)])
    await load_requests(connection, updates, reports, batch.commands)
    entries = await _load_entries(connection, context, batch.commands, preconditions)
    command_context = await load_command_context(
        connection, context, batch.commands, preconditions, entries, drawn_names=drawn_names
    )
    versions = {row.task.template_version_id for row in rows.values()}
    runs = await context.directory_cache.version_runs(connection, versions)
    return LoadedBatch(
        batch=batch,
        rows=rows,
        updates=updates,
        update_context=UpdateContext(
            context.timeouts,
            context.delete_backoff,
            command_context,
            context.directory_cache.default_policy,
            runs.policies,
            open_inputs,
            known_inputs,
        ),
        lease_checked=frozenset(lease_checked),
        leases=lease_of,
        parked=await _lock_parked_reports(connection, batch.commands, preconditions, now),
        recorded_replies=await _find_recorded(connection, preconditions),
        claims=await build_claims.latest(connection, claimed) if claimed else {},
        template_pools=runs.template_pools,
        entries=entries,
    )


async def find_locked(context: WorkerContext, task_ids: Collection[UUID]) -> frozenset[UUID]:
    """Return those of the tasks of which another transaction keeps a row locked, without waiting for it."""
    async with transaction(context.engine) as connection:
        return await tasks.find_locked(connection, task_ids)


async def load_ownership(
    connection: AsyncConnection, queries: Sequence[OwnershipQuery]
) -> list[dict[UUID, Ownership | None]]:
    """Return for each query where each of its tasks is, None for one that the database has no record of.

    A task whose state is damaged is left out. This locks and changes nothing.
    """
    task_ids = {task_id for query in queries for task_id in query.task_ids}
    states = await tasks.states(connection, task_ids)
    claims = await build_claims.latest(connection, task_ids)
    known = {task_id: (state, deleted_at) for task_id, (state, deleted_at) in states.items() if state is not None}
    damaged = states.keys() - known.keys()
    return [
        {
            task_id: ownership(known, claims, task_id, query.runner)
            for task_id in query.task_ids
            if task_id not in damaged
        }
        for query in queries
    ]


async def load_states(connection: AsyncConnection, task_ids: Collection[UUID]) -> dict[UUID, TaskState | None]:
    """Return the states of the existing tasks among ``task_ids``, None if damaged. This locks and changes nothing."""
    return {task_id: state for task_id, (state, _) in (await tasks.states(connection, task_ids)).items()}


def _start_update(row: StoredTask, lease: lease_module.Lease | None) -> TaskUpdate:
    task = row.task
    if lease is not None:
        task = lease_module.with_lease(task, lease)
    return TaskUpdate(task, task, core_document=row.document)


async def _lock_tasks(connection: AsyncConnection, ids: set[UUID]) -> dict[UUID, StoredTask]:
    """Lock and return the tasks that exist."""
    rows = {row.task.id: row for row in await tasks.lock(connection, list(ids))} if ids else {}
    missing = sorted(ids - rows.keys())
    if missing:
        await parked.lock_task_ids(connection, missing)
        rows.update((row.task.id, row) for row in await tasks.lock(connection, missing))
    return rows


def _draw_names(context: WorkerContext, commands: Sequence[Command]) -> dict[UUID, Sequence[str]]:
    """Return names for the new tasks for which none was chosen, by task id."""
    creates = (command for command in commands if isinstance(command, Create) and not command.name)
    return {create.task_id: context.draw_names(create.input) for create in creates}


async def _lock_for_commands(
    connection: AsyncConnection,
    context: WorkerContext,
    commands: Sequence[Command],
    ids: set[UUID],
    drawn_names: Mapping[UUID, Sequence[str]],
) -> tuple[dict[UUID, StoredTask], Preconditions]:
    """Lock and return the tasks that exist, and what else the commands depend on. New tasks are not looked up first.

    Locks the owners of tasks that are to start too, whose running tasks are counted: exactly up to the maximum and the
    number of commands, which may end some.
    """
    creates = [command for command in commands if isinstance(command, Create)]
    expected = list(ids - {create.task_id for create in creates})
    rows = {row.task.id: row for row in await tasks.lock(connection, expected)} if expected else {}
    owners = _owners_to_count(context, commands, rows)
    references = command_preconditions.References(
        missing=sorted(ids - rows.keys()),
        command_ids=[command.command_id for command in commands],
        counted_owners=sorted(owners),
        names=[
            (create.owner_id, name)
            for create in creates
            for name in ([create.name.lower()] if create.name else drawn_names[create.task_id])
        ],
    )
    max_counted = context.max_running + len(commands)
    found = await command_preconditions.lock_and_read(connection, references, max_counted)
    if found.existing:
        rows.update((row.task.id, row) for row in await tasks.lock(connection, sorted(found.existing)))
        more_owners = sorted(_owners_to_count(context, commands, rows) - owners)
        if more_owners:
            more = command_preconditions.References([], [], more_owners, [])
            found.running.update((await command_preconditions.lock_and_read(connection, more, max_counted)).running)
    return rows, found


def _owners_to_count(context: WorkerContext, commands: Sequence[Command], rows: Mapping[UUID, StoredTask]) -> set[UUID]:
    """Return the owners of the tasks that are to start, if there is a maximum of their running tasks."""
    if not context.max_running:
        return set()
    resumed = (rows.get(command.task_id) for command in commands if isinstance(command, Resume))
    owners = {command.owner_id for command in commands if isinstance(command, Create)}
    return owners | {row.task.owner_id for row in resumed if row is not None}


async def _lock_parked_reports(
    connection: AsyncConnection,
    commands: Sequence[Command],
    preconditions: Preconditions | None,
    now: datetime,
) -> dict[UUID, list[tuple[int, Report]]]:
    """Lock and return the reports parked for tasks to create, with row ids. Each was valid when it was parked."""
    if preconditions is None or not preconditions.has_parked_reports:
        return {}
    created = sorted(each.task_id for each in commands if isinstance(each, Create))
    reports: dict[UUID, list[tuple[int, Report]]] = defaultdict(list)
    for row in await parked.lock(connection, created):
        reports[row.task_id].append((row.id, decode_stored_report(row.report, now)))
    return reports


async def _find_recorded(
    connection: AsyncConnection, preconditions: Preconditions | None
) -> Mapping[UUID, RecordedCommand]:
    """Return the earlier replies to commands of the batch."""
    if preconditions is None or not preconditions.recorded:
        return {}
    return await command_log.find(connection, preconditions.recorded)


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


async def _load_entries(
    connection: AsyncConnection,
    context: WorkerContext,
    commands: Sequence[Command],
    preconditions: Preconditions | None,
) -> DirectoryEntries:
    creates = [command for command in commands if isinstance(command, Create)]
    if preconditions is None or not creates:
        return NO_ENTRIES
    return await context.directory_cache.entries(
        connection,
        preconditions.directory_revision,
        {create.owner_id for create in creates},
        {create.template_version_id for create in creates},
    )


async def load_command_context(
    connection: AsyncConnection,
    context: WorkerContext,
    commands: Sequence[Command],
    preconditions: Preconditions | None,
    entries: DirectoryEntries,
    *,
    drawn_names: Mapping[UUID, Sequence[str]],
) -> CommandContext:
    """Return the directory entries, names and earlier inputs that the commands refer to."""
    if preconditions is None:
        return CommandContext({}, {}, {}, {})
    sends = [command for command in commands if isinstance(command, Send)]
    return CommandContext(
        owners={owner.id: owner.organizations for owner in entries.owners.values() if owner.active},
        versions={
            each.id: TemplateVersionInfo(each.organization_id, each.template_id, frozenset(each.presets), each.usable)
            for each in entries.versions.values()
        },
        names_in_use=preconditions.names_in_use,
        drawn_names=drawn_names,
        strict_send=context.strict_send,
        earlier_inputs=await _find_earlier_inputs(connection, sends) if sends else {},
        running=preconditions.running,
        max_running=context.max_running,
    )
