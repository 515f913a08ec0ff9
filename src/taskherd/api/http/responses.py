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
class BufferedResponse:
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


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> BufferedResponse:
    """Any value of JSON's own types, with UUIDs among them."""
    return BufferedResponse(status, orjson.dumps(value, default=str), headers or {})


def empty(status: int, headers: Mapping[str, str] | None = None) -> BufferedResponse:
    """No body."""
    return BufferedResponse(status, b"", headers or {})


class HTTPError(Exception):
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
        text: dict[str, Any] = {"message": message}
        if detail:
            text["detail"] = detail
        if validations:
            text["validations"] = [{"field": name, "detail": wrong} for name, wrong in validations]
        self.response = json(text, status, headers)


def not_found() -> HTTPError:
    """Not there, or not the caller's: one answer, so that nothing can be probed."""
    return HTTPError(404, "Resource not found or you do not have access to this resource")


def route_not_found() -> HTTPError:
    """No such route."""
    return HTTPError(404, "Route not found.")


def method_not_allowed(allowed: Sequence[str]) -> HTTPError:
    """A route that has other methods."""
    return HTTPError(
        405, "Method not allowed.", f"Allowed: {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)}
    )


def unauthorized() -> HTTPError:
    """No token, or none that holds; which of the two is not told."""
    return HTTPError(
        401,
        "You are signed out or your session has expired. Please sign in again to continue.",
        headers={"WWW-Authenticate": 'Bearer realm="coder"'},
    )


def invalid_json(detail: str) -> HTTPError:
    """A body that is not what it should be already as JSON."""
    return HTTPError(400, "Request body must be valid JSON.", detail)


def invalid(*wrong: tuple[str, str], message: str = "Validation failed.") -> HTTPError:
    """Fields or parameters that are wrong, each with what is wrong with it."""
    return HTTPError(400, message, validations=wrong)


def too_large(limit: int) -> HTTPError:
    """A body over the bound; the server throws away what comes of the rest."""
    return HTTPError(413, "Request body is too large.", f"At most {limit} bytes are accepted.")


def too_slow() -> HTTPError:
    """A body that did not come in time."""
    return HTTPError(408, "Request body did not arrive in time.", headers={"Connection": "close"})


def rate_limited(seconds: float) -> HTTPError:
    """A caller who asks too often; `seconds` until the next request is answered."""
    wait = max(1, -int(-seconds // 1))
    return HTTPError(429, "You have made too many requests. Please wait.", headers={"Retry-After": str(wait)})


def unavailable(what: str) -> HTTPError:
    """Something that we stand on is away; the same request may well succeed later."""
    return HTTPError(503, what, "Please try again in a moment.", headers={"Retry-After": str(RETRY_AFTER)})


def internal_error() -> HTTPError:
    """A mistake of ours, of which nothing is told but that it was one."""
    return HTTPError(500, "An internal server error occurred.")
