"""WebSockets: the same callers and refusals as everywhere, told before the handshake is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from starlette.websockets import WebSocket

from taskherd.api.http import responses
from taskherd.api.http.endpoint import admit, ask_of
from taskherd.api.http.responses import Answer, Refusal
from taskherd.api.http.route import Auth, SocketRoute
from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from taskherd.api.context import House

log = structlog.get_logger(__name__)

_DENIAL = "websocket.http.response"


class Socket:
    """One WebSocket route, as an ASGI application."""

    def __init__(self, house: House, route: SocketRoute) -> None:
        self._house = house
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the caller, then hand the socket to the route's handler, which accepts it; or refuse it as JSON."""
        ask = ask_of(self._house, scope)
        ask.query_model = self._route.query
        socket = WebSocket(scope, receive, send)
        status = 101
        try:
            await admit(ask, Auth.USER, scope)
            await self._route.handler(ask, socket)
        except Refusal as refusal:
            status = refusal.answer.status
            await refuse(receive, send, refusal.answer)
        except TaskherdError as error:
            status = 503
            log.warning("away", route=self._route.path, reason=str(error))
            await refuse(receive, send, responses.away("The service is not available at the moment.").answer)
        finally:
            self._house.metrics.api_requests.labels(f"/api/v2{self._route.path}", "GET", str(status)).inc()


async def refuse(_receive: Receive, send: Send, answer: Answer) -> None:
    """Answer the handshake with a response of HTTP (the ASGI extension for it, which our server has)."""
    await send({"type": f"{_DENIAL}.start", "status": answer.status, "headers": answer.raw_headers()})
    await send({"type": f"{_DENIAL}.body", "body": answer.body})
