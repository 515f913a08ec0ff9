"""How long a task was in each state, from the changes of its history."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from taskherd.api.tasks.durations import spans_of, state_of
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING
from tests.harness.histories import NOON

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

ACTIVE = {"status": "active", "state": None, "health": None, "exit": None, "requests_open": 0}


def row(minute: int = 0, **fields: Any) -> Row:
    """Return a row of the history, so many minutes after noon."""
    return cast("Row", {**ACTIVE, "occurred_at": NOON + timedelta(minutes=minute), **fields})


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"exit": "lost", "status": "paused"}, "lost"),
        ({"health": LOST_CONNECTION, "state": "working"}, "lost"),
        ({"status": "error"}, "failed"),
        ({"health": NOT_RUNNING, "state": "idle"}, "failed"),
        ({"status": "pending"}, "starting"),
        ({"status": "initializing"}, "starting"),
        ({"status": "paused", "state": "working"}, "paused"),
        ({"status": "unknown"}, "unknown"),
        ({"state": "idle", "requests_open": 1}, "waiting"),
        ({"status": "paused", "requests_open": 1}, "paused"),
        ({"state": "idle"}, "idle"),
        ({"state": "complete", "exit": "exited"}, "complete"),
        ({}, "working"),
    ],
)
def test_what_a_task_is_doing_in_one_word(fields: dict[str, Any], state: str) -> None:
    """What ended its agent comes first, then its build, then what it asks, then what it says."""
    assert state_of(row(**fields)) == state


def test_changes_that_leave_the_state_as_it_is_are_one_span() -> None:
    """Spans follow each other; the last one lasts until now, and no clock that went back makes one negative."""
    rows = [
        row(0, status="pending"),
        row(1, status="initializing"),
        row(2, state="working"),
        row(5, state="idle"),
        row(4, state="working"),
    ]
    minutes = [
        (state, (since - NOON) / timedelta(minutes=1), (until - NOON) / timedelta(minutes=1))
        for state, since, until in spans_of(rows, NOON + timedelta(minutes=9))
    ]
    assert minutes == [("starting", 0, 2), ("working", 2, 5), ("idle", 5, 5), ("working", 4, 9)]
