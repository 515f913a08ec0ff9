"""What handlers see of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from taskherd.api.http.endpoint import request_context

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext, RequestContext


def request(query: str = "", *headers: tuple[str, str], **scope: Any) -> RequestContext:
    """Return a request with this query string and these headers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    defaults = {"method": "PATCH", "path_params": {"user": "me"}, "query_string": query.encode(), "headers": raw}
    return request_context(cast("ApiContext", None), {**defaults, **scope})


def test_the_first_of_several_values_counts() -> None:
    """Of headers as of parameters; a parameter without a value is there, and empty."""
    found = request("a=1&b=&a=2&c", ("accept", "text/html"), ("accept", "*/*"), ("x-name", "\xff"))
    assert (found.query, found.headers) == (
        {"a": "1", "b": "", "c": ""},
        {"accept": "text/html", "x-name": "\xff"},
    )
    assert (found.method, found.params, found.username) == ("PATCH", {"user": "me"}, None)
    assert (request().query, request("%C3%A4=%C3%B6").query) == ({}, {"ä": "ö"})


@pytest.mark.parametrize(("count", "is_read"), [(100, True), (101, False)])
def test_more_than_a_hundred_parameters_are_not_read(count: int, *, is_read: bool) -> None:
    """As if there were none, so that nobody is made to look at thousands."""
    names = [f"p{number}" for number in range(count)]
    assert list(request("&".join(f"{name}=1" for name in names)).query) == (names if is_read else [])


def test_a_handshake_has_no_method() -> None:
    """It is authenticated as a GET."""
    scope = {"headers": [], "query_string": b"after=7"}
    found = request_context(cast("ApiContext", None), scope)
    assert (found.method, found.params, found.query) == ("GET", {}, {"after": "7"})
