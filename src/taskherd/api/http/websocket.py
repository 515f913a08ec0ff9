"""WebSockets: the same callers and refusals as everywhere, told before the handshake is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from starlette.websockets import WebSocket

from taskherd.api.http import responses
from taskherd.api.http.endpoint import authenticate, request_context
from taskherd.api.http.responses import BufferedResponse, HTTPError
from taskherd.api.http.route import Auth, SocketRoute
from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from taskherd.api.context import ApiContext

log = structlog.get_logger(__name__)

_DENIAL = "websocket.http.response"


class SocketEndpoint:
    """One WebSocket route, as an ASGI application."""

    def __init__(self, api: ApiContext, route: SocketRoute) -> None:
        self._api = api
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the caller, then hand the socket to the route's handler, which accepts it; or refuse it as JSON."""
        request = request_context(self._api, scope)
        request.query_model = self._route.query
        socket = WebSocket(scope, receive, send)
        status = 101
        try:
            await authenticate(request, Auth.USER, scope)
            await self._route.handler(request, socket)
        except HTTPError as refusal:
            status = refusal.response.status
            await refuse(receive, send, refusal.response)
        except TaskherdError as error:
            status = 503
            log.warning("away", route=self._route.path, reason=str(error))
            await refuse(receive, send, responses.unavailable("The service is not available at the moment.").response)
        finally:
            self._api.metrics.api_requests.labels(f"/api/v2{self._route.path}", "GET", str(status)).inc()


async def refuse(_receive: Receive, send: Send, response: BufferedResponse) -> None:
    """Answer the handshake with a response of HTTP (the ASGI extension for it, which our server has)."""
    await send({"type": f"{_DENIAL}.start", "status": response.status, "headers": response.raw_headers()})
    await send({"type": f"{_DENIAL}.body", "body": response.body})
