"""When a batch of reports is limited by its number of tasks."""

from __future__ import annotations

import pytest

from taskherd.worker.task_limit import TaskLimit


def test_at_first_there_is_no_limit() -> None:
    """Nothing is known of the reports that come."""
    assert TaskLimit().limit(10) is None


@pytest.mark.parametrize(("mentions", "limit"), [(100, 10), (129, 10), (130, 10), (131, None), (5_000, None)])
def test_there_is_a_limit_while_deliveries_are_about_different_tasks(mentions: int, limit: int | None) -> None:
    """Up to 1.3 of them are about one task, among those that were taken at once; whatever was known before."""
    for before in (100, 5_000):
        tasks = TaskLimit()
        tasks.note(before, 100, 10)
        tasks.note(mentions, 100, 10)
        assert tasks.limit(10) == limit
        assert tasks.limit(7) == (limit and 7)


def test_few_tasks_say_nothing() -> None:
    """No limit would have changed their batch."""
    tasks = TaskLimit()
    tasks.note(9, 9, 10)
    assert tasks.limit(10) is None
    tasks.note(10, 10, 10)
    tasks.note(900, 9, 10)
    assert tasks.limit(10) == 10
