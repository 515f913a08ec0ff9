"""Claims: which runner may begin a build, and which runner a task belongs to.

The first claim of a build that is committed wins. Only the latest build can be claimed, and only if it is a start: a
claim for an earlier build comes from a copy of a request that no longer counts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.task import Task, TaskState

BY_CLAIM, BY_REPORT = 1, 0
"""Precedence of a claim over a report that names another runner of the same build."""


@value(frozen=True, slots=True)
class BuildClaim:
    """The claim of a runner to begin a build."""

    task_id: UUID
    build_number: int
    runner: str


class ClaimOutcome(StrEnum):
    """The outcome of a claim."""

    GRANTED = "granted"
    REPEATED = "repeated"
    """Granted to this runner before, and granted again."""
    TAKEN = "taken"
    """Another runner has claimed the build, or reported on it."""
    GONE = "gone"
    """The task does not exist or is deleted, or the build is not its latest one."""


@value(frozen=True, slots=True)
class ClaimDecision:
    """The answer to a claim; ``by`` is the other runner of a build that is taken."""

    outcome: ClaimOutcome
    by: str | None = None

    @property
    def granted(self) -> bool:
        """True if the runner may begin the build."""
        return self.outcome in {ClaimOutcome.GRANTED, ClaimOutcome.REPEATED}


class Ownership(StrEnum):
    """Where a task is that a runner has on its disk."""

    OWNED = "owned"
    """The task exists, and no other runner has its latest known start."""
    GONE = "gone"
    """The task is deleted, or the database has no record of it."""
    ELSEWHERE = "elsewhere"
    """Another runner has taken the task over."""


def decide_claim(task: Task | None, holder: BuildClaim | None, claim: BuildClaim) -> ClaimDecision:
    """Decide a claim; ``holder`` is the task's latest granted claim.

    A build that was begun without a claim belongs to the runner that its reports name.
    """
    if task is None or task.deleted_at is not None:
        return ClaimDecision(ClaimOutcome.GONE)
    if task.state.build_number != claim.build_number or not task.state.is_start:
        return ClaimDecision(ClaimOutcome.GONE)
    number, _, runner = _latest_runner(task.state, holder)
    if number != claim.build_number:
        return ClaimDecision(ClaimOutcome.GRANTED)
    if runner == claim.runner:
        return ClaimDecision(ClaimOutcome.REPEATED)
    return ClaimDecision(ClaimOutcome.TAKEN, runner)


def ownership(
    states: Mapping[UUID, tuple[TaskState, datetime | None]],
    holders: Mapping[UUID, BuildClaim],
    task_id: UUID,
    runner: str,
) -> Ownership | None:
    """Return where a task is, seen from ``runner``, or None if the database has no record of it.

    ``states`` has the state and time of deletion of each task of which there is a record. That of a deleted task is
    never removed, so a task without one was created after the backup from which the database was restored, or in
    another database.
    """
    if task_id not in states:
        return None
    state, deleted_at = states[task_id]
    if deleted_at is not None:
        return Ownership.GONE
    _, _, current = _latest_runner(state, holders.get(task_id))
    return Ownership.OWNED if current in {runner, ""} else Ownership.ELSEWHERE


def _latest_runner(state: TaskState, holder: BuildClaim | None) -> tuple[int, int, str]:
    """Return the highest build number for which a runner is known, and that runner; 0 and "" if none is."""
    known = [(0, BY_REPORT, "")]
    if holder is not None:
        known.append((holder.build_number, BY_CLAIM, holder.runner))
    if state.runner is not None and state.runner.report.runner:
        known.append((state.runner.report.sort_key[0], BY_REPORT, state.runner.report.runner))
    return max(known)
