"""When a task's timers are checked next, beside what is stored."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from taskherd.worker.save import _not_later
from tests.harness.histories import NOON

BEFORE, SOON, LATER = (NOON + timedelta(minutes=minutes) for minutes in (-1, 1, 2))


@pytest.mark.parametrize(
    ("due", "stored", "expected"),
    [
        (LATER, None, LATER),
        (None, None, None),
        (LATER, SOON, SOON),
        (SOON, SOON, SOON),
        (SOON, LATER, SOON),
        (None, SOON, SOON),
        (LATER, NOON, LATER),
        (LATER, BEFORE, LATER),
        (None, BEFORE, None),
    ],
)
def test_an_earlier_check_that_is_still_to_come_stays(
    due: datetime | None, stored: datetime | None, expected: datetime | None
) -> None:
    """So that the reports of a working agent need not write another time; one that has passed is replaced."""
    assert _not_later(due, stored, NOON) == expected
