"""What ends a turn of a background loop, and what the loop makes of it."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from taskherd.broker.supervision import survive
from taskherd.errors import Misconfigured, Unavailable


def fail(error: BaseException) -> None:
    """Raise the error."""
    raise error


@pytest.mark.parametrize("error", [Unavailable("a node hangs"), Misconfigured("queue", "has other arguments")])
def test_an_expected_error_is_told(error: Exception) -> None:
    """With its reason, and not logged as a surprise."""
    told: list[str] = []
    with capture_logs() as logged, survive("consumer of reports", told.append):
        fail(error)
    assert (told, logged) == ([str(error)], [])


def test_an_unexpected_error_is_logged() -> None:
    """With its traceback and the name of what has failed."""
    told: list[str] = []
    with capture_logs() as logged, survive("consumer of reports", told.append):
        fail(RuntimeError("unexpected"))
    assert told == []
    assert [(each["log_level"], each["failed"], each["exc_info"]) for each in logged] == [
        ("error", "consumer of reports", True)
    ]


def test_a_cancellation_ends_the_loop() -> None:
    """Otherwise the process would not stop."""
    with pytest.raises(asyncio.CancelledError), survive("consumer of reports", lambda _: None):
        fail(asyncio.CancelledError())
