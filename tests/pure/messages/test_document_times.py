"""The times in a task document, which are formatted by another function than all others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from taskherd.domain.reports import format_rfc3339
from taskherd.domain.view import derive_view
from taskherd.messages.document import core_document
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize(
    "instant",
    [EARLIEST, LATEST, NOON, *(NOON + timedelta(microseconds=each) for each in (1, 10, 100_000, 999_999))],
    ids=str,
)
def test_times_have_the_same_form_as_everywhere(instant: datetime) -> None:
    """Six digits of a second and ``Z``, also where they are zeros."""
    task = make_task(TASK, created_at=instant)
    core = core_document(derive_view(task.state, task.name), task)
    assert core["created_at"] == format_rfc3339(instant)
    assert len(core["created_at"]) == len("2026-03-01T12:00:00.000000Z")
