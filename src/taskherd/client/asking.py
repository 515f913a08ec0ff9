"""How an agent asks people for an answer with its own token, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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


def ask(
    client: Client,
    fields: Mapping[str, Any],
    is_cancelled: Callable[[], bool],
    now: Callable[[], float] = time.monotonic,
) -> Mapping[str, Any]:
    """Open a request, and return it once it is answered, withdrawn or expired, however long that takes.

    It outlives outages of the API. A call that is cancelled withdraws the request.

    Args:
        client: the server, and the agent's token.
        fields: ``kind``, ``title`` and what else the request has.
        is_cancelled: whether the caller has given up waiting.
        now: the clock, in seconds.

    Raises:
        ClientError: the request was not accepted, or it or the agent's token has ended.
    """
    body = {**fields, "request_id": str(uuid4())}
    try:
        found = _answer_to(client, body, is_cancelled, now)
    except (ApiError, Unreachable):
        if not is_cancelled():
            raise
        found = None  # what failed may have been taken all the same
    if found is not None:
        return found
    end = now() + WITHDRAWN_WITHIN
    withdrawn = {**body, "state": "withdrawn"}
    _persist(lambda: client.request("POST", *_PATH, body=withdrawn), lambda: now() >= end)
    return {"request_id": body["request_id"], "state": "withdrawn", "option_id": None, "text": None}


def _answer_to(
    client: Client, body: Mapping[str, Any], is_cancelled: Callable[[], bool], now: Callable[[], float]
) -> Mapping[str, Any] | None:
    """Open a request, and return it once it is no longer open; None if the call is cancelled."""
    _persist(lambda: client.request("POST", *_PATH, body=body), is_cancelled)
    opened_at, is_known = now(), False
    while not is_cancelled():
        try:
            found: Mapping[str, Any] = _persist(lambda: _read(client, body["request_id"]), is_cancelled)
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


def _read(client: Client, request_id: str) -> Mapping[str, Any]:
    query = {"wait": f"{WAIT:.0f}s"}
    found: Mapping[str, Any] = client.request(
        "GET", *_PATH, request_id, query=query, timeout=WAIT + REQUEST_TIMEOUT
    ).body
    return found


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
