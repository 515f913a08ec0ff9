"""How an agent asks people: whatever fails meanwhile, a request for which nobody waits any more is withdrawn."""

from __future__ import annotations

from typing import Any, cast

import pytest

from taskherd.client import asking
from taskherd.client.errors import ApiError, Unreachable
from taskherd.client.http import Client

QUESTION = {"kind": "question", "title": "Which one?"}


class FailingApi:
    """The API, which takes requests and fails all the same: at the next calls, in this order."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.states: list[str] = []
        """The states in which the request was reported."""

    @property
    def is_over(self) -> bool:
        """Whether all failures have happened."""
        return not self._failures

    def request(self, method: str, *_: str, body: Any = None, **__: Any) -> Any:
        """Take a report of the request, or fail."""
        if method == "POST":
            self.states.append(body.get("state", "open"))
        if self._failures:
            raise self._failures.pop(0)
        return None


def limited() -> ApiError:
    """Return the error of who sends too much."""
    return ApiError.from_response(429, {"message": "Too many requests."}, "0")


@pytest.mark.parametrize(
    ("failures", "states"),
    [
        ([Unreachable("timed out")], ["open", "withdrawn"]),
        ([limited()], ["open", "withdrawn"]),
        ([limited(), Unreachable("reset")], ["open", "open", "withdrawn"]),
    ],
)
def test_a_call_that_is_cancelled_in_an_outage_withdraws(
    failures: list[Exception], states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed may have been taken all the same, so nobody must be left to answer it."""
    monkeypatch.setattr(asking, "PAUSE", 0.0)
    api = FailingApi(*failures)
    assert asking.ask(cast("Client", api), QUESTION, lambda: api.is_over)["state"] == "withdrawn"
    assert api.states == states
