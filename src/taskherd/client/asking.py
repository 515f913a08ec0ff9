"""How an agent asks people for an answer with its own token, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.http import REQUEST_TIMEOUT
from taskherd.client.outages import RETRIED

if TYPE_CHECKING:
    from taskherd.client.http import Client

WAIT: Final = 10.0
"""Seconds that one request waits for the answer; how late the end of the wait is noticed."""
ACCEPTED_WITHIN: Final = 60.0
"""Seconds after which a request that the worker has not taken was not accepted."""
WITHDRAWN_WITHIN: Final = 10.0
"""Seconds for which withdrawing a request is tried during an outage."""
PAUSE: Final = 2.0
MAX_PAUSE: Final = 30.0
"""Minimum and maximum number of seconds before the next attempt during an outage, whatever the server asks for."""
_PATH: Final = ("workspaceagents", "me", "requests")


class _OwnRequest:
    """A request of the agent, and whether people may see it as open."""

    def __init__(self, client: Client, fields: Mapping[str, Any]) -> None:
        self.id = str(uuid4())
        self.may_be_open = False
        """A report that it is open was taken, or failed in such a way that it may have been."""
        self._client = client
        self._body = {**fields, "request_id": self.id}

    def open(self) -> None:
        """Report that it is open."""
        is_refused = False
        try:
            self._client.request("POST", *_PATH, body=self._body)
        except ApiError as error:
            is_refused = error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.status not in RETRIED
            raise
        finally:
            self.may_be_open |= not is_refused

    def withdraw(self, now: Callable[[], float]) -> None:
        """Report that it is withdrawn, which holds whichever report comes first."""
        end = now() + WITHDRAWN_WITHIN
        body = {**self._body, "state": "withdrawn"}
        _persist(lambda: self._client.request("POST", *_PATH, body=body), lambda: now() >= end)

    def read(self) -> Mapping[str, Any]:
        """Return it once it is no longer open, or as it is after ``WAIT`` seconds."""
        query = {"wait": f"{WAIT:.0f}s"}
        found: Mapping[str, Any] = self._client.request(
            "GET", *_PATH, self.id, query=query, timeout=WAIT + REQUEST_TIMEOUT
        ).body
        return found


def ask(
    client: Client,
    fields: Mapping[str, Any],
    is_cancelled: Callable[[], bool],
    now: Callable[[], float] = time.monotonic,
) -> Mapping[str, Any]:
    """Open a request, and return it once it is answered, withdrawn or expired, however long that takes.

    It outlives outages of the API. A call that ends without an answer withdraws the request, so that nobody answers
    a question that no one is waiting on.

    Args:
        client: the server, and the agent's token.
        fields: ``kind``, ``title`` and what else the request has.
        is_cancelled: whether the caller has given up waiting.
        now: the clock, in seconds.

    Raises:
        ClientError: the request was not accepted, or it or the agent's token has ended.
    """
    request = _OwnRequest(client, fields)
    try:
        found = _answer_to(request, is_cancelled, now)
    except ClientError as error:
        if not is_cancelled():
            _give_up(request, error, now)
            raise
        found = None  # what failed may have been taken all the same
    if found is not None:
        return found
    request.withdraw(now)
    return {"request_id": request.id, "state": "withdrawn", "option_id": None, "text": None}


def _answer_to(
    request: _OwnRequest, is_cancelled: Callable[[], bool], now: Callable[[], float]
) -> Mapping[str, Any] | None:
    """Open a request, and return it once it is no longer open; None if the call is cancelled."""
    _persist(request.open, is_cancelled)
    opened_at, is_known = now(), False
    while not is_cancelled():
        try:
            found: Mapping[str, Any] = _persist(request.read, is_cancelled)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND or is_known:
                raise
            if now() - opened_at > ACCEPTED_WITHIN:
                raise ClientError(ExitCode.REFUSED, "the request was not accepted", "ask less at once") from None
            continue
        is_known = True
        if found["state"] != "open":
            return found
    return None


def _give_up(request: _OwnRequest, error: ClientError, now: Callable[[], float]) -> None:
    """Withdraw a request after an error, if that is possible: no one waits for its answer any more.

    An agent whose token has ended can withdraw nothing, and its requests have ended with its build.
    """
    has_ended = isinstance(error, ApiError) and error.status == HTTPStatus.UNAUTHORIZED
    if request.may_be_open and not has_ended:
        with suppress(ClientError):
            request.withdraw(now)


def _persist(attempt: Callable[[], Any], is_cancelled: Callable[[], bool]) -> Any:
    """Return the result of an attempt that is repeated during an outage, until the call is cancelled."""
    while True:
        try:
            return attempt()
        except Unreachable:
            if is_cancelled():
                raise
            pause = PAUSE
        except ApiError as error:
            if is_cancelled() or error.status not in RETRIED:
                raise
            pause = min(max(PAUSE, error.retry_after), MAX_PAUSE)
        time.sleep(pause)
