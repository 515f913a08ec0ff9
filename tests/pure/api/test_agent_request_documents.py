"""How requests of agents are shown, to people and to the agent, and the cursors of their lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.agent_requests import documents, handlers
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.api.tasks import search
from taskherd.store.agent_request_queries import QueuePlace, TaskPlace

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

SINCE = datetime(2026, 11, 27, 10, tzinfo=UTC)
RECEIVED, ANSWERED, DELIVERED = (SINCE + timedelta(minutes=minutes) for minutes in (1, 2, 3))
REQUEST, TASK, BOB, OWNER, ORGANIZATION = (UUID(int=number) for number in range(1, 6))


def row(*, report: dict[str, Any] | None = None, **fields: Any) -> Row:
    """Return the row of an open request of a task."""
    stored = {"kind": "question", "title": "Which one?", "state": "open", **(report or {})}
    defaults = {
        "request_id": REQUEST,
        "report": orjson.dumps(stored).decode(),
        "shown": "open",
        "since": SINCE,
        "received_at": RECEIVED,
        "build_number": 3,
        "answered_at": None,
        "answer_option_id": None,
        "answer_text": None,
        "answered_by": None,
        "answered_by_name": None,
        "delivered_at": None,
        "task_id": TASK,
        "task_name": "fix-it",
        "task_display_name": "Fix it",
        "owner_id": OWNER,
        "username": "alice",
        "organization_id": ORGANIZATION,
        "template_name": "claude",
        "template_display_name": "Claude",
    }
    return cast("Row", {**defaults, **fields})


ANSWER: dict[str, Any] = {
    "answered_at": ANSWERED,
    "answer_option_id": "yes",
    "answer_text": "Do it.",
    "answered_by": BOB,
    "answered_by_name": "bob",
    "shown": "answered",
}


def test_a_request_that_says_little() -> None:
    """What a report lacks is empty, and an open request is neither closed nor answered."""
    assert documents.request_json(row()) == {
        "id": REQUEST,
        "kind": "question",
        "title": "Which one?",
        "detail": "",
        "tool": None,
        "options": [],
        "state": "open",
        "since": "2026-11-27T10:00:00.000000Z",
        "expires_at": None,
        "build_number": 3,
        "pull": False,
        "closed_at": None,
        "answer": None,
    }


def test_a_request_that_says_all() -> None:
    """With its task, as the queue shows it."""
    fields = {
        "detail": "Of both.",
        "tool": "Bash",
        "options": [{"id": "yes"}],
        "expires_at": "2026-11-28T10:00:00.000000Z",
        "pull": True,
    }
    assert documents.with_task(row(report=fields)) == {
        **documents.request_json(row()),
        **fields,
        "task_id": TASK,
        "task_name": "fix-it",
        "task_display_name": "Fix it",
        "owner_id": OWNER,
        "owner_name": "alice",
        "organization_id": ORGANIZATION,
        "template_name": "claude",
        "template_display_name": "Claude",
    }


@pytest.mark.parametrize("reported", ["open", "answered"])
def test_the_answer_of_a_person(reported: str) -> None:
    """It takes precedence over what the agent reports of it, and is delivered at a time of its own."""
    report = {"state": reported, "option_id": "no", "text": "Said by the agent."}
    expected = {
        "option_id": "yes",
        "text": "Do it.",
        "by": "bob",
        "by_id": BOB,
        "at": "2026-11-27T10:02:00.000000Z",
        "delivered_at": None,
    }
    assert documents.request_json(row(report=report, **ANSWER))["answer"] == expected
    delivered = documents.request_json(row(report=report, **{**ANSWER, "delivered_at": DELIVERED}))
    assert delivered["answer"] == {**expected, "delivered_at": "2026-11-27T10:03:00.000000Z"}
    unnamed = documents.request_json(row(report=report, **{**ANSWER, "answered_by_name": None}))
    assert unnamed["answer"]["by"] == str(BOB)


@pytest.mark.parametrize(
    ("fields", "option", "text"),
    [({}, None, None), ({"option_id": "no"}, "no", None), ({"text": "Neither."}, None, "Neither.")],
)
def test_an_answer_that_was_given_elsewhere(fields: dict[str, str], option: str | None, text: str | None) -> None:
    """What is reported without an answer over the API is of nobody, at the time of the report."""
    shown = documents.request_json(row(report={"state": "answered", **fields}, shown="answered"))
    assert shown["closed_at"] == "2026-11-27T10:01:00.000000Z"
    assert shown["answer"] == {
        "option_id": option,
        "text": text,
        "by": None,
        "by_id": None,
        "at": "2026-11-27T10:01:00.000000Z",
        "delivered_at": "2026-11-27T10:01:00.000000Z",
    }


@pytest.mark.parametrize("state", ["withdrawn", "expired"])
def test_a_request_that_was_closed_without_an_answer(state: str) -> None:
    """It says when it was closed."""
    shown = documents.request_json(row(report={"state": state, "option_id": "no"}, shown=state))
    assert (shown["state"], shown["closed_at"], shown["answer"]) == (state, "2026-11-27T10:01:00.000000Z", None)


def test_what_an_agent_sees_of_its_request() -> None:
    """An answer only once the request is answered: by a person, or as the agent itself has reported."""
    common = {"request_id": REQUEST, "kind": "question", "title": "Which one?"}
    nothing = {"option_id": None, "text": None}
    own = {"option_id": "no", "text": "Said by the agent."}
    assert documents.own_request(row(report=own)) == {**common, "state": "open", **nothing}
    person = {"option_id": "yes", "text": "Do it."}
    assert documents.own_request(row(report=own, **ANSWER)) == {**common, "state": "answered", **person}
    assert documents.own_request(row(report=own, **{**ANSWER, "shown": "withdrawn"})) == {
        **common, "state": "withdrawn", **nothing,
    }  # fmt: skip
    assert documents.own_request(row(report=own, shown="answered")) == {**common, "state": "answered", **own}
    assert documents.own_request(row(shown="answered")) == {**common, "state": "answered", **nothing}


@pytest.mark.parametrize(("part", "is_open"), [("o", True), ("c", False)])
def test_a_cursor_of_a_tasks_requests(part: str, *, is_open: bool) -> None:
    """It says in which part its page ended, when, and at which request."""
    text = part + search.cursor(SINCE, REQUEST)
    query = query_parameters.validate(handlers.TaskRequestsQuery, {"after": text})
    assert query.after == TaskPlace(is_open, SINCE, REQUEST)
    assert query_parameters.validate(handlers.TaskRequestsQuery, {"after": ""}).after is None


@pytest.mark.parametrize("text", ["o", "c", "x" + search.cursor(SINCE, REQUEST), search.cursor(SINCE, REQUEST), "oA"])
def test_what_is_no_cursor_of_a_tasks_requests(text: str) -> None:
    """Another part, none, or no place in it."""
    with pytest.raises(HTTPError) as raised:
        query_parameters.validate(handlers.TaskRequestsQuery, {"after": text})
    expected = "Expected the value of `next` in the previous response."
    assert orjson.loads(raised.value.response.body)["validations"] == [{"field": "after", "detail": expected}]


def test_a_cursor_of_the_queue() -> None:
    """It names the last request of the page: since when it is open, its task and itself."""
    after = handlers._after(row())
    assert after == search.cursor(SINCE, TASK) + REQUEST.hex
    query = query_parameters.validate(handlers.QueueQuery, {"after": after})
    assert query.after == QueuePlace(SINCE, TASK, REQUEST)
    assert query_parameters.validate(handlers.QueueQuery, {"after": ""}).after is None


@pytest.mark.parametrize(
    "text",
    [
        REQUEST.hex,
        search.cursor(SINCE, TASK),
        search.cursor(SINCE, TASK) + REQUEST.hex[:-1],
        search.cursor(SINCE, TASK) + REQUEST.hex[:-1] + "g",
        search.cursor(SINCE, TASK) + REQUEST.hex + "0",
        search.cursor(SINCE, TASK) + REQUEST.hex[:-1] + "\n",
    ],
)
def test_what_is_no_cursor_of_the_queue(text: str) -> None:
    """A part of it, or more than that."""
    with pytest.raises(HTTPError) as raised:
        query_parameters.validate(handlers.QueueQuery, {"after": text})
    expected = "Expected the value of `next` in the previous response."
    assert orjson.loads(raised.value.response.body)["validations"] == [{"field": "after", "detail": expected}]


@pytest.mark.parametrize("model", [handlers.QueueQuery, handlers.TaskRequestsQuery])
def test_a_page_has_up_to_100_requests(model: type[handlers.QueueQuery | handlers.TaskRequestsQuery]) -> None:
    """A request asks for 1 to 100, and for 50 if it does not say."""
    assert query_parameters.validate(model, {}).limit == 50
    assert [query_parameters.validate(model, {"limit": text}).limit for text in ("1", "100")] == [1, 100]
    for text in ("0", "101", ""):
        with pytest.raises(HTTPError):
            query_parameters.validate(model, {"limit": text})
