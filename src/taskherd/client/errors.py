"""Errors of the client, each with the exit code that the command line returns for it."""

# ruff: noqa: N818 - as in taskherd.errors: an error is named for what it says

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus
from typing import Any, Final, Self


class ExitCode(IntEnum):
    """Exit codes of ``taskherd task``."""

    OK = 0
    ERROR = 1
    """The server could not be reached, or it failed."""
    USAGE = 2
    """The command line or the environment is wrong."""
    FAILED = 3
    """The task failed, or its agent ended or is lost without what was awaited."""
    UNAUTHORIZED = 4
    """The token is not valid, or does not permit the request."""
    NOT_FOUND = 5
    """The task, user or template does not exist, or the caller may not see it."""
    REFUSED = 6
    """The server refused the request: a value is invalid, or the state of the task does not allow the change."""
    TIMEOUT = 124
    """The task did not reach the requested status or state in time."""
    INTERRUPTED = 130
    """Ctrl-C."""


_BY_STATUS: Final[dict[int, ExitCode]] = {
    HTTPStatus.UNAUTHORIZED: ExitCode.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN: ExitCode.UNAUTHORIZED,
    HTTPStatus.NOT_FOUND: ExitCode.NOT_FOUND,
}
_GATEWAY: Final = "try again in a moment; if it persists, check the proxy in front of `taskherd api`"
_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "set TASKHERD_TOKEN to a valid token; `taskherd token create --user NAME` prints one",
    HTTPStatus.NOT_FOUND: "run `taskherd task list` to see your tasks",
    HTTPStatus.TOO_MANY_REQUESTS: "wait a moment, then try again",
    HTTPStatus.BAD_GATEWAY: _GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT: _GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE: "try again in a moment; if it persists, check that a worker is running",
}


class ClientError(Exception):
    """A request that failed.

    ``message`` says what happened, ``advice`` what to do about it ("" if unknown), ``code`` is the exit code of the
    command line.
    """

    def __init__(self, code: ExitCode, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice
        self.may_have_arrived = code is ExitCode.ERROR
        """Whether the request may have taken effect although it failed."""


class ApiError(ClientError):
    """An error response of the API; ``status`` is its HTTP status."""

    def __init__(self, status: int, code: ExitCode, message: str, advice: str, retry_after: float) -> None:
        super().__init__(code, message, advice)
        self.status = status
        self.retry_after = retry_after
        """Seconds to wait before a retry, from ``Retry-After``; 1 if the response has none."""

    @classmethod
    def from_response(cls, status: int, body: Any, retry_after: str | None) -> Self:
        """Build the error from a response, with the server's explanations joined to one line.

        Args:
            status: the HTTP status, 400 or above.
            body: the decoded JSON body, ``{"message", "detail", "validations": [{"field", "detail"}]}`` if it comes
                from the API.
            retry_after: the ``Retry-After`` header, in seconds.
        """
        parts: list[str] = []
        if isinstance(body, dict):
            parts += [str(body[name]) for name in ("message", "detail") if body.get(name)]
            parts += [f"{each.get('field')}: {each.get('detail')}" for each in body.get("validations") or ()]
        server = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        code = _BY_STATUS.get(status, ExitCode.ERROR if server else ExitCode.REFUSED)
        message = " ".join(parts) or f"the server answered with status {status}"
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return cls(status, code, message, _ADVICE.get(status, ""), seconds)


class Unreachable(ClientError):
    """The server did not answer, or its answer does not come from the API."""

    def __init__(
        self,
        message: str,
        advice: str = "check TASKHERD_URL, and that `taskherd api` is running",
        *,
        may_have_arrived: bool = True,
    ) -> None:
        super().__init__(ExitCode.ERROR, message, advice)
        self.may_have_arrived = may_have_arrived
