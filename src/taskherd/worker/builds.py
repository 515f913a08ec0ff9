"""What a batch says of builds, kept by the ids that clients know: written only where something of that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.view import agent_of, counts
from taskherd.messages.work import build_id
from taskherd.store import builds
from taskherd.store.builds import BuildRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from taskherd.domain.task import Memory
    from taskherd.domain.task_update import TaskUpdate


async def save(connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], now: datetime) -> None:
    """Write the builds that these updates changed; without any there is no statement."""
    rows = [row for update in updates.values() for row in _rows(update, now)]
    if rows:
        await builds.save(connection, rows)


def _rows(update: TaskUpdate, now: datetime) -> Iterator[BuildRow]:
    """The builds that were the latest one during the batch, as they stand since; one that is as it was is left out."""
    task, before = update.task, update.before
    if task is None or task is before:
        return
    held = before.memory if before else None
    known = None
    for memory in (*update.superseded, task.memory):
        if held is None or _moved(held, memory):
            known = known or (_row(task.id, held, now) if held else None)
            row = _row(task.id, memory, now)
            if row != known:
                yield row


def _moved(before: Memory, after: Memory) -> bool:
    """Whether a build's row may differ: told by identity, since facets that did not change are the same objects."""
    if (
        before.build is not after.build
        or before.given_up is not after.given_up
        or before.workspace is not after.workspace
        or before.agent is not after.agent
    ):
        return True
    if counts(after, after.agent):
        return False
    return before.lifecycle is not after.lifecycle or _said_by(before) != _said_by(after)


def _said_by(memory: Memory) -> UUID | None:
    return memory.connection.report.agent_id if memory.connection else None


def _row(task_id: UUID, memory: Memory, now: datetime) -> BuildRow:
    agent = agent_of(memory)
    place = memory.workspace.report.workspace if memory.workspace else None
    return BuildRow(
        build_id=build_id(task_id, memory.number),
        task_id=task_id,
        number=memory.number,
        transition=memory.build.report.transition.value,
        job_status=memory.job.value,
        workspace_id=place.id if place else None,
        agent_id=agent.id if agent else None,
        error=memory.error,
        at=now,
    )
