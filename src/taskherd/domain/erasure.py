"""Erasure of a deleted task: what its tombstone keeps to count late reports and to complete the delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.task import Stamped, Task, TaskState
from taskherd.domain.value import replace

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.domain.reports import WorkspaceBuild


def erase(task: Task, now: datetime) -> Task:
    """Return the tombstone of a deleted task: ids and builds, but no prompt, names, messages or errors."""
    return replace(task, name=str(task.id), display_name="", prompt="", state=scrub(task.state), erased_at=now)


def scrub(state: TaskState) -> TaskState:
    """Return what the delete and late reports of builds and usage need, without texts of people, agents or runners."""
    return TaskState(
        build=_scrub_report(state.build),
        runner=None if state.runner is None else _scrub_report(state.runner),
        requested_builds=state.requested_builds,
        unanswered_build=state.unanswered_build,
        timed_out=state.timed_out,
        deletion=state.deletion,
        usage=state.usage,
    )


def _scrub_report(stamped: Stamped[WorkspaceBuild]) -> Stamped[WorkspaceBuild]:
    report = replace(stamped.report, workspace=None, agent_id=None, app=None, error=None, reason=None)
    return replace(stamped, report=report)
