"""Whether a task runs as it did before, which most reports do not change."""

from __future__ import annotations

from typing import Any, cast

import pytest

from taskherd.domain import fold
from taskherd.domain.reports import AgentState
from taskherd.domain.value import replace
from taskherd.domain.view import is_running, runs_alike
from tests.harness.histories import NOON, TASK, corpus
from tests.harness.tasks import make_task
from tests.pure.domain.test_fold import status

DEPENDS_ON = (
    "build", "last_heartbeat", "connection", "lifecycle", "agent", "agent_exit", "silence", "timed_out",
)  # fmt: skip


def test_tasks_that_run_alike_both_run_or_both_do_not() -> None:
    """After each report of random histories; most leave it as it was, and are known to."""
    alike = 0
    for reports in corpus(300):
        task = make_task(TASK)
        for report in reports:
            numbered = fold.with_build_number(report, task.state)
            after = replace(task, state=fold.fold(task.state, numbered, NOON).state)
            if runs_alike(task, after):
                alike += 1
                assert is_running(task) == is_running(after), report
            task = after
    assert alike > 1_000


@pytest.mark.parametrize("field", DEPENDS_ON)
def test_each_part_that_it_depends_on_counts(field: str) -> None:
    """Another object is enough: what it says is not compared."""
    task, another = make_task(TASK), {field: cast("Any", object())}
    assert runs_alike(task, make_task(TASK, state=task.state))
    assert not runs_alike(task, replace(task, state=replace(task.state, **another)))


def test_a_deletion_counts_and_a_status_does_not() -> None:
    """A task that is deleted does not run; what its agent says is no matter."""
    task = make_task(TASK)
    said = fold.fold(task.state, fold.with_build_number(status(AgentState.WORKING), task.state), NOON).state
    assert said is not task.state
    assert runs_alike(task, replace(task, state=said))
    assert not runs_alike(task, replace(task, deleted_at=NOON))
