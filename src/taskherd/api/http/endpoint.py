"""The way of a request: method, caller, rate, body, handler, answer. Every error leaves here as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import structlog

from taskherd.api.context import ApiContext, RequestContext
from taskherd.api.http import bodies, responses, user_tokens
from taskherd.api.http.responses import BufferedResponse, HTTPError
from taskherd.api.http.route import Auth, Route
from taskherd.errors import Retry, Unavailable
from taskherd.messages.agent_tokens import verify_agent_token
from taskherd.observability.tracing import extract
from taskherd.store.engine import DataError

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

log = structlog.get_logger(__name__)

SESSION_TOKEN = "coder-session-token"  # noqa: S105 - a header's name
MAX_QUERY = 100
"""Parameters in one query string."""
_BEARER = "bearer "


class Endpoint:
    """All methods of one path, as an ASGI application."""

    def __init__(self, api: ApiContext, path: str, routes: Sequence[Route]) -> None:
        self._api = api
        self._path = path
        self._routes = {route.method: route for route in routes}
        if "GET" in self._routes:
            self._routes.setdefault("HEAD", self._routes["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        metrics = self._api.metrics
        metrics.api_in_flight.inc()
        method: str = scope["method"]
        request = request_context(self._api, scope)
        status = 499
        try:
            response = await self._respond(request, scope, receive)
            if isinstance(response, BufferedResponse):
                status = response.status
                await _send(response, send)
                metrics.api_seconds.observe(time.perf_counter() - began)
            else:
                status = response.status_code
                await response(scope, receive, send)
        except bodies.ClientDisconnected:
            log.debug("hung up", method=method, route=self._path)
        finally:
            metrics.api_in_flight.dec()
            known = method if method in self._routes else "other"
            metrics.api_requests.labels(self._path, known, str(status)).inc()
            self._log(request, method, status, time.perf_counter() - began)

    async def _respond(self, request: RequestContext, scope: Scope, receive: Receive) -> BufferedResponse | Response:
        """What to send back, whatever happens."""
        try:
            route = self._routes.get(request.method)
            if route is None:
                return responses.method_not_allowed(sorted(self._routes)).response
            request.query_model = route.query
            await authenticate(request, route.auth, scope)
            bodies.check_length(request.headers, route.max_body)
            if route.body is not None:
                within = self._api.settings.api_read_timeout
                body = await bodies.read(receive, within, route.max_body)
                request.body = bodies.parse(body, route.body)
            tracing = self._api.tracing
            with tracing.span("request", parent=extract(request.headers), method=request.method, route=self._path):
                return await route.handler(request)
        except HTTPError as refusal:
            return refusal.response
        except (Unavailable, Retry) as error:
            log.warning("away", route=self._path, reason=str(error))
            return responses.unavailable("The service is not available at the moment.").response
        except DataError:
            return HTTPError(400, "The request holds a value that can't be taken.").response
        except bodies.ClientDisconnected:
            raise
        except Exception:
            self._api.metrics.api_crashes.inc()
            log.exception("crash", method=request.method, route=self._path)
            return responses.internal_error().response

    def _log(self, request: RequestContext, method: str, status: int, took: float) -> None:
        quiet = method in {"GET", "HEAD"} or status in {401, 404, 405, 429}
        if quiet and self._api.settings.log_level != "debug":
            return  # saying it to nobody would cost more than rendering a task
        note = log.debug if quiet else log.info
        note(
            "request",
            method=method,
            route=self._path,
            status=status,
            ms=round(took * 1000, 1),
            user=request.username,
            **request.log_fields,
        )


def request_context(api: ApiContext, scope: Scope) -> RequestContext:
    """The request as handlers see it; of several headers or parameters of one name the first counts."""
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
    """The parameters of a query string; of too many of them none is taken."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY)
    except ValueError:
        return {}
    told: dict[str, str] = {}
    for name, value in pairs:
        told.setdefault(name, value)
    return told


async def authenticate(request: RequestContext, auth: Auth, scope: Scope) -> None:
    """Find out who asks and let them in, or raise what to tell them.

    A token that must be looked up is paid for by its address when it doesn't hold, so that guessing costs the database
    no more than a bucket allows.
    """
    api = request.api
    if auth is Auth.NONE:
        return
    token = token_of(request.headers)
    address = ("address", (scope.get("client") or ("", 0))[0])
    if auth is Auth.AGENT:
        request.agent = verify_agent_token(api.settings.secret_keys, token)
        if request.agent is None:
            raise responses.unauthorized()
        _charge(api, request.agent)
        return
    presented = user_tokens.parse(token)
    caller = api.authenticator.cached(presented) if presented else None
    if caller is None:
        wait = api.rate_limiter.retry_after(address)
        if wait > 0:
            raise responses.rate_limited(wait)
        caller = await api.authenticator.authenticate(presented) if presented else None
    if caller is None:
        api.rate_limiter.acquire(address)
        raise responses.unauthorized()
    _charge(api, caller.user_id)
    request.set_caller(caller)


def _charge(api: ApiContext, who: object) -> None:
    wait = api.rate_limiter.acquire(who)
    if wait > 0:
        raise responses.rate_limited(wait)


def token_of(headers: Mapping[str, str]) -> str:
    """The token of a request, "" without one."""
    token = headers.get(SESSION_TOKEN, "")
    if not token:
        text = headers.get("authorization", "")
        if text[: len(_BEARER)].lower() == _BEARER:
            token = text[len(_BEARER) :]
    return token.strip()


async def token_is_valid(request: RequestContext) -> bool:
    """Authenticate the user's token of a long request again. Raises Unavailable."""
    parsed = user_tokens.parse(token_of(request.headers))
    return parsed is not None and await request.api.authenticator.authenticate(parsed) is not None


async def _send(response: BufferedResponse, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": response.raw_headers()})
    await send({"type": "http.response.body", "body": response.body})
