"""Process one request: method, authentication, rate limit, body, handler, response. Every error becomes JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import structlog

from taskherd.api.context import LSN, SAFE, ApiContext, RequestContext
from taskherd.api.http import bodies, compression, errors, unread
from taskherd.api.http.auth import authenticate, authenticate_again
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Route
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.observability.tracing import extract
from taskherd.store.engine import DataError

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

log = structlog.get_logger(__name__)

MAX_QUERY_PARAMETERS: Final = 100
SLOW_BODY: Final = 0.5
"""Seconds; if a body takes longer, the token is checked again before the request takes effect."""
_CLIENT_CLOSED_REQUEST: Final = 499
"""The status in logs and metrics of a request whose client disconnected (nginx uses the same)."""


class HttpEndpoint:
    """All methods of one path, as an ASGI application."""

    def __init__(self, api: ApiContext, path: str, routes: Sequence[Route]) -> None:
        self._api = api
        self._path = path
        self._routes = {route.method: route for route in routes}
        if "GET" in self._routes:
            self._routes.setdefault("HEAD", self._routes["GET"])
        self._counters: dict[tuple[str, int], Callable[[], None]] = {}
        """What counts a request, by its method and status: the metric would look it up by their texts each time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        metrics = self._api.metrics
        metrics.api_in_flight.inc()
        method: str = scope["method"]
        request = request_context(self._api, scope)
        status = _CLIENT_CLOSED_REQUEST
        try:
            response = await self._respond(request, scope, receive)
            if isinstance(response, BufferedResponse):
                if not request.waits:
                    metrics.api_seconds.observe(time.perf_counter() - started)
                status = response.status
                status = await self._send(request, response, send)
            else:
                status = response.status_code
                await response(scope, receive, send)
        except bodies.ClientDisconnected:
            log.debug("client disconnected", method=method, route=self._path)
        finally:
            metrics.api_in_flight.dec()
            self._count(method if method in self._routes else "other", status)
            self._log(request, method, status, time.perf_counter() - started)

    async def _respond(self, request: RequestContext, scope: Scope, receive: Receive) -> BufferedResponse | Response:
        """Return the response; every exception except ``ClientDisconnected`` becomes an error response."""
        try:
            route = self._routes.get(request.method)
            if route is None:
                return errors.method_not_allowed(sorted(self._routes)).response
            request.query_model = route.query
            await authenticate(request, route.auth, scope)
            bodies.check_length(request.headers, route.max_body)
            with route.admit(request):
                if route.body is not None:
                    request.body = bodies.parse(await self._read_body(route, request, scope, receive), route.body)
                return await self._handle(route, request)
        except HTTPError as error:
            return error.response
        except (Unavailable, Retry, Misconfigured) as error:
            log.warning("dependency unavailable", route=self._path, reason=str(error))
            return errors.unavailable("The service is temporarily unavailable.").response
        except DataError:
            return HTTPError(400, "The request contains a value that the database cannot store.").response
        except bodies.ClientDisconnected:
            raise
        except Exception:
            self._api.metrics.api_crashes.inc()
            log.exception("request failed", method=request.method, route=self._path)
            return errors.internal_error().response

    async def _read_body(self, route: Route, request: RequestContext, scope: Scope, receive: Receive) -> bytes:
        """Return the body. Raise a 401 if the caller's token ended while it came slowly."""
        began = time.monotonic()
        body = await bodies.read(receive, self._api.settings.api_read_timeout, route.max_body)
        if time.monotonic() - began > SLOW_BODY:
            await authenticate_again(request, route.auth, scope)
        return body

    async def _handle(self, route: Route, request: RequestContext) -> BufferedResponse | Response:
        """Return the handler's response, with the position of what it wrote, compressed if the client accepts that."""
        tracing = self._api.tracing
        with tracing.span("request", parent=extract(request.headers), method=request.method, route=self._path):
            response = await route.handler(request)
            if isinstance(response, BufferedResponse) and (lsn := await request.written_lsn()) is not None:
                response = replace(response, headers={**response.headers, LSN: lsn})
        if route.compressed and isinstance(response, BufferedResponse):
            return await compression.negotiate(response, request.headers)
        return response

    async def _send(self, request: RequestContext, response: BufferedResponse, send: Send) -> int:
        """Send a response, and return its status: a 503 if it is large, and too much of others has not been read yet.

        The response to a change is sent in any case, because the change was made.
        """
        user_id, size = request.charged_to, len(response.body)
        if user_id is None or size <= unread.SMALL:
            await _start(response, send)
            await send({"type": "http.response.body", "body": response.body})
            return response.status
        try:
            async with self._api.unread.hold(user_id, size, may_refuse=request.method in SAFE):
                await _start(response, send)
                await unread.send_and_wait(send, response.body)
        except HTTPError as error:
            response = error.response
            await _start(response, send)
            await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return response.status

    def _count(self, method: str, status: int) -> None:
        count = self._counters.get((method, status))
        if count is None:
            count = self._api.metrics.api_requests.labels(self._path, method, str(status)).inc
            self._counters[method, status] = count
        count()

    def _log(self, request: RequestContext, method: str, status: int, seconds: float) -> None:
        quiet = method in {"GET", "HEAD"} or status in {401, 404, 405, 429}
        if quiet and self._api.settings.log_level != "debug":
            return  # formatting a line that is not printed costs more than rendering a task
        write = log.debug if quiet else log.info
        write(
            "request",
            method=method,
            route=self._path,
            status=status,
            ms=round(seconds * 1000, 1),
            user=request.username,
            **request.log_fields,
        )


def request_context(api: ApiContext, scope: Scope) -> RequestContext:
    """Return the request as handlers receive it. The first of several headers or parameters of one name counts."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return RequestContext(
        api,
        scope.get("method", "GET"),
        scope.get("path_params", {}),
        _query(scope["query_string"]) if scope["query_string"] else {},
        headers,
    )


def _query(raw: bytes) -> Mapping[str, str]:
    """Return the parameters of a query string, or none if there are more than ``MAX_QUERY_PARAMETERS``."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_PARAMETERS)
    except ValueError:
        return {}
    parameters: dict[str, str] = {}
    for name, value in pairs:
        parameters.setdefault(name, value)
    return parameters


async def _start(response: BufferedResponse, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": response.raw_headers()})
