"""The expected final task: the pure fold of all its reports, in the order of (build_number, seq)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain import builds, fold
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import Report
from taskherd.domain.task import TaskState
from taskherd.domain.view import derive_view
from taskherd.messages import document
from tests.harness.histories import NOON
from tests.harness.tasks import make_task

if TYPE_CHECKING:
    from tests.chaos.rows import TaskRow

FACETS = tuple(each.name for each in fields(TaskState) if str(each.type).startswith("Stamped["))


@dataclass(frozen=True, slots=True)
class Expected:
    """The task state that the fold returns, and the bodies of the reports that it rejects."""

    state: TaskState
    conflicts: frozenset[bytes]

    def document(self, row: TaskRow) -> dict[str, Any]:
        """Return the stored part of the document of a task with this state and the names and ids of its row."""
        task = make_task(
            row.id,
            owner_id=row.owner_id,
            organization_id=row.organization_id,
            template_id=row.template_id,
            template_version_id=row.template_version_id,
            name=row.name,
            display_name=row.display_name,
            created_at=row.created_at,
            updated_at=row.created_at,
            version=row.version,
            state=self.state,
        )
        return document.core_document(derive_view(self.state, row.name), task)


def expected(task_id: UUID, reports: Sequence[Report]) -> Expected:
    """Fold all reports, the greatest last."""
    state = builds.initial_state(task_id, NOON)
    conflicts: set[bytes] = set()
    for report in sorted(reports, key=lambda report: (report.sort_key, canonical_json(report))):
        folded = fold.fold(state, report, NOON)
        state = folded.state
        if folded.outcome is ReportOutcome.CONFLICT:
            conflicts.add(canonical_json(report).encode())
    return Expected(state, frozenset(conflicts))


def facets(state: TaskState) -> dict[str, object]:
    """Return the part of a task state that does not depend on when reports were received."""
    stored = {name: getattr(state, name) for name in FACETS}
    reports: dict[str, object] = {
        name: canonical_json(facet.report) if facet else None for name, facet in stored.items()
    }
    return reports | {
        "last_heartbeat": sorted(state.last_heartbeat),
        "first_seen": sorted(state.first_seen),
        "silence": state.silence,
        "timed_out": state.timed_out,
        "requested_builds": dict(state.requested_builds),
        "is_pending": state.unanswered_build == state.build_number,
    }


def without_timestamp(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without the times at which its current state and the end of its agent were received."""
    state, ended = document["current_state"], document["agent_exit"]
    return {
        **document,
        "current_state": state and {**state, "timestamp": ""},
        "agent_exit": ended and {**ended, "at": ""},
    }
