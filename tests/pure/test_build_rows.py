"""The rows of the builds that a batch changed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import JobStatus, Lifecycle, Transition, Workspace
from taskherd.domain.task import TimedOut
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.value import replace
from taskherd.messages.work import build_id
from taskherd.store.builds import BuildRow
from taskherd.worker.build_rows import changed_builds
from tests.harness.histories import AGENTS, NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, status

FIRST, SECOND, _ = AGENTS
WORKSPACE = Workspace(UUID(int=0xE1), "a-workspace")
LATER = NOON + timedelta(minutes=1)


def state(*reports: Any, **fields: Any) -> Any:
    """Return the state of a task after these reports, with these fields."""
    return replace(folded(unchanged_core(), reports), **fields)


def rows(before: Any, after: Any, *superseded: Any) -> list[BuildRow]:
    """Return the rows of the builds that changed between two states of a task, with the states in between."""
    update = TaskUpdate(
        None if before is None else make_task(TASK, state=before),
        None if after is None else make_task(TASK, state=after),
        superseded=list(superseded),
    )
    return changed_builds({TASK: update}, LATER)


RUNNING = state(build())
NAMED = state(build(workspace=WORKSPACE, agent_id=FIRST))


def test_the_first_row_of_a_build() -> None:
    """It has what is known of the build, and when it was written."""
    expected = BuildRow(
        build_id=build_id(TASK, 1), task_id=TASK, number=1, transition="start", job_status="running",
        workspace_id=WORKSPACE.id, agent_id=FIRST, error="", at=LATER,
    )  # fmt: skip
    (row,) = rows(None, NAMED)
    assert row == replace_error(expected, row)
    (bare,) = rows(None, RUNNING)
    assert (bare.workspace_id, bare.agent_id) == (None, None)


def replace_error(expected: BuildRow, row: BuildRow) -> BuildRow:
    """Return the expected row with the error of a build without one, whatever stands for that."""
    assert not row.error
    return BuildRow(**{**{name: getattr(expected, name) for name in expected.__slots__}, "error": row.error})


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (RUNNING, state(build(), status()), False),
        (RUNNING, state(build(seq=1)), False),
        (RUNNING, state(build(seq=1, job=JobStatus.SUCCEEDED)), True),
        (RUNNING, state(build(seq=1, job=JobStatus.FAILED, error="No space left")), True),
        (RUNNING, replace(RUNNING, timed_out=TimedOut(1, 0, "Nobody came.")), True),
        (RUNNING, replace(RUNNING, workspace=NAMED.workspace), True),
        (RUNNING, replace(RUNNING, agent=NAMED.agent), True),
        (RUNNING, state(build(), heartbeat(agent_id=SECOND)), True),
        (RUNNING, state(build(), lifecycle(agent_id=SECOND)), True),
        (RUNNING, state(build(), lifecycle(Lifecycle.STARTING)), False),
        (state(build(), lifecycle(agent_id=FIRST)), state(build(), lifecycle(agent_id=SECOND, seq=1)), True),
        (state(build(), heartbeat(agent_id=FIRST)), state(build(), heartbeat(agent_id=SECOND, seq=1)), True),
        (state(build(), heartbeat(agent_id=FIRST)), state(build(), heartbeat(agent_id=FIRST, seq=1)), False),
        (NAMED, replace(NAMED, connection=state(heartbeat(agent_id=SECOND)).connection), False),
        (RUNNING, RUNNING, False),
        (RUNNING, None, False),
        (None, None, False),
    ],
)
def test_a_build_is_written_when_its_row_changes(before: Any, after: Any, *, changes: bool) -> None:
    """And not by every report about it; the agent's id is that of the build's reports if they name one."""
    assert len(rows(before, after)) == int(changes)


def test_builds_that_followed_each_other_in_a_batch_are_all_written() -> None:
    """Each once, as it was when the next one began, but for one that did not change."""
    failed = state(build(seq=1, job=JobStatus.FAILED, error="No space left"))
    stopped = state(build(2, transition=Transition.STOP, job=JobStatus.SUCCEEDED))
    restarted = state(build(3))
    found = rows(RUNNING, restarted, failed, stopped)
    assert [(row.number, row.transition, row.job_status) for row in found] == [
        (1, "start", "failed"), (2, "stop", "succeeded"), (3, "start", "running")
    ]  # fmt: skip
    assert [row.number for row in rows(RUNNING, stopped, state(build(seq=5)))] == [2]
    assert [row.build_id for row in found] == [build_id(TASK, number) for number in (1, 2, 3)]
