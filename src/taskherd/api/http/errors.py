"""Errors of the API: ``HTTPError``, and one constructor for each kind. All have a JSON body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from taskherd.api.http.responses import json

RETRY_AFTER: Final = 2
"""Seconds after which a client should repeat a request that failed because a dependency was unavailable."""


class HTTPError(Exception):
    """An error response: ``{"message", "detail"?, "validations"?}``.

    Args:
        validations: (field or parameter, what is wrong with it) pairs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        detail: str | None = None,
        validations: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        body: dict[str, Any] = {"message": message}
        if detail:
            body["detail"] = detail
        if validations:
            body["validations"] = [{"field": name, "detail": problem} for name, problem in validations]
        self.response = json(body, status, headers)


def not_found() -> HTTPError:
    """Return a 404 that does not reveal whether the resource exists."""
    return HTTPError(404, "Resource not found or you do not have access to this resource")


def route_not_found() -> HTTPError:
    """Return a 404 for a path that matches no route."""
    return HTTPError(404, "Route not found.")


def method_not_allowed(allowed: Sequence[str]) -> HTTPError:
    """Return a 405 for a path that has other methods."""
    return HTTPError(
        405, "Method not allowed.", f"Allowed: {', '.join(allowed)}.", headers={"Allow": ", ".join(allowed)}
    )


def unauthorized() -> HTTPError:
    """Return a 401 that does not reveal whether the token is missing or invalid."""
    return HTTPError(
        401,
        "You are signed out or your session has expired. Please sign in again to continue.",
        headers={"WWW-Authenticate": 'Bearer realm="coder"'},
    )


def invalid_json(detail: str) -> HTTPError:
    """Return a 400 for a body that is not a JSON object."""
    return HTTPError(400, "Request body must be valid JSON.", detail)


def invalid(*validations: tuple[str, str], message: str = "Validation failed.") -> HTTPError:
    """Return a 400 that names the invalid fields or parameters, each with what is wrong with it."""
    return HTTPError(400, message, validations=validations)


def too_large(limit: int) -> HTTPError:
    """Return a 413 for a body of more than ``limit`` bytes; the server discards the rest of it."""
    return HTTPError(413, "Request body is too large.", f"The limit is {limit} bytes.")


def too_slow() -> HTTPError:
    """Return a 408 for a body that did not arrive in time."""
    return HTTPError(408, "Request body did not arrive in time.", headers={"Connection": "close"})


def rate_limited(seconds: float, message: str = "You have made too many requests. Please wait.") -> HTTPError:
    """Return a 429; the next request is accepted in ``seconds``."""
    wait = max(1, -int(-seconds // 1))
    detail = f"The next one is accepted in {wait} s."
    return HTTPError(429, message, detail, headers={"Retry-After": str(wait)})


def too_many_open(most: int) -> HTTPError:
    """Return a 429: the caller follows changes with as many open requests as one user may have in this process."""
    message = "You have too many streams, long polls and WebSockets open."
    detail = f"One user may have {most} in one API process. Close some, or follow all tasks with one stream."
    return HTTPError(429, message, detail, headers={"Retry-After": str(RETRY_AFTER)})


def unavailable(message: str) -> HTTPError:
    """Return a 503: a dependency is unavailable, and a retry may succeed."""
    return HTTPError(503, message, "Please try again in a moment.", headers={"Retry-After": str(RETRY_AFTER)})


def internal_error() -> HTTPError:
    """Return a 500 that reveals nothing but that an internal error occurred."""
    return HTTPError(500, "An internal server error occurred.")
