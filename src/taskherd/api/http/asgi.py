"""The ASGI application, made from the table of routes."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router, WebSocketRoute
from starlette.routing import Route as StarletteRoute

from taskherd.api import board
from taskherd.api.http import openapi
from taskherd.api.http.endpoint import Endpoint
from taskherd.api.http.responses import BufferedResponse, route_not_found
from taskherd.api.http.route import Auth, ResponseSpec, Route, SocketRoute
from taskherd.api.http.websocket import SocketEndpoint, refuse
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES, SOCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from taskherd.api.context import ApiContext, RequestContext


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def application(api: ApiContext, routes: Sequence[Route] = ROUTES, sockets: Sequence[SocketRoute] = SOCKETS) -> ASGIApp:
    """Serve these routes, and the document that tells of them."""
    described = openapi.encoded(routes, sockets)

    async def describe(_ask: RequestContext) -> BufferedResponse:
        return BufferedResponse(200, described)

    document = Route(
        method="GET",
        path="/openapi.json",
        handler=describe,
        summary="This document",
        responses={200: ResponseSpec("OpenAPI 3.1.")},
        auth=Auth.NONE,
    )
    both = [each for each in routes if each.experimental]
    made: list[BaseRoute] = [
        *_served(api, PREFIX, (*routes, document)),
        *_served(api, EXPERIMENTAL, both),
        *_served(api, "", board.ROUTES),
        *(WebSocketRoute(PREFIX + each.path, SocketEndpoint(api, each)) for each in sockets),
    ]
    app: ASGIApp = Router(made, redirect_slashes=False, default=_Nowhere(api))
    origins = api.settings.cors_origins
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["ETag", "Retry-After", "X-Taskherd-Queued", "X-Taskherd-Timed-Out", "X-Taskherd-Truncated"],
        )
    return app


def _served(api: ApiContext, prefix: str, routes: Sequence[Route]) -> list[BaseRoute]:
    """One route of Starlette's for each path, in the order in which paths first appear."""
    order = {path: place for place, path in enumerate(dict.fromkeys(each.path for each in routes))}
    by_path = groupby(sorted(routes, key=lambda each: order[each.path]), key=lambda each: each.path)
    return [
        StarletteRoute(prefix + path, Endpoint(api, prefix + path, found := list(each)), methods=_own(found, routes))
        for path, each in by_path
    ]


def _own(here: Sequence[Route], routes: Sequence[Route]) -> list[str] | None:
    """What a path answers beside a wider one (`/tasks/watch`, `/tasks/{user}`): all methods but those of that one.

    None where there is no such path, or where it is hidden whole.
    """
    path, methods = here[0].path, {route.method for route in here}
    wider = [each for each in routes if each.path != path and re.fullmatch(re.sub(r"{\w+}", "[^/]+", each.path), path)]
    others = {each.method for each in wider}
    return sorted(_METHODS - others) if wider and not others & methods else None


class _Nowhere:
    """Answers for every path that is no route."""

    def __init__(self, api: ApiContext) -> None:
        self._answer = route_not_found().response
        self._count = api.metrics.api_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse(receive, send, self._answer)
            return
        self._count.labels("none", "other", "404").inc()
        await send({"type": "http.response.start", "status": 404, "headers": self._answer.raw_headers()})
        await send({"type": "http.response.body", "body": self._answer.body})
