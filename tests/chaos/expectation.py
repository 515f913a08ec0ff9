"""What a task must be in the end: the pure fold of all that was said of it, in the order of (build_number, seq)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain import builds, fold
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import Report, canonical_json
from taskherd.domain.task import Task, TaskState
from taskherd.domain.view import derive_view
from taskherd.messages import document
from tests.harness.histories import NOON

if TYPE_CHECKING:
    from tests.chaos.rows import TaskRow

FACETS = ("build", "workspace", "runner", "agent", "app", "lifecycle", "app_health", "app_status", "connection")


@dataclass(frozen=True, slots=True)
class Expected:
    """The memory that the fold comes to, and the bodies of what it refuses."""

    memory: TaskState
    conflicts: frozenset[bytes]

    def document(self, row: TaskRow) -> dict[str, Any]:
        """The own part of the document of a task with this memory, and with the names and ids of its row."""
        task = Task(
            id=row.id,
            owner_id=row.owner_id,
            organization_id=row.organization_id,
            template_id=row.template_id,
            template_version_id=row.template_version_id,
            preset_id=None,
            name=row.name,
            display_name=row.display_name,
            prompt="",
            prompt_version=1,
            created_at=row.created_at,
            updated_at=row.created_at,
            version=row.version,
            deleted_at=None,
            state=self.memory,
        )
        return document.core_document(derive_view(self.memory, row.name), task)


def expected(task_id: UUID, reports: Sequence[Report]) -> Expected:
    """Fold all of it, greatest last."""
    state = builds.initial_state(task_id, NOON)
    conflicts: set[bytes] = set()
    for report in sorted(reports, key=lambda one: (one.key, canonical_json(one))):
        folded = fold.fold(state, report, NOON)
        state = folded.state
        if folded.outcome is ReportOutcome.CONFLICT:
            conflicts.add(canonical_json(report).encode())
    return Expected(state, frozenset(conflicts))


def facets(state: TaskState) -> dict[str, object]:
    """What of a memory does not depend on when anything was taken."""
    held = {name: getattr(state, name) for name in FACETS}
    kept: dict[str, object] = {name: canonical_json(facet.report) if facet else None for name, facet in held.items()}
    return kept | {
        "heard": sorted(state.last_heartbeat),
        "appeared": sorted(state.first_seen),
        "silence": state.silence,
        "given_up": state.timed_out,
        "asked": dict(state.requested_builds),
        "unanswered": state.pending_build == state.number,
    }


def seen_by_readers(own: dict[str, Any]) -> dict[str, Any]:
    """A document without the instant at which its state was taken."""
    state = own["current_state"]
    return {**own, "current_state": state and {**state, "timestamp": ""}}
