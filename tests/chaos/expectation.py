"""What a task must be in the end: the pure fold of all that was said of it, in the order of (build_number, seq)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain import builds, fold
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import Report, canonical
from taskherd.domain.task import Memory, Task
from taskherd.domain.view import view
from taskherd.messages import document
from tests.harness.histories import NOON

if TYPE_CHECKING:
    from tests.chaos.rows import TaskRow

FACETS = ("build", "workspace", "runner", "agent", "app", "lifecycle", "app_health", "app_status", "connection")


@dataclass(frozen=True, slots=True)
class Expected:
    """The memory that the fold comes to, and the bodies of what it refuses."""

    memory: Memory
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
            memory=self.memory,
        )
        return document.own(view(self.memory, row.name), task)


def expected(task_id: UUID, reports: Sequence[Report]) -> Expected:
    """Fold all of it, greatest last."""
    memory = builds.first(task_id, NOON)
    conflicts: set[bytes] = set()
    for report in sorted(reports, key=lambda one: (one.key, canonical(one))):
        folded = fold.fold(memory, report, NOON)
        memory = folded.memory
        if folded.outcome is ReportOutcome.CONFLICT:
            conflicts.add(canonical(report).encode())
    return Expected(memory, frozenset(conflicts))


def facets(memory: Memory) -> dict[str, object]:
    """What of a memory does not depend on when anything was taken."""
    held = {name: getattr(memory, name) for name in FACETS}
    kept: dict[str, object] = {name: canonical(facet.report) if facet else None for name, facet in held.items()}
    return kept | {
        "heard": sorted(memory.heard),
        "appeared": sorted(memory.appeared),
        "silence": memory.silence,
        "given_up": memory.given_up,
        "asked": dict(memory.asked),
        "unanswered": memory.unanswered == memory.number,
    }


def seen_by_readers(own: dict[str, Any]) -> dict[str, Any]:
    """A document without the instant at which its state was taken."""
    state = own["current_state"]
    return {**own, "current_state": state and {**state, "timestamp": ""}}
