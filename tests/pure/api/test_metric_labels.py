"""The counters of requests: every answer that is documented is counted from the start, so that alerts see its first."""

from __future__ import annotations

from collections import Counter

import pytest

from taskherd.api.metric_labels import LABEL_VALUES


def counted(path: str) -> dict[str, set[int]]:
    """Return the statuses of each method of a path."""
    methods = {method for route, method, _ in LABEL_VALUES["api_requests"] if route == path}
    return {
        method: {int(status) for route, each, status in LABEL_VALUES["api_requests"] if (route, each) == (path, method)}
        for method in methods
    }


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("none", {"other"}),
        ("/api/v2/tasks", {"GET", "HEAD", "other"}),
        ("/api/experimental/tasks", {"GET", "HEAD", "other"}),
        ("/api/v2/fleet", {"GET", "HEAD", "other"}),
        ("/api/experimental/fleet", set()),
        ("/api/v2/tasks/{user}", {"POST", "other"}),
        ("/api/v2/workspaces/{id}/watch-ws", {"GET"}),
        ("/tasks", set()),
    ],
)
def test_the_methods_of_a_path(path: str, methods: set[str]) -> None:
    """HEAD is answered like GET; a method that a path does not have is counted under one name."""
    assert set(counted(path)) == methods


def test_the_statuses_of_a_path() -> None:
    """Its own, and those that all paths of its kind have in common."""
    found = counted("/api/v2/tasks/{user}/{task}")
    assert found["GET"] == found["HEAD"] >= {200, 304, 401, 404, 429, 500, 503}
    assert found["DELETE"] >= {202, 401, 404, 503}
    assert found["other"] == {405}
    assert counted("none") == {"other": {404}}
    assert counted("/api/v2/workspaces/{id}/watch-ws")["GET"] == {101, 400, 401, 404, 429, 500, 503}


def test_every_answer_is_counted_once() -> None:
    """No path, method and status has two counters."""
    assert set(Counter(LABEL_VALUES["api_requests"]).values()) == {1}


def test_the_labels_of_the_other_counters() -> None:
    """Each has one label."""
    assert LABEL_VALUES["api_reads"] == (("primary",), ("standby",))
    assert LABEL_VALUES["api_action_tasks"] == (("succeeded",), ("refused",), ("unconfirmed",))
    assert ("idle",) in LABEL_VALUES["api_connections_closed"]
    assert ("rate_limited",) in LABEL_VALUES["api_sign_in_failures"]
