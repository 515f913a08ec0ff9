"""The rows by which clients look up builds: only those that a batch has changed are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.view import agent_of, is_current
from taskherd.messages.work import build_id
from taskherd.store.builds import BuildRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import TaskState
    from taskherd.domain.updates import TaskUpdate


def changed_builds(updates: Mapping[UUID, TaskUpdate], now: datetime) -> list[BuildRow]:
    """Return the builds that these updates changed."""
    return [row for update in updates.values() for row in _changed_rows(update, now)]


def _changed_rows(update: TaskUpdate, now: datetime) -> Iterator[BuildRow]:
    """Yield the row of every build that was the latest one during the batch, except an unchanged one."""
    task, before = update.task, update.before
    if task is None or task is before:
        return
    old_state = before.state if before else None
    old_row = None
    for state in (*update.superseded, task.state):
        if old_state is None or _may_differ(old_state, state):
            old_row = old_row or (_row(task.id, old_state, now) if old_state else None)
            row = _row(task.id, state, now)
            if row != old_row:
                yield row


def _may_differ(before: TaskState, after: TaskState) -> bool:
    """Return whether a build's row may differ. Facets that did not change are the same objects."""
    if (
        before.build is not after.build
        or before.timed_out is not after.timed_out
        or before.workspace is not after.workspace
        or before.agent is not after.agent
    ):
        return True
    if is_current(after, after.agent):
        return False
    return before.lifecycle is not after.lifecycle or _connected_agent(before) != _connected_agent(after)


def _connected_agent(state: TaskState) -> UUID | None:
    return state.connection.report.agent_id if state.connection else None


def _row(task_id: UUID, state: TaskState, now: datetime) -> BuildRow:
    agent = agent_of(state)
    workspace = state.workspace.report.workspace if state.workspace else None
    return BuildRow(
        build_id=build_id(task_id, state.build_number),
        task_id=task_id,
        number=state.build_number,
        transition=state.build.report.transition.value,
        job_status=state.job_status.value,
        workspace_id=workspace.id if workspace else None,
        agent_id=agent.id if agent else None,
        error=state.build_error,
        at=now,
    )
