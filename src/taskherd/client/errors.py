"""What can go wrong between a client and the API, each with the exit code that a script sees."""

# ruff: noqa: N818 - as in taskherd.errors: an error is named for what it says

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus
from typing import Any, Final, Self


class ExitCode(IntEnum):
    """Exit codes of `taskherd task`."""

    OK = 0
    ERROR = 1
    """The server could not be reached, or did not do its part."""
    USAGE = 2
    """The command line or the environment is wrong."""
    FAILED = 3
    """The task failed."""
    SIGNED_OUT = 4
    """The token does not hold, or does not allow it."""
    NOT_FOUND = 5
    """There is no such task, user or template, or it is not the caller's."""
    REFUSED = 6
    """The request was understood and refused: the task can't be changed so as it is now, or a value is wrong."""
    TIMEOUT = 124
    """What was waited for did not come in time."""
    INTERRUPTED = 130
    """Ctrl-C."""


_BY_STATUS: Final[dict[int, ExitCode]] = {
    HTTPStatus.UNAUTHORIZED: ExitCode.SIGNED_OUT,
    HTTPStatus.FORBIDDEN: ExitCode.SIGNED_OUT,
    HTTPStatus.NOT_FOUND: ExitCode.NOT_FOUND,
}
_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "set TASKHERD_TOKEN to one that `taskherd token create --user NAME` printed",
    HTTPStatus.NOT_FOUND: "`taskherd task list` shows the tasks that you may see",
    HTTPStatus.TOO_MANY_REQUESTS: "wait a moment, then try again",
    HTTPStatus.SERVICE_UNAVAILABLE: "try again in a moment; does a worker run?",
}


class ClientError(Exception):
    """Something that a person can understand; `advice` says what to do about it, if anything is known to help."""

    def __init__(self, code: ExitCode, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice


class ApiError(ClientError):
    """An answer of the server that is an error; `status` is HTTP's."""

    def __init__(self, status: int, code: ExitCode, message: str, advice: str, retry_after: float) -> None:
        super().__init__(code, message, advice)
        self.status = status
        self.retry_after = retry_after
        """Seconds after which to try again, where that may help."""

    @classmethod
    def from_response(cls, status: int, said: Any, retry_after: str | None) -> Self:
        """What the server said, as one line."""
        parts: list[str] = []
        if isinstance(said, dict):
            parts += [str(said[name]) for name in ("message", "detail") if said.get(name)]
            parts += [f"{each.get('field')}: {each.get('detail')}" for each in said.get("validations") or ()]
        server = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        code = _BY_STATUS.get(status, ExitCode.ERROR if server else ExitCode.REFUSED)
        message = " ".join(parts) or f"the server answered {status}"
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return cls(status, code, message, _ADVICE.get(status, ""), seconds)


class Unreachable(ClientError):
    """Nobody answered, or not as an API does."""

    def __init__(self, message: str, advice: str = "does `taskherd api` run there? TASKHERD_URL says where") -> None:
        super().__init__(ExitCode.ERROR, message, advice)
