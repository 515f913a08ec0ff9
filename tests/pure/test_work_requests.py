"""Work requests: to which runner and pool each of them goes."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from taskherd.messages import work
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker.work_requests import targets
from tests.harness.histories import NOON

TIMEOUT = timedelta(seconds=30)
BEFORE = TIMEOUT - timedelta(microseconds=1)
START, STOP, DELETE = "workspace.start", "workspace.stop", "workspace.delete"


def row(kind: str, runner: str | None, sent_before: timedelta | None) -> WorkRequestRow:
    """Return a request, first sent so long before noon."""
    return WorkRequestRow(
        request_id=UUID(int=1),
        task_id=UUID(int=2),
        build_number=1,
        type=kind,
        input_id=None,
        target_runner=runner,
        attempt=1,
        created_at=NOON - timedelta(hours=1),
        next_at=NOON,
        first_sent_at=None if sent_before is None else NOON - sent_before,
    )


@pytest.mark.parametrize(
    ("kind", "runner", "sent_before", "expected"),
    [
        (START, None, None, ["gpu"]),
        (work.AGENT_ANSWER, None, None, []),
        (work.AGENT_ANSWER, None, TIMEOUT, []),
        (START, "r1", None, ["r1"]),
        (START, "r1", BEFORE, ["r1"]),
        (START, "r1", TIMEOUT, ["r1", "gpu"]),
        (DELETE, "r1", BEFORE, ["r1"]),
        (DELETE, "r1", TIMEOUT, ["r1", "gpu"]),
        (STOP, "r1", TIMEOUT, ["r1"]),
        (work.AGENT_ANSWER, "r1", TIMEOUT, ["r1"]),
    ],
)
def test_where_a_request_goes(
    kind: str, runner: str | None, sent_before: timedelta | None, expected: list[str]
) -> None:
    """To the task's runner; a start or delete also to its pool, but only once the runner has had its time to answer."""
    assert targets(row(kind, runner, sent_before), {"pool": "gpu"}, NOON, TIMEOUT) == expected


@pytest.mark.parametrize("run", [{}, {"pool": ""}, {"pool": 7}])
def test_a_template_without_a_pool_has_the_default_one(run: dict[str, object]) -> None:
    """Also if an older release stored something that is no name."""
    assert targets(row(START, None, None), run, NOON, TIMEOUT) == ["default"]
