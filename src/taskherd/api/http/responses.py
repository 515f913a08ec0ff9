"""What is sent back: JSON in all cases, errors included, each as `{"message", "detail"?, "validations"?}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

JSON: Final = "application/json"
RETRY_AFTER: Final = 2
"""Seconds after which to try again what failed because something was away."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that is whole in memory; without a body it has no content type."""

    status: int
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as ASGI has them. A 204 and a 304 have no length (RFC 9110, section 8.6)."""
        told = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        if self.status not in {204, 304}:
            told.append((b"content-length", b"%d" % len(self.body)))
        if self.body:
            told.append((b"content-type", self.content_type.encode("latin-1")))
        return told


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Any value of JSON's own types, with UUIDs among them."""
    return Answer(status, orjson.dumps(value, default=str), headers or {})


def empty(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """No body."""
    return Answer(status, b"", headers or {})


class Refusal(Exception):  # noqa: N818 - the way out of a handler, answered as it says
    """A request that is not carried out; `validations` are (field, what is wrong with it) pairs."""

    def __init__(
        self,
        status: int,
        message: str,
        detail: str | None = None,
        validations: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        said: dict[str, Any] = {"message": message}
        if detail:
            said["detail"] = detail
        if validations:
            said["validations"] = [{"field": name, "detail": wrong} for name, wrong in validations]
        self.answer = json(said, status, headers)


def not_found() -> Refusal:
    """Not there, or not the caller's: one answer, so that nothing can be probed."""
    return Refusal(404, "Resource not found or you do not have access to this resource")


def route_not_found() -> Refusal:
    """No such route."""
    return Refusal(404, "Route not found.")


def wrong_method(allowed: Sequence[str]) -> Refusal:
    """A route that has other methods."""
    return Refusal(405, "Method not allowed.", f"Allowed: {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)})


def signed_out() -> Refusal:
    """No token, or none that holds; which of the two is not told."""
    return Refusal(
        401,
        "You are signed out or your session has expired. Please sign in again to continue.",
        headers={"WWW-Authenticate": 'Bearer realm="coder"'},
    )


def bad_json(detail: str) -> Refusal:
    """A body that is not what it should be already as JSON."""
    return Refusal(400, "Request body must be valid JSON.", detail)


def invalid(*wrong: tuple[str, str], message: str = "Validation failed.") -> Refusal:
    """Fields or parameters that are wrong, each with what is wrong with it."""
    return Refusal(400, message, validations=wrong)


def too_large(most: int) -> Refusal:
    """A body over the bound; the server throws away what comes of the rest."""
    return Refusal(413, "Request body is too large.", f"At most {most} bytes are accepted.")


def too_slow() -> Refusal:
    """A body that did not come in time."""
    return Refusal(408, "Request body did not arrive in time.", headers={"Connection": "close"})


def too_many(seconds: float) -> Refusal:
    """A caller who asks too often; `seconds` until the next request is answered."""
    wait = max(1, -int(-seconds // 1))
    return Refusal(429, "You have made too many requests. Please wait.", headers={"Retry-After": str(wait)})


def away(what: str) -> Refusal:
    """Something that we stand on is away; the same request may well succeed later."""
    return Refusal(503, what, "Please try again in a moment.", headers={"Retry-After": str(RETRY_AFTER)})


def crashed() -> Refusal:
    """A mistake of ours, of which nothing is told but that it was one."""
    return Refusal(500, "An internal server error occurred.")
