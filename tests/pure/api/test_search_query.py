"""The query grammar, as Coder's servers define it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from taskherd.api.http import search_query
from taskherd.api.http.errors import HTTPError

ALLOWED = ("owner", "organization", "status")


def read(query: str) -> dict[str, str]:
    """Return the terms of a task query."""
    return dict(search_query.read(query, bare="owner", allowed=ALLOWED, message="Invalid task search query."))


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("", {}),
        ("   ", {}),
        ("owner:me", {"owner": "me"}),
        ('owner:"me" status:"active"', {"owner": "me", "status": "active"}),
        ("OWNER:Alice STATUS:Active", {"owner": "alice", "status": "active"}),
        ("alice", {"owner": "alice"}),
        ("alice status:active smith", {"owner": "alice smith", "status": "active"}),
        ('"alice smith"', {"owner": "alice smith"}),
        ('owner:"alice smith"', {"owner": "alice smith"}),
        ('owner:"a:b"', {"owner": "a:b"}),
        ("  owner:me   organization:acme ", {"owner": "me", "organization": "acme"}),
        ("x" * 4096, {"owner": "x" * 4096}),
    ],
)
def test_the_terms_of_a_query(query: str, terms: dict[str, str]) -> None:
    """Keys and values are lowercased, quotes group words, and all words without a colon are one owner."""
    assert read(query) == terms


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        (":me", "q", "Query element \":me\" cannot start or end with ':'"),
        ("owner:", "q", "Query element \"owner:\" cannot start or end with ':'"),
        ("owner:a:b", "q", "Query element \"owner:a:b\" can only contain 1 ':'"),
        ("owner:a owner:b", "q", 'Query parameter "owner" provided more than once, found 2 times'),
        ("alice owner:b", "q", 'Query parameter "owner" provided more than once, found 2 times'),
        ("colour:red", "colour", '"colour" is not a valid query param'),
        ("x" * 4097, "q", "Expected at most 4096 characters."),
    ],
)
def test_an_invalid_query_is_rejected(query: str, field: str, detail: str) -> None:
    """An invalid query is a 400 that names the invalid part."""
    with pytest.raises(HTTPError) as error:
        read(query)
    assert error.value.response.status == 400
    body: dict[str, Any] = orjson.loads(error.value.response.body)
    assert body == {"message": "Invalid task search query.", "validations": [{"field": field, "detail": detail}]}
