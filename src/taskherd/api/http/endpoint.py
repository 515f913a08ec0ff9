"""The way of a request: method, caller, rate, body, handler, answer. Every error leaves here as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import structlog

from taskherd.api.context import Ask, House
from taskherd.api.http import bodies, responses, user_tokens
from taskherd.api.http.responses import Answer, Refusal
from taskherd.api.http.route import Auth, Route
from taskherd.errors import Retry, Unavailable
from taskherd.messages.agent_tokens import spoken_for
from taskherd.observability.tracing import carried
from taskherd.store.engine import DataError

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

log = structlog.get_logger(__name__)

SESSION_TOKEN = "coder-session-token"  # noqa: S105 - a header's name
QUERY_MOST = 100
"""Parameters in one query string."""
_BEARER = "bearer "


class Endpoint:
    """All methods of one path, as an ASGI application."""

    def __init__(self, house: House, path: str, routes: Sequence[Route]) -> None:
        self._house = house
        self._path = path
        self._routes = {route.method: route for route in routes}
        if "GET" in self._routes:
            self._routes.setdefault("HEAD", self._routes["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        metrics = self._house.metrics
        metrics.api_in_flight.inc()
        method: str = scope["method"]
        ask = ask_of(self._house, scope)
        status = 499
        try:
            answer = await self._answer(ask, scope, receive)
            if isinstance(answer, Answer):
                status = answer.status
                await _send(answer, send)
                metrics.api_seconds.observe(time.perf_counter() - began)
            else:
                status = answer.status_code
                await answer(scope, receive, send)
        except bodies.Gone:
            log.debug("hung up", method=method, route=self._path)
        finally:
            metrics.api_in_flight.dec()
            known = method if method in self._routes else "other"
            metrics.api_requests.labels(self._path, known, str(status)).inc()
            self._tell(ask, method, status, time.perf_counter() - began)

    async def _answer(self, ask: Ask, scope: Scope, receive: Receive) -> Answer | Response:
        """What to send back, whatever happens."""
        try:
            route = self._routes.get(ask.method)
            if route is None:
                return responses.wrong_method(sorted(self._routes)).answer
            ask.query_model = route.query
            await admit(ask, route.auth, scope)
            bodies.check_length(ask.headers, route.body_most)
            if route.body is not None:
                within = self._house.settings.api_read_timeout
                body = await bodies.read(receive, within, route.body_most)
                ask.body = bodies.parse(body, route.body)
            tracing = self._house.tracing
            with tracing.span("request", parent=carried(ask.headers), method=ask.method, route=self._path):
                return await route.handler(ask)
        except Refusal as refusal:
            return refusal.answer
        except (Unavailable, Retry) as error:
            log.warning("away", route=self._path, reason=str(error))
            return responses.away("The service is not available at the moment.").answer
        except DataError:
            return Refusal(400, "The request holds a value that can't be taken.").answer
        except bodies.Gone:
            raise
        except Exception:
            self._house.metrics.api_crashes.inc()
            log.exception("crash", method=ask.method, route=self._path)
            return responses.crashed().answer

    def _tell(self, ask: Ask, method: str, status: int, took: float) -> None:
        quiet = method in {"GET", "HEAD"} or status in {401, 404, 405, 429}
        if quiet and self._house.settings.log_level != "debug":
            return  # saying it to nobody would cost more than rendering a task
        note = log.debug if quiet else log.info
        note(
            "request",
            method=method,
            route=self._path,
            status=status,
            ms=round(took * 1000, 1),
            user=ask.username,
            **ask.noted,
        )


def ask_of(house: House, scope: Scope) -> Ask:
    """The request as handlers see it; of several headers or parameters of one name the first counts."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return Ask(
        house,
        scope.get("method", "GET"),
        scope.get("path_params", {}),
        _query(scope["query_string"]) if scope["query_string"] else {},
        headers,
    )


def _query(raw: bytes) -> Mapping[str, str]:
    """The parameters of a query string; of too many of them none is taken."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_MOST)
    except ValueError:
        return {}
    told: dict[str, str] = {}
    for name, value in pairs:
        told.setdefault(name, value)
    return told


async def admit(ask: Ask, auth: Auth, scope: Scope) -> None:
    """Find out who asks and let them in, or raise what to tell them.

    A token that must be looked up is paid for by its address when it doesn't hold, so that guessing costs the database
    no more than a bucket allows.
    """
    house = ask.house
    if auth is Auth.NONE:
        return
    token = token_of(ask.headers)
    address = ("address", (scope.get("client") or ("", 0))[0])
    if auth is Auth.AGENT:
        ask.agent = spoken_for(house.settings.secret_keys, token)
        if ask.agent is None:
            raise responses.signed_out()
        _pay(house, ask.agent)
        return
    presented = user_tokens.presented(token)
    caller = house.callers.remembered(presented) if presented else None
    if caller is None:
        wait = house.rates.wait(address)
        if wait > 0:
            raise responses.too_many(wait)
        caller = await house.callers.who(presented) if presented else None
    if caller is None:
        house.rates.take(address)
        raise responses.signed_out()
    _pay(house, caller.user_id)
    ask.admit(caller)


def _pay(house: House, who: object) -> None:
    wait = house.rates.take(who)
    if wait > 0:
        raise responses.too_many(wait)


def token_of(headers: Mapping[str, str]) -> str:
    """The token of a request, "" without one."""
    token = headers.get(SESSION_TOKEN, "")
    if not token:
        said = headers.get("authorization", "")
        if said[: len(_BEARER)].lower() == _BEARER:
            token = said[len(_BEARER) :]
    return token.strip()


async def _send(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.raw_headers()})
    await send({"type": "http.response.body", "body": answer.body})
