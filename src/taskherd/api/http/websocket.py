"""WebSocket routes, with the same authentication and errors as HTTP, sent before the handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from taskherd.api.http import errors
from taskherd.api.http.auth import authenticate
from taskherd.api.http.endpoint import request_context
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.open_requests import MAX_CHECK_AGE, AccessLoss
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth, SocketRoute
from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Receive, Scope, Send

    from taskherd.api.context import ApiContext, RequestContext
    from taskherd.api.http.open_requests import OpenRequest

log = structlog.get_logger(__name__)

NORMAL, GOING_AWAY, POLICY_VIOLATION, TRY_AGAIN_LATER = 1000, 1001, 1008, 1013
"""Close codes (RFC 6455, section 7.4.1, and the registry that it refers to)."""
_CLOSE_TIMEOUT: Final = 2.0
"""Seconds within which a client must take the close frame."""
_DENIAL: Final = "websocket.http.response"

SendText: TypeAlias = Callable[[str], Awaitable[None]]
"""A function that sends a text frame; it sends nothing to a client that has lost its access."""


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


async def serve(
    request: RequestContext, socket: WebSocket, task_id: UUID, send_all: Callable[[SendText], Awaitable[int]]
) -> None:
    """Accept a socket about a task, send frames until one of its ends is reached, and close it.

    These are: ``send_all`` has returned the close code, the client disconnects, the process stops, or the caller loses
    its access.
    """
    await socket.accept()
    with request.api.access.watch(request.caller, task_id) as access:

        async def send_text(text: str) -> None:
            if await access.may_send():
                await socket.send_text(text)

        async def send_and_check() -> int:
            """Send all. If that has ended because the caller lost its access, the next check says so."""
            code = await send_all(send_text)
            with suppress(TimeoutError):
                async with asyncio.timeout(MAX_CHECK_AGE):
                    await access.next_check()
            return code

        sending = asyncio.create_task(send_and_check())
        disconnect = asyncio.create_task(_wait_disconnect(socket))
        stopping = asyncio.create_task(request.api.stopping.wait())
        lost = asyncio.create_task(access.wait_lost())
        try:
            await asyncio.wait({sending, disconnect, stopping, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (sending, disconnect, stopping, lost):
                each.cancel()
            results = await asyncio.gather(sending, disconnect, stopping, lost, return_exceptions=True)
    if isinstance(results[0], Exception) and not isinstance(results[0], WebSocketDisconnect):
        raise results[0]
    if socket.application_state is WebSocketState.CONNECTED and results[1] is not True:
        with suppress(WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await socket.close(_close_code(access, results[0]))


def _close_code(access: OpenRequest, result: int | BaseException) -> int:
    """Return the close code of a socket whose ``send_all`` had this result."""
    if access.loss is not None:
        return TRY_AGAIN_LATER if access.loss is AccessLoss.UNCHECKED else POLICY_VIOLATION
    return result if isinstance(result, int) else GOING_AWAY


async def _wait_disconnect(socket: WebSocket) -> bool:
    """Wait until the client disconnects, ignoring its messages."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue
    return True


async def deny(_receive: Receive, send: Send, response: BufferedResponse) -> None:
    """Answer the handshake with an HTTP response, by the ASGI extension for that."""
    await send({"type": f"{_DENIAL}.start", "status": response.status, "headers": response.raw_headers()})
    await send({"type": f"{_DENIAL}.body", "body": response.body})
