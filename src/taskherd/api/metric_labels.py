"""The values of the labels of the API's counters: every response that a route documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskherd.api.actions.executor import ActionOutcome
from taskherd.api.http.connections import LIMITS
from taskherd.api.http.openapi import responses_of
from taskherd.api.http.sign_in_failures import SignInFailure
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES, SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SOCKET_STATUSES: Final = (101, 400, 401, 404, 429, 500, 503)
"""The statuses with which a WebSocket is accepted or denied."""


def _requests() -> Iterator[tuple[str, str, str]]:
    """Yield route, method and status of the requests that are counted; HEAD is answered like GET."""
    yield "none", "other", "404"
    for route in ROUTES:
        for prefix in (PREFIX, EXPERIMENTAL) if route.experimental else (PREFIX,):
            path = prefix + route.path
            yield path, "other", "405"
            for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                for status in responses_of(route):
                    yield path, method, str(status)
    for socket in SOCKETS:
        for status in SOCKET_STATUSES:
            yield PREFIX + socket.path, "GET", str(status)


LABEL_VALUES: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "api_action_tasks": tuple((outcome.value,) for outcome in ActionOutcome),
    "api_reads": (("primary",), ("standby",)),
    "api_requests": tuple(dict.fromkeys(_requests())),
    "api_sign_in_failures": tuple((reason.value,) for reason in SignInFailure),
    "api_connections_closed": tuple((limit,) for limit in LIMITS),
}
"""The counters with labels, and all values of these labels."""
