"""How an agent asks people: whatever fails meanwhile, a request for which nobody waits any more is withdrawn."""

from __future__ import annotations

from typing import Any, cast

import pytest

from taskherd.client import asking
from taskherd.client.errors import ApiError, ClientError, Unreachable
from taskherd.client.http import Client

QUESTION = {"kind": "question", "title": "Which one?"}


class FailingApi:
    """The API, which takes requests and fails all the same: at the next calls, in this order; None is no failure."""

    def __init__(self, *failures: Exception | None) -> None:
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
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
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


def refused(status: int) -> ApiError:
    """Return the error of a request that is not repeated."""
    return ApiError.from_response(status, {"message": f"Status {status}."}, None)


@pytest.mark.parametrize(
    ("failures", "states"),
    [
        ([None, refused(404)], ["open", "withdrawn"]),
        ([None, refused(500)], ["open", "withdrawn"]),
        ([None, Unreachable("reset"), refused(403)], ["open", "withdrawn"]),
        ([refused(500)], ["open", "withdrawn"]),
        ([Unreachable("reset"), refused(409)], ["open", "open", "withdrawn"]),
        ([None, refused(500), Unreachable("reset"), refused(500)], ["open", "withdrawn", "withdrawn"]),
        ([refused(409)], ["open"]),
        ([refused(400)], ["open"]),
        ([None, refused(401)], ["open"]),
    ],
)
def test_a_call_that_fails_withdraws_what_may_be_open(
    failures: list[Exception | None], states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what no worker has taken yet; not what was refused, nor what ends with the agent's token."""
    monkeypatch.setattr(asking, "PAUSE", 0.0)
    monkeypatch.setattr(asking, "ACCEPTED_WITHIN", -1.0)
    api = FailingApi(*failures)
    with pytest.raises(ClientError):
        asking.ask(cast("Client", api), QUESTION, lambda: False)
    assert (api.states, api.is_over) == (states, True)
