"""What a request for an action must have, what recognizes it when it is repeated, and how actions are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.actions import handlers
from taskherd.api.actions.schemas import MAX_TASKS, CreateAction
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

ONE, TWO = UUID(int=1), UUID(int=2)
MADE = datetime(2026, 11, 27, 10, tzinfo=UTC)
STARTED, CANCELED, FINISHED = (MADE + timedelta(seconds=seconds) for seconds in (1, 2, 3))


def action(**fields: Any) -> Row:
    """Return the row of an action."""
    defaults = {
        "id": ONE,
        "action": "pause",
        "query": "owner:me",
        "total": 7,
        "succeeded": 0,
        "refused": 0,
        "unconfirmed": 0,
        "failure": None,
        "created_at": MADE,
        "started_at": None,
        "canceled_at": None,
        "finished_at": None,
        "digest": b"one",
    }
    return cast("Row", {**defaults, **fields})


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "pending"),
        ({"started_at": STARTED}, "running"),
        ({"canceled_at": CANCELED}, "canceling"),
        ({"started_at": STARTED, "canceled_at": CANCELED}, "canceling"),
        ({"succeeded": 5, "refused": 2, "finished_at": FINISHED}, "completed"),
        ({"succeeded": 5, "refused": 2, "finished_at": FINISHED, "canceled_at": CANCELED}, "completed"),
        ({"succeeded": 5, "refused": 1, "finished_at": FINISHED, "canceled_at": CANCELED}, "canceled"),
        ({"succeeded": 5, "refused": 1, "finished_at": FINISHED, "failure": "Too old."}, "failed"),
        ({"total": 0, "finished_at": FINISHED}, "completed"),
    ],
)
def test_the_state_of_an_action(fields: dict[str, Any], state: str) -> None:
    """One that has ended without a result for each task has failed or was canceled."""
    assert handlers.action_json(action(**fields))["state"] == state


def test_an_action_is_shown_with_its_progress() -> None:
    """What is neither done, refused nor unconfirmed is pending; times that have not come are null."""
    counts = {"succeeded": 3, "refused": 2, "unconfirmed": 1}
    fields = {**counts, "started_at": STARTED, "finished_at": FINISHED, "failure": "Too old."}
    assert handlers.action_json(action(**fields)) == {
        "id": ONE,
        "action": "pause",
        "q": "owner:me",
        "state": "failed",
        "total": 7,
        "succeeded": 3,
        "refused": 2,
        "unconfirmed": 1,
        "pending": 1,
        "failure": "Too old.",
        "created_at": "2026-11-27T10:00:00.000000Z",
        "started_at": "2026-11-27T10:00:01.000000Z",
        "finished_at": "2026-11-27T10:00:03.000000Z",
    }
    shown = handlers.action_json(action())
    assert (shown["pending"], shown["started_at"], shown["finished_at"], shown["failure"]) == (7, None, None, None)


@pytest.mark.parametrize(
    ("message", "detail", "error"),
    [
        (None, None, None),
        (None, "unused", None),
        ("Refused.", None, {"message": "Refused."}),
        ("Refused.", "", {"message": "Refused."}),
        ("Refused.", "Pause it.", {"message": "Refused.", "detail": "Pause it."}),
    ],
)
def test_a_result_says_what_was_refused_and_why(
    message: str | None, detail: str | None, error: dict[str, str] | None
) -> None:
    """Without a message there is no error; one that is not decided yet has neither status nor time."""
    fields = {"ordinal": 4, "task_id": TWO, "username": "bob", "name": "fix-it", "message": message, "detail": detail}
    shown = {"position": 4, "task_id": TWO, "owner_name": "bob", "name": "fix-it"}
    expected_error = {} if error is None else {"error": error}
    decided = {**fields, "status": 409, "decided_at": MADE}
    assert handlers._result_json(cast("Row", decided)) == {
        **shown, "status": 409, "decided_at": "2026-11-27T10:00:00.000000Z", **expected_error,
    }  # fmt: skip
    pending = {**fields, "status": None, "decided_at": None}
    assert handlers._result_json(cast("Row", pending)) == {
        **shown, "status": None, "decided_at": None, **expected_error,
    }  # fmt: skip


def body(**fields: Any) -> CreateAction:
    """Return a body."""
    return CreateAction.model_validate({"action": "pause", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"q": "owner:me"},
        {"q": "owner:me", "ids": []},
        {"q": "owner:me", "ids": [ONE]},
        {"ids": [ONE]},
        {"action": "send", "ids": [ONE], "input": "Go on."},
    ],
)
def test_an_action_selects_tasks(fields: dict[str, Any]) -> None:
    """With a search, an empty list of ids selects no task; without one it is refused."""
    handlers._check(body(**fields))
    with pytest.raises(HTTPError):
        handlers._check(body(**{**fields, "q": " "}))


@pytest.mark.parametrize(
    ("fields", "field", "detail"),
    [
        ({}, "q", "Expected q or ids."),
        ({"ids": []}, "ids", "Expected at least one ID."),
        ({"q": ""}, "q", "Expected at least one search term, such as owner:me for all of your tasks."),
        ({"q": " ", "ids": [ONE]}, "q", "Expected at least one search term, such as owner:me for all of your tasks."),
        ({"action": "send", "ids": [ONE]}, "input", "Expected an input for the action send."),
        ({"ids": [ONE], "input": "Go on."}, "input", "Only the action send has one."),
        ({"ids": [ONE], "input": ""}, "input", "Only the action send has one."),
    ],
)
def test_what_an_action_lacks_is_named(fields: dict[str, Any], field: str, detail: str) -> None:
    """The field, and what is expected of it."""
    with pytest.raises(HTTPError) as raised:
        handlers._check(body(**fields))
    response = raised.value.response
    assert response.status == 400
    assert orjson.loads(response.body)["validations"] == [{"field": field, "detail": detail}]


@pytest.mark.parametrize("text", ["", "\0", "\x1b"])
def test_an_input_that_is_empty_without_what_no_agent_reads_is_refused(text: str) -> None:
    """It is refused as a send of its own is."""
    with pytest.raises(HTTPError) as raised:
        handlers._check(body(action="send", ids=[ONE], input=text))
    assert raised.value.response.status == 400
    assert "validations" not in orjson.loads(raised.value.response.body)


def test_a_repeated_request_is_recognized_by_what_it_asks_for() -> None:
    """Not by whether it was a dry run before, nor by the ids that a search has found."""
    digest = handlers._digest(body(q="owner:me"))
    sames: list[dict[str, Any]] = [{"ids": [ONE]}, {"ids": []}, {"dry_run": True}]
    for same in sames:
        assert handlers._digest(body(q="owner:me", **same)) == digest
    others = [
        body(q="owner:bob"),
        body(action="resume", q="owner:me"),
        body(action="send", q="owner:me", input="Go on."),
        body(action="send", q="owner:me", input="Stop."),
        body(ids=[ONE]),
        body(ids=[TWO]),
        body(ids=[ONE, TWO]),
    ]
    digests = {handlers._digest(each) for each in others}
    assert len(digests) == len(others)
    assert digest not in digests


def test_a_key_is_for_one_request() -> None:
    """The same request gets what the first one has made, and another one a 409."""
    response = handlers._repeated(action(), b"one")
    assert (response.status, orjson.loads(response.body)["id"]) == (200, str(ONE))
    with pytest.raises(HTTPError) as raised:
        handlers._repeated(action(), b"two")
    message = orjson.loads(raised.value.response.body)["message"]
    assert (raised.value.response.status, message) == (409, "Idempotency-Key was used for another request.")


@pytest.mark.parametrize(
    ("query", "limit", "after", "refused"),
    [
        ({}, 500, None, False),
        ({"limit": "1"}, 1, None, False),
        ({"limit": "500", "after": "0", "refused": "true"}, 500, 0, True),
        ({"after": str(MAX_TASKS), "refused": "false"}, 500, MAX_TASKS, False),
    ],
)
def test_results_have_pages(query: dict[str, str], limit: int, after: int | None, *, refused: bool) -> None:
    """All results by default, those after a position, or only what was refused."""
    found = query_parameters.validate(handlers.ResultQuery, query)
    assert (found.limit, found.after, found.refused) == (limit, after, refused)


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "501"}, {"after": "-1"}, {"after": str(MAX_TASKS + 1)}, {"refused": "1"}]
)
def test_a_page_of_results_that_cannot_be_is_refused(query: dict[str, str]) -> None:
    """A number outside of the bounds, and what is no flag."""
    with pytest.raises(HTTPError):
        query_parameters.validate(handlers.ResultQuery, query)


@pytest.mark.parametrize(("limit", "accepted"), [("", False), ("0", False), ("1", True), ("500", True), ("501", False)])
def test_a_page_of_actions_has_up_to_500(limit: str, *, accepted: bool) -> None:
    """A request asks for 1 to 500, and for 100 if it does not say."""
    assert query_parameters.validate(handlers.ActionListQuery, {}).limit == 100
    if accepted:
        assert query_parameters.validate(handlers.ActionListQuery, {"limit": limit}).limit == int(limit)
    else:
        with pytest.raises(HTTPError):
            query_parameters.validate(handlers.ActionListQuery, {"limit": limit})
