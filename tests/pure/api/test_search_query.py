"""The grammar of `q`, as Coder's servers read it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from taskherd.api.http import search_query
from taskherd.api.http.responses import HTTPError

KNOWN = ("owner", "organization", "status")


def read(query: str) -> dict[str, str]:
    """The terms of a query for tasks."""
    return dict(search_query.read(query, bare="owner", known=KNOWN, message="Invalid task search query."))


@pytest.mark.parametrize(
    ("query", "said"),
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
    ],
)
def test_what_a_query_says(query: str, said: dict[str, str]) -> None:
    """Keys and values are lowercased, quotes group, and words without a colon are one owner."""
    assert read(query) == said


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        (":me", "q", "Query element \":me\" cannot start or end with ':'"),
        ("owner:", "q", "Query element \"owner:\" cannot start or end with ':'"),
        ("owner:a:b", "q", "Query element \"owner:a:b\" can only contain 1 ':'"),
        ("owner:a owner:b", "q", 'Query parameter "owner" provided more than once, found 2 times'),
        ("alice owner:b", "q", 'Query parameter "owner" provided more than once, found 2 times'),
        ("colour:red", "colour", '"colour" is not a valid query param'),
        ("x" * 5000, "q", "A query has at most 4096 characters."),
    ],
)
def test_what_a_query_is_refused_for(query: str, field: str, detail: str) -> None:
    """A query that can't be read is a 400 that names the part."""
    with pytest.raises(HTTPError) as refusal:
        read(query)
    assert refusal.value.response.status == 400
    told: dict[str, Any] = orjson.loads(refusal.value.response.body)
    assert told == {"message": "Invalid task search query.", "validations": [{"field": field, "detail": detail}]}
