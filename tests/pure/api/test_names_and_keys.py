"""What can be an id, a name or an idempotency key, up to the last character."""

from __future__ import annotations

from uuid import UUID

import orjson
import pytest

from taskherd.api.commands import is_key, refusal
from taskherd.api.http.errors import HTTPError, rate_limited
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.tasks.batches import _keys
from taskherd.domain.command_results import COMMAND_ID_REUSED, NOT_FOUND

ID = UUID("0123abcd-4567-89ef-0123-456789abcdef")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("k", True), ("k" * 255, True), ("k" * 256, False), (" ~", True), ("ä", False), ("a\n", False)],
)
def test_what_can_be_an_idempotency_key(text: str, *, expected: bool) -> None:
    """1 to 255 printable ASCII characters, spaces too."""
    assert is_key(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("", False), ("n", True), ("ä" * 256, True), ("n" * 257, False), ("a\0", False)]
)
def test_what_can_be_looked_up(text: str, *, expected: bool) -> None:
    """A name has 1 to 256 printable characters."""
    assert is_searchable(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (str(ID), ID),
        (str(ID).upper(), ID),
        (ID.hex, ID),
        (f"{{{ID}}}", None),
        (f"{ID} ", None),
        (ID.hex[:-1], None),
        ("me", None),
    ],
)
def test_what_is_an_id(text: str, expected: UUID | None) -> None:
    """With hyphens where they belong, or without any."""
    assert parse_uuid(text) == expected


def test_each_task_of_a_batch_has_a_key_of_its_own() -> None:
    """The one that it has, else one by its place; of two with the same key, in whatever way, the second is refused."""
    entries = [{}, "no object", {"idempotency_key": "a"}, {"idempotency_key": "a"}, {"idempotency_key": "batch/5"},
               {}, {"idempotency_key": 7}, {"idempotency_key": ""}, {"idempotency_key": "k" * 256}]  # fmt: skip
    found = [key if isinstance(key, str) else detail_of(key) for key in _keys(entries, "batch")]
    same = "Another task of this batch has the same key."
    invalid = "Expected 1 to 255 printable ASCII characters."
    assert found == ["batch/0", "batch/1", "a", same, "batch/5", same, invalid, invalid, invalid]


def detail_of(error: HTTPError) -> str:
    """Return what an error says of its only field."""
    (validation,) = orjson.loads(error.response.body)["validations"]
    return f"{validation['detail']}"


def test_a_refusal_names_the_key_only_to_who_gave_one() -> None:
    """Without a key the id was made up by the API, and other refusals have nothing to do with it."""
    for refused, has_key, message in (
        (COMMAND_ID_REUSED, True, "Idempotency-Key was used for another request."),
        (COMMAND_ID_REUSED, False, COMMAND_ID_REUSED.message),
        (NOT_FOUND, True, NOT_FOUND.message),
    ):
        response = refusal(refused, has_key=has_key).response
        assert (response.status, orjson.loads(response.body)["message"]) == (refused.status, message)


@pytest.mark.parametrize(("seconds", "wait"), [(0.001, "1"), (1.0, "1"), (1.001, "2"), (59.5, "60")])
def test_a_rate_limit_says_when_to_come_back(seconds: float, wait: str) -> None:
    """In whole seconds, never too early and never at once."""
    response = rate_limited(seconds).response
    assert (response.status, response.headers["Retry-After"]) == (429, wait)
