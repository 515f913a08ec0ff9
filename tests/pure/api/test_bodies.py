"""Bodies of requests: what is read of them, and what an error says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from taskherd.api.http import bodies
from taskherd.api.http.errors import HTTPError


class Numbers(BaseModel):
    """The body of an example."""

    numbers: list[int]


def receiver(*messages: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Return what a server calls for the parts of a body, and then waits forever."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", **left.pop(0)}

    return receive


def test_a_body_is_refused_by_its_length() -> None:
    """Before it is read, if it says that it is too long; one that says nothing sensible is counted as it comes."""
    for length in ("", "10", "-1", "x", "0010"):
        bodies.check_length({"content-length": length}, 10)
    bodies.check_length({}, 10)
    for length in ("11", "1" * 5_000):
        with pytest.raises(HTTPError) as refused:
            bodies.check_length({"content-length": length}, 10)
        assert refused.value.response.status == 413, length


async def test_a_body_is_read_to_its_end() -> None:
    """Up to the limit, in however many parts; one byte more is too large, and an end before is no body."""
    parts: list[dict[str, Any]] = [
        {"body": b"123", "more_body": True},
        {"more_body": True},
        {"body": b"45", "more_body": False},
    ]
    assert await bodies.read(receiver(*parts), 30, 5) == b"12345"
    assert await bodies.read(receiver({"body": b"123"}, {"body": b"4"}), 30, 5) == b"123"
    with pytest.raises(HTTPError) as too_large:
        await bodies.read(receiver(*parts), 30, 4)
    with pytest.raises(HTTPError) as too_slow:
        await bodies.read(receiver(parts[0]), 0.01, 5)
    assert (too_large.value.response.status, too_slow.value.response.status) == (413, 408)
    with pytest.raises(bodies.ClientDisconnected):
        await bodies.read(receiver(parts[0], {"type": "http.disconnect"}), 30, 5)


def test_an_error_names_the_first_twenty_fields() -> None:
    """By where they are in the body, with what is wrong with each; nothing of the values comes back."""
    with pytest.raises(HTTPError) as invalid:
        bodies.validate({"numbers": ["secret"] * 30}, Numbers)
    validations = orjson.loads(invalid.value.response.body)["validations"]
    assert [each["field"] for each in validations] == [f"numbers.{number}" for number in range(20)]
    assert b"secret" not in invalid.value.response.body
    assert bodies.parse(b'{"numbers": [1, 2]}', Numbers).numbers == [1, 2]
    for body in (b"[]", b"7", b"{"):
        with pytest.raises(HTTPError) as no_object:
            bodies.parse(body, Numbers)
        assert orjson.loads(no_object.value.response.body)["message"] == "Request body must be valid JSON."
