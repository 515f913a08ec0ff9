"""Compressed responses: which, how they are told apart from plain ones, and which routes have none."""

from __future__ import annotations

import gzip
from hashlib import sha256

import pytest

from taskherd.api.http import compression
from taskherd.api.http.compression import MIN_COMPRESSED, THREAD_FROM, accepts_gzip
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth
from taskherd.api.routes import ROUTES

LIST = b'{"tasks":[' + b'{"name":"migrate-db"},' * 100 + b"]}"
GZIP = {"accept-encoding": "gzip, br"}


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        ("gzip, br", True),
        ("br;q=1, gzip;q=0.5", True),
        ("*", True),
        ("br", False),
        ("", False),
        ("gzip;q=0", False),
        ("GZIP", True),
        ("*, gzip;q=0.000", False),
        ("gzip;q=0, *", False),
    ],
)
def test_a_client_says_whether_it_accepts_gzip(header: str, *, is_accepted: bool) -> None:
    """What a client says of gzip itself counts more than what it says of all encodings."""
    assert accepts_gzip(header) is is_accepted


@pytest.mark.parametrize("size", [2_048, THREAD_FROM])
async def test_a_large_list_is_compressed_and_its_tag_is_weak(size: int) -> None:
    """The compressed bytes are another representation, so the tag says only that the content is the same."""
    body = LIST.ljust(size)
    response = await compression.negotiate(BufferedResponse(200, body, {"ETag": '"1"', "X-Other": "2"}), GZIP)
    assert gzip.decompress(response.body) == body
    assert len(response.body) < len(body) / 10
    assert response.headers == {
        "ETag": 'W/"1"',
        "X-Other": "2",
        "Vary": "Accept-Encoding",
        "Content-Encoding": "gzip",
    }
    assert (response.status, response.content_type) == (200, "application/json")


async def test_the_same_list_is_plain_for_other_clients() -> None:
    """A client that does not accept gzip gets the plain list, and a cache learns that it depends on that."""
    response = await compression.negotiate(BufferedResponse(200, LIST, {"ETag": '"1"'}), {})
    assert (response.body, response.headers) == (LIST, {"ETag": 'W/"1"', "Vary": "Accept-Encoding"})


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"1"'}])
async def test_a_tag_that_is_weak_or_missing_stays_so(tag: dict[str, str]) -> None:
    """Only a strong one would say too much."""
    response = await compression.negotiate(BufferedResponse(200, LIST, tag), GZIP)
    assert response.headers == {**tag, "Vary": "Accept-Encoding", "Content-Encoding": "gzip"}


@pytest.mark.parametrize("body", [b"[]", b"x" * 2_047])
async def test_what_is_small_stays_plain(body: bytes) -> None:
    """Compressing a small answer saves no packet."""
    response = await compression.negotiate(BufferedResponse(200, body, {"ETag": '"1"'}), GZIP)
    assert (response.body, response.headers["ETag"]) == (body, 'W/"1"')
    assert "Content-Encoding" not in response.headers


async def test_what_does_not_become_smaller_stays_plain() -> None:
    """Bytes that are compressed already are sent as they are."""
    body = b"".join(sha256(bytes([number])).digest() for number in range(MIN_COMPRESSED // 32))
    response = await compression.negotiate(BufferedResponse(200, body, {"ETag": '"1"'}), GZIP)
    assert (response.body, response.headers) == (body, {"ETag": 'W/"1"', "Vary": "Accept-Encoding"})


async def test_what_would_be_as_large_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client would have to unpack it for nothing."""
    monkeypatch.setattr(compression, "_pack", lambda body: bytes(len(body)))
    response = await compression.negotiate(BufferedResponse(200, LIST), GZIP)
    assert (response.body, response.headers) == (LIST, {"Vary": "Accept-Encoding"})


@pytest.mark.parametrize("headers", [GZIP, {}])
async def test_a_304_has_the_tag_of_the_list(headers: dict[str, str]) -> None:
    """A cache finds the stored list by the tag of the 304, whether it was compressed or not."""
    response = await compression.negotiate(BufferedResponse(304, b"", {"ETag": '"1"'}), headers)
    assert (response.status, response.body) == (304, b"")
    assert response.headers == {"ETag": 'W/"1"', "Vary": "Accept-Encoding"}


def test_no_secret_and_no_stream_is_compressed() -> None:
    """Only answers to a user's GET that are complete in memory are: no token that was created, no stream."""
    compressed = [each for each in ROUTES if each.compressed]
    assert {"/tasks", "/requests", "/deleted-tasks"} <= {each.path for each in compressed}
    for route in compressed:
        assert (route.method, route.auth) == ("GET", Auth.USER), route.path
        assert not any(spec.media or spec.events for spec in route.responses.values()), route.path
        assert "token" not in route.path
    assert "/tasks/{user}/{task}" not in {each.path for each in compressed}
