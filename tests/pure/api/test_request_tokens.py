"""Where the token of a request is: in two headers, or in a cookie of a page of the same host."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from taskherd.api.context import RequestContext
from taskherd.api.http.auth import token_of

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext

HOST = {"host": "tasks.example:8080"}


def token(headers: dict[str, str], method: str = "GET") -> str:
    """Return the token of a request with these headers."""
    return token_of(RequestContext(cast("ApiContext", None), method, {}, {}, headers))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_header_has_the_token_of_every_request(method: str) -> None:
    """Coder's own one counts before that of other clients, whose scheme may be written in any case."""
    for headers, expected in (
        ({}, ""),
        ({"coder-session-token": " a-b "}, "a-b"),
        ({"authorization": "Bearer a-b"}, "a-b"),
        ({"authorization": "bEARER  a-b "}, "a-b"),
        ({"authorization": "Basic a-b"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"coder-session-token": "a-b", "authorization": "Bearer c-d"}, "a-b"),
        ({"coder-session-token": "", "authorization": "Bearer c-d"}, "c-d"),
    ):
        assert token(headers, method) == expected, headers


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        ("coder_session_token=a-b", "a-b"),
        ("theme=dark; coder_session_token=a-b; coder_session_token=c-d", "a-b"),
        (' coder_session_token = "a-b" ', ""),
        ('coder_session_token="a-b"', "a-b"),
        ("coder_session_token= a-b ;x=1", "a-b"),
        ("coder_session_token=a=b", "a=b"),
        ("my_coder_session_token=a-b; coder_session=x", ""),
        ("coder_session_token", ""),
        ("", ""),
    ],
)
def test_a_cookie_has_the_token_of_what_changes_nothing(cookie: str, expected: str) -> None:
    """The first of its name, with or without quotes; a write must name it in a header."""
    assert [token({"cookie": cookie}, method) for method in ("GET", "HEAD", "POST", "DELETE")] == [
        expected, expected, "", "",
    ]  # fmt: skip
    assert token({"cookie": cookie, "coder-session-token": "own"}) == "own"


@pytest.mark.parametrize(
    ("origin", "is_same"),
    [
        (None, True),
        ("https://tasks.example:8080", True),
        ("http://TASKS.example:8080", True),
        ("https://tasks.example", False),
        ("https://evil.example", False),
        ("https://evil.example/tasks.example:8080", False),
        ("null", False),
        ("", False),
    ],
)
def test_the_page_of_another_site_has_no_cookie(origin: str | None, *, is_same: bool) -> None:
    """A browser would send it along; a token in a header is one that the page itself knows."""
    headers = {**HOST, "cookie": "coder_session_token=a-b", **({} if origin is None else {"origin": origin})}
    assert token(headers) == ("a-b" if is_same else "")
    assert token({**headers, "coder-session-token": "c-d"}) == "c-d"


def test_a_request_without_a_host_is_of_no_page() -> None:
    """Its origin cannot be compared with anything."""
    assert token({"cookie": "coder_session_token=a-b", "origin": "https://tasks.example"}) == ""
