"""What a batch says of builds, kept by the ids that clients know: written only where something of that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.view import agent_of, is_current
from taskherd.messages.work import build_id
from taskherd.store import builds
from taskherd.store.builds import BuildRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import TaskState
    from taskherd.domain.task_update import TaskUpdate
    from taskherd.store import AsyncConnection


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
    stamped = before.state if before else None
    known = None
    for state in (*update.superseded, task.state):
        if stamped is None or _moved(stamped, state):
            known = known or (_row(task.id, stamped, now) if stamped else None)
            row = _row(task.id, state, now)
            if row != known:
                yield row


def _moved(before: TaskState, after: TaskState) -> bool:
    """Whether a build's row may differ: told by identity, since facets that did not change are the same objects."""
    if (
        before.build is not after.build
        or before.timed_out is not after.timed_out
        or before.workspace is not after.workspace
        or before.agent is not after.agent
    ):
        return True
    if is_current(after, after.agent):
        return False
    return before.lifecycle is not after.lifecycle or _said_by(before) != _said_by(after)


def _said_by(state: TaskState) -> UUID | None:
    return state.connection.report.agent_id if state.connection else None


def _row(task_id: UUID, state: TaskState, now: datetime) -> BuildRow:
    agent = agent_of(state)
    place = state.workspace.report.workspace if state.workspace else None
    return BuildRow(
        build_id=build_id(task_id, state.number),
        task_id=task_id,
        number=state.number,
        transition=state.build.report.transition.value,
        job_status=state.job.value,
        workspace_id=place.id if place else None,
        agent_id=agent.id if agent else None,
        error=state.error,
        at=now,
    )
