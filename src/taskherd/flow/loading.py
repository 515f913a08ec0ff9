"""The first third of the corridor: the tasks of a batch, locked in id order, and all that folding them needs to know.

A task that is not there is looked for a second time under an advisory lock on its id, which a create of that id takes
too; so a report is either parked before the create looks for parked ones, or it finds the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from taskherd.core import lease as leasing
from taskherd.core.commands import Create, digest_text
from taskherd.core.obey import Surroundings, Version
from taskherd.core.reports import AgentDisconnected, AgentHeartbeat, AgentLifecycle, TaskInput, WorkspaceBuild
from taskherd.core.turn import Rules, Turn
from taskherd.store import commands as command_log
from taskherd.store import directory, inputs, leases, parked, tasks
from taskherd.wire.reports import REPORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from taskherd.core.commands import Command
    from taskherd.core.reports import Report
    from taskherd.core.turn import Look
    from taskherd.flow.batch import Batch
    from taskherd.flow.ground import Ground
    from taskherd.store.commands import RecordedCommand
    from taskherd.store.tasks import StoredTask

MOVES_CONNECTION = frozenset(kind.type for kind in (WorkspaceBuild, AgentLifecycle, AgentHeartbeat, AgentDisconnected))
"""The reports that may change whether another heartbeat is news, so that a task's lease has to be at hand."""


@dataclass(slots=True)
class Scene:
    """A batch and what it found: its tasks' rows, a turn for each task, and what the rules need to know."""

    batch: Batch
    rows: dict[UUID, StoredTask]
    turns: dict[UUID, Turn]
    rules: Rules
    leases: frozenset[UUID]
    moved: frozenset[UUID]
    parked: list[tuple[int, Report]]
    replied: RecordedCommand | None


async def load(
    connection: AsyncConnection, ground: Ground, batch: Batch, indexes: Sequence[int], now: datetime
) -> Scene:
    """Lock the batch's tasks and read what their turns need."""
    reports = [batch.reports[index] for index in indexes]
    visited = set(batch.looks) | ({batch.command.task_id} if batch.command else set())
    rows = await _lock(connection, {report.task_id for report in reports} | visited)
    moved = visited | {report.task_id for report in reports if report.type in MOVES_CONNECTION}
    held = {lease.task_id: lease for lease in await leases.load(connection, list(moved & rows.keys()))}
    waiting: list[tuple[int, Report]] = []
    if isinstance(batch.command, Create) and batch.command.task_id not in rows:
        waiting = await _parked(connection, batch.command.task_id, now)
    told = [report for report in (*reports, *(report for _, report in waiting)) if isinstance(report, TaskInput)]
    known, still_open = await _inputs(connection, told, batch.looks)
    around = await _surroundings(connection, ground, batch.command)
    return Scene(
        batch=batch,
        rows=rows,
        turns={task_id: _turn(row, held.get(task_id)) for task_id, row in rows.items()},
        rules=Rules(ground.patience, ground.delete_backoff, around, still_open, known),
        leases=frozenset(held),
        moved=frozenset(moved),
        parked=waiting,
        replied=await _replied(connection, batch.command, now),
    )


def _turn(row: StoredTask, lease: leasing.Lease | None) -> Turn:
    task = row.task
    if lease is not None:
        task = leasing.with_lease(task, lease)
    return Turn(task, task, own=row.document)


async def _lock(connection: AsyncConnection, ids: set[UUID]) -> dict[UUID, StoredTask]:
    rows = {row.task.id: row for row in await tasks.lock(connection, list(ids))}
    missing = sorted(ids - rows.keys())
    if missing:
        await parked.advisory(connection, missing)
        rows.update((row.task.id, row) for row in await tasks.lock(connection, missing))
    return rows


async def _parked(connection: AsyncConnection, task_id: UUID, now: datetime) -> list[tuple[int, Report]]:
    """What is parked for a task, with the row of each; it was well formed when it was parked."""
    return [
        (row.id, REPORT.validate_json(row.report).to_core(now, {})) for row in await parked.read(connection, [task_id])
    ]


async def _replied(connection: AsyncConnection, command: Command | None, now: datetime) -> RecordedCommand | None:
    """What was replied to this command before; else it is claimed, and its reply is to be recorded."""
    if command is None:
        return None
    return (await command_log.claim(connection, [(command.command_id, digest(command))], now)).get(command.command_id)


def digest(command: Command) -> bytes:
    """What tells a command that comes again from another one under the same id."""
    return sha256(digest_text(command).encode()).digest()


async def _inputs(
    connection: AsyncConnection, told: Sequence[TaskInput], looks: Mapping[UUID, Look]
) -> tuple[frozenset[UUID], frozenset[UUID]]:
    """Of the inputs that reports and looks speak of: those that their task really had, and those still undecided."""
    spoken = {(report.task_id, report.input_id) for report in told}
    spoken |= {(task_id, input_id) for task_id, look in looks.items() for input_id in look.expired_inputs}
    if not spoken:
        return frozenset(), frozenset()
    found = await inputs.load(connection, sorted({input_id for _, input_id in spoken}))
    real = [row for row in found if (row.task_id, row.input_id) in spoken]
    return (
        frozenset(row.input_id for row in real),
        frozenset(row.input_id for row in real if row.decided_at is None),
    )


async def _surroundings(connection: AsyncConnection, ground: Ground, command: Command | None) -> Surroundings:
    if not isinstance(command, Create):
        return Surroundings({}, {}, {}, ground.draw, strict_send=ground.strict_send)
    owners = await directory.owner(connection, [command.owner_id])
    versions = await directory.template_version(connection, [command.template_version_id])
    taken = frozenset[str]()
    if command.name:
        taken = await tasks.taken(connection, command.owner_id, [command.name.lower()])
    return Surroundings(
        owners={owner.id: owner.organizations for owner in owners.values() if owner.active},
        versions={
            version.id: Version(version.organization_id, version.template_id, version.presets, version.usable)
            for version in versions.values()
        },
        taken={command.owner_id: taken},
        draw=ground.draw,
    )
