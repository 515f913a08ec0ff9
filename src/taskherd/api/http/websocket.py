"""WebSocket routes, with the same authentication and errors as HTTP, sent before the handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from starlette.websockets import WebSocket

from taskherd.api.http import errors
from taskherd.api.http.auth import authenticate
from taskherd.api.http.endpoint import request_context
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth, SocketRoute
from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from taskherd.api.context import ApiContext

log = structlog.get_logger(__name__)

_DENIAL: Final = "websocket.http.response"


class SocketEndpoint:
    """One WebSocket route, as an ASGI application."""

    def __init__(self, api: ApiContext, route: SocketRoute) -> None:
        self._api = api
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the caller and call the route's handler, which accepts the socket; deny it with an error."""
        request = request_context(self._api, scope)
        request.query_model = self._route.query
        socket = WebSocket(scope, receive, send)
        status = 101
        try:
            await authenticate(request, Auth.USER, scope)
            await self._route.handler(request, socket)
        except HTTPError as error:
            status = error.response.status
            await deny(receive, send, error.response)
        except TaskherdError as error:
            status = 503
            log.warning("dependency unavailable", route=self._route.path, reason=str(error))
            await deny(receive, send, errors.unavailable("The service is temporarily unavailable.").response)
        finally:
            self._api.metrics.api_requests.labels(f"/api/v2{self._route.path}", "GET", str(status)).inc()


async def deny(_receive: Receive, send: Send, response: BufferedResponse) -> None:
    """Answer the handshake with an HTTP response, by the ASGI extension for that."""
    await send({"type": f"{_DENIAL}.start", "status": response.status, "headers": response.raw_headers()})
    await send({"type": f"{_DENIAL}.body", "body": response.body})
