"""Repeat requests while the API, or what is between it and the client, is unavailable or too busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, TypeVar

from taskherd.backoff import Backoff
from taskherd.client.errors import ApiError, Unreachable

T = TypeVar("T")

MAX_FAILURES: Final = 8
"""Maximum number of consecutive failed requests that are repeated; the wait after each grows up to 15 seconds."""
BACKOFF: Final = Backoff(first=1.0, maximum=15.0, jitter=0.2)
RETRIED: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""The statuses of an API, and of a proxy before it, that answer later."""


def repeat(
    attempt: Callable[[], T],
    *,
    notice: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
    left: Callable[[], float] = lambda: BACKOFF.maximum,
) -> T:
    """Return the result of a request that is repeated during an outage.

    Args:
        attempt: sends the request; it must be safe to repeat.
        notice: called with the reason each time that the request is repeated.
        sleep: waits for the given number of seconds.
        left: returns the seconds for which the request may still be repeated.

    Raises:
        ClientError: it failed for another reason, ``MAX_FAILURES`` repeats failed too, or no time is left.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except (ApiError, Unreachable) as error:
            failures += 1
            is_permanent = isinstance(error, ApiError) and error.status not in RETRIED
            if is_permanent or failures > MAX_FAILURES or left() <= 0:
                raise
            notice(error.message)
            requested = error.retry_after if isinstance(error, ApiError) else 0.0
            sleep(min(max(requested, BACKOFF.delay(failures)), BACKOFF.maximum, max(0.0, left())))
