"""Small parts of the API that need no server: tokens, entity tags, ids, documents spliced from text."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import orjson
import pytest

from taskherd.api.http import etags, responses, user_tokens
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.domain.directory import DirectoryNames
from taskherd.messages import document

NAMES = DirectoryNames("alice", "/a.png", uuid.UUID(int=1), uuid.UUID(int=2), "claude", 'Claude "C"', "/i.svg")
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_a_token_is_random_and_kept_as_a_hash() -> None:
    """A token is an id of 10 characters and a secret of more than 128 bits; what is kept has no part of the secret."""
    token, kept = user_tokens.generate()
    identifier, _, secret = token.partition("-")
    assert (len(identifier), len(secret) >= 22) == (10, True)
    assert user_tokens.parse(token) == kept
    assert secret.encode() not in kept.secret_hash
    assert secret not in repr(kept)
    assert token != user_tokens.generate()[0]


@pytest.mark.parametrize(
    "text", ["", "-", "abc", "abcdefghij-short", "abcdefghij" + "x" * 32, "é" * 10 + "-" + "a" * 32]
)
def test_what_is_no_token(text: str) -> None:
    """What can't be a token is not even looked up."""
    assert user_tokens.parse(text) is None


@pytest.mark.parametrize("same", ['"1.2"', 'W/"1.2"', '"0.0", "1.2"', "*"])
def test_who_has_it_is_not_sent_it_again(same: str) -> None:
    """If-None-Match is compared weakly, as a list or a star; a 304 carries the tag and no body."""
    answer = etags.unchanged({"if-none-match": same}, etags.of_document(1, 2))
    assert answer is not None
    assert (answer.status, answer.body, answer.headers) == (304, b"", {"ETag": '"1.2"'})
    assert etags.unchanged({"if-none-match": same}, '"3.4"') is None or same == "*"


def test_ids_with_hyphens_or_without() -> None:
    """An id is taken in the two forms that Go's clients send; anything else is a name."""
    identifier = uuid.uuid4()
    assert parse_uuid(str(identifier).upper()) == parse_uuid(identifier.hex) == identifier
    assert parse_uuid(f"{{{identifier}}}") is parse_uuid("me") is None
    assert is_searchable("alice")
    assert not any(is_searchable(text) for text in ("", "a\0b", "x" * 300, "a\nb"))


def test_a_spliced_document_is_the_rendered_one() -> None:
    """Whatever is in it, the document made from text is the one made from values."""
    own = {"id": "x", "name": "n", "current_state": None, "status": "active", "message": 'é"\\\n}'}
    for text in (json.dumps(own), orjson.dumps(own).decode(), json.dumps(own, indent=2) + "\n"):
        spliced = document.render_json(text, 'Fix "it"\n', NAMES, NOW)
        assert orjson.loads(spliced) == document.render(own, 'Fix "it"\n', NAMES, NOW)


def test_ids_as_the_published_page_has_them() -> None:
    """Where it is asked for, ids that may be absent are objects."""
    some = str(uuid.uuid4())
    shown = document.with_nullable_ids({"workspace_id": some, "workspace_agent_id": None, "workspace_app_id": None})
    nil = {"uuid": str(uuid.UUID(int=0)), "valid": False}
    assert shown == {
        "workspace_id": {"uuid": some, "valid": True},
        "workspace_agent_id": nil,
        "workspace_app_id": nil,
    }


def test_an_empty_answer_has_a_length_of_0_where_it_may() -> None:
    """Empty 202s carry `Content-Length: 0`, 204s and 304s none at all, and neither has a content type."""
    assert responses.empty(202).raw_headers() == [(b"content-length", b"0")]
    assert responses.empty(204).raw_headers() == []
    assert responses.empty(304).raw_headers() == []
