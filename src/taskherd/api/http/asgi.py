"""The ASGI application, built from the route table."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router, WebSocketRoute
from starlette.routing import Route as StarletteRoute

from taskherd.api.board.files import board_files
from taskherd.api.board.routes import ROUTES as BOARD
from taskherd.api.context import LSN
from taskherd.api.http import openapi
from taskherd.api.http.endpoint import HttpEndpoint
from taskherd.api.http.errors import route_not_found
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth, ResponseSpec, Route, SocketRoute
from taskherd.api.http.websocket import SocketEndpoint, deny
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES, SOCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from taskherd.api.context import ApiContext, RequestContext


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def application(api: ApiContext, routes: Sequence[Route] = ROUTES, sockets: Sequence[SocketRoute] = SOCKETS) -> ASGIApp:
    """Return an application that serves these routes, the OpenAPI document about them, and the web page."""

    @cache
    def openapi_json() -> bytes:
        return openapi.encoded(routes, sockets)

    async def get_openapi(_request: RequestContext) -> BufferedResponse:
        # made for the first request, in a thread, since it takes as long as all the rest of the start
        return BufferedResponse(200, await asyncio.to_thread(openapi_json))

    document = Route(
        method="GET",
        path="/openapi.json",
        handler=get_openapi,
        summary="Get the OpenAPI document",
        responses={200: ResponseSpec("The document, in OpenAPI 3.1.")},
        auth=Auth.NONE,
    )
    experimental = [each for each in routes if each.experimental]
    endpoints: list[BaseRoute] = [
        *_endpoints(api, PREFIX, (*routes, document)),
        *_endpoints(api, EXPERIMENTAL, experimental),
        *_endpoints(api, "", BOARD),
        *(WebSocketRoute(PREFIX + each.path, SocketEndpoint(api, each)) for each in sockets),
    ]
    app: ASGIApp = Router(endpoints, redirect_slashes=False, default=_NotFound(api))
    origins = api.settings.cors_origins
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=_documented_headers(routes),
        )
    return app


def _documented_headers(routes: Sequence[Route]) -> list[str]:
    """Return the names of the headers that responses of these routes may have."""
    documented = {name for route in routes for response in route.responses.values() for name in response.headers}
    return sorted(documented | {LSN})


def _endpoints(api: ApiContext, prefix: str, routes: Sequence[Route]) -> list[BaseRoute]:
    """Return one Starlette route for each path, in the order in which the paths first appear."""
    order = {path: index for index, path in enumerate(dict.fromkeys(each.path for each in routes))}
    by_path = groupby(sorted(routes, key=lambda each: order[each.path]), key=lambda each: each.path)
    return [
        StarletteRoute(
            prefix + path,
            HttpEndpoint(api, prefix + path, own := list(group)),
            methods=_fixed_path_methods(own, routes),
        )
        for path, group in by_path
    ]


def _fixed_path_methods(own: Sequence[Route], routes: Sequence[Route]) -> list[str] | None:
    """Return the methods that a fixed path answers if a parameterized one also matches it.

    For ``/tasks/watch``, which ``/tasks/{user}`` matches too, these are all except those of the parameterized path.
    Return None if nothing else matches, or if both define the same method.
    """
    path, methods = own[0].path, {route.method for route in own}
    wider = [each for each in routes if each.path != path and _pattern(each.path).fullmatch(path)]
    wider_methods = {each.method for each in wider}
    return sorted(_METHODS - wider_methods) if wider and not wider_methods & methods else None


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """Return a pattern that matches the paths which this one, perhaps with parameters, stands for."""
    return re.compile(re.sub(r"{\w+}", "[^/]+", path))


class _NotFound:
    """The answer to every path that matches no route: a page for people where pages are, JSON for all others."""

    def __init__(self, api: ApiContext) -> None:
        self._response = route_not_found().response
        self._requests = api.metrics.api_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await deny(receive, send, self._response)
            return
        self._requests.labels("none", "other", "404").inc()
        headers = Headers(scope=scope)
        response = board_files().missing(headers) if _is_for_people(scope, headers) else self._response
        await send({"type": "http.response.start", "status": 404, "headers": response.raw_headers()})
        await send({"type": "http.response.body", "body": response.body})


def _is_for_people(scope: Scope, headers: Headers) -> bool:
    """Return whether a browser opens an address outside the API and the board's files."""
    area = scope["path"].split("/", 2)[1:2]
    return scope["method"] == "GET" and area not in (["api"], ["assets"]) and "text/html" in headers.get("accept", "")
