"""Parts of the API that need no server: tokens, entity tags, ids, rendered documents, empty responses."""

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


def test_a_token_is_random_and_stored_as_a_hash() -> None:
    """A token is an id of 10 characters and a secret of more than 128 bits; the stored form contains no secret."""
    token, stored = user_tokens.generate()
    identifier, _, secret = token.partition("-")
    assert (len(identifier), len(secret) >= 22) == (10, True)
    assert user_tokens.parse(token) == stored
    assert secret.encode() not in stored.secret_hash
    assert secret not in repr(stored)
    assert token != user_tokens.generate()[0]


@pytest.mark.parametrize(
    "text", ["", "-", "abc", "abcdefghij-short", "abcdefghij" + "x" * 32, "é" * 10 + "-" + "a" * 32]
)
def test_a_malformed_token_is_not_parsed(text: str) -> None:
    """A text that does not have the form of a token is never looked up."""
    assert user_tokens.parse(text) is None


@pytest.mark.parametrize("header", ["{}", "W/{}", '"0.0", {}', "*"])
def test_an_unchanged_document_is_a_304(header: str) -> None:
    """If-None-Match is a list of weakly compared tags or a star; a 304 carries the tag and no body."""
    tag = etags.of_document(uuid.UUID(int=7), 1, 2)
    headers = {"if-none-match": header.format(tag)}
    response = etags.unchanged(headers, tag)
    assert response is not None
    assert (response.status, response.body, response.headers) == (304, b"", {"ETag": tag})
    assert etags.unchanged(headers, '"3.4"') is None or header == "*"


def test_documents_that_differ_have_different_tags() -> None:
    """Whether they are of another task, another version, or have other names."""
    one, other = uuid.UUID(int=1), uuid.UUID(int=2)
    made = [(one, 1, 1), (other, 1, 1), (one, 11, 1), (one, 1, 11), (one, 2, 1), (one, 1, 2)]
    assert len({etags.of_document(*each) for each in made}) == len(made)


def test_a_cache_asks_before_it_uses_a_response_again() -> None:
    """And keeps it for one user only, unless the response says otherwise; so also an error, and a 304."""
    for response in (responses.json({}), responses.json({}, 404), responses.empty(304, {"ETag": '"1"'})):
        assert (b"cache-control", b"private, no-cache") in response.raw_headers()
    assets = responses.BufferedResponse(200, b"", {"Cache-Control": "immutable"})
    assert [value for name, value in assets.raw_headers() if name == b"cache-control"] == [b"immutable"]


def test_ids_have_hyphens_or_not() -> None:
    """An id is accepted in the two forms that Go's clients send; any other text is a name."""
    identifier = uuid.uuid4()
    assert parse_uuid(str(identifier).upper()) == parse_uuid(identifier.hex) == identifier
    assert parse_uuid(f"{{{identifier}}}") is parse_uuid("me") is None
    assert is_searchable("alice")
    assert not any(is_searchable(text) for text in ("", "a\0b", "x" * 300, "a\nb"))


def test_a_document_rendered_from_text_equals_one_rendered_from_values() -> None:
    """Both ways to render a document give the same result, whatever the stored text contains."""
    own = {"id": "x", "name": "n", "current_state": None, "status": "active", "message": 'é"\\\n}'}
    for text in (json.dumps(own), orjson.dumps(own).decode(), json.dumps(own, indent=2) + "\n"):
        rendered = document.render_json(text, 'Fix "it"\n', NAMES, NOW)
        assert orjson.loads(rendered) == document.render(own, 'Fix "it"\n', NAMES, NOW)


def test_nullable_ids_as_objects() -> None:
    """Nullable ids are rendered as objects if that is configured."""
    identifier = str(uuid.uuid4())
    rendered = document.with_nullable_ids(
        {"workspace_id": identifier, "workspace_agent_id": None, "workspace_app_id": None}
    )
    nil = {"uuid": str(uuid.UUID(int=0)), "valid": False}
    assert rendered == {
        "workspace_id": {"uuid": identifier, "valid": True},
        "workspace_agent_id": nil,
        "workspace_app_id": nil,
    }


def test_an_empty_response_has_a_length_if_its_status_allows_one() -> None:
    """An empty 202 has ``Content-Length: 0``, a 204 and a 304 have no length, and none has a content type."""
    cached = (b"cache-control", b"private, no-cache")
    assert responses.empty(202).raw_headers() == [cached, (b"content-length", b"0")]
    assert responses.empty(204).raw_headers() == [cached]
    assert responses.empty(304).raw_headers() == [cached]


def test_a_document_is_a_success_unless_said_otherwise() -> None:
    """With its headers, if it has any."""
    plain = responses.json({"a": 1})
    assert (plain.status, plain.body, dict(plain.headers)) == (200, b'{"a":1}', {})
    created = responses.json([], 201, {"Location": "/x"})
    assert (created.status, created.body, dict(created.headers)) == (201, b"[]", {"Location": "/x"})
