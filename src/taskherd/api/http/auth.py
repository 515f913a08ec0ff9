"""Authentication of requests, by the token of a user or of an agent, and their rate limits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final

from taskherd.api.http import user_tokens
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import rate_limited, unauthorized
from taskherd.api.http.route import Auth
from taskherd.api.http.sign_in_failures import SignInFailure
from taskherd.messages.agent_tokens import verify_agent_token
from taskherd.store import agent_queries

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Scope

    from taskherd.api.context import ApiContext, RequestContext
    from taskherd.api.http.errors import HTTPError
    from taskherd.api.http.user_tokens import ParsedToken

SESSION_TOKEN: Final = "coder-session-token"  # noqa: S105 - a header's name
COOKIE: Final = "coder_session_token"
_SAFE: Final = frozenset({"GET", "HEAD"})
_BEARER: Final = "bearer "


async def authenticate(request: RequestContext, auth: Auth, scope: Scope) -> None:
    """Authenticate a request and record its caller. Raise a 401, or a 429 if the caller exceeds its rate.

    A connection over which a valid token came is no longer limited as one of a stranger, but counts for the user, or
    for the owner of the agent's task.
    """
    if auth is Auth.NONE:
        return
    holder = await (_authenticate_agent if auth is Auth.AGENT else _authenticate_user)(request, scope)
    if scope.get("client"):
        request.api.connections.authenticated(tuple(scope["client"]), holder)


async def authenticate_again(request: RequestContext, auth: Auth, scope: Scope) -> None:
    """Raise a 401 if the token of an authenticated request has ended meanwhile. This costs nothing of its rate."""
    if auth is Auth.NONE:
        return
    if request.agent is None:
        is_valid = await token_is_valid(request)
    else:
        is_valid = await agent_queries.owner_of_latest_start(request.api.reader, *request.agent) is not None
    if not is_valid:
        raise _failed(request.api, _client(request.api, scope), SignInFailure.REVOKED)


async def _authenticate_agent(request: RequestContext, scope: Scope) -> UUID:
    """Authenticate an agent, and return the owner of its task.

    Its token ends with its task, or with a later start of it: what an agent that should be gone says is not about the
    agent that people see. This is looked up for every request; the rate limit bounds it.
    """
    api = request.api
    token = _token_in_headers(request.headers)
    request.agent = verify_agent_token(api.settings.secret_keys, token)
    if request.agent is None:
        raise _failed(api, _client(api, scope), SignInFailure.UNKNOWN if token else SignInFailure.MISSING)
    wait = api.rate_limits.reports.acquire(request.agent)
    if wait > 0:
        raise rate_limited(wait)
    owner = await agent_queries.owner_of_latest_start(api.reader, *request.agent)
    if owner is None:
        raise _failed(api, _client(api, scope), SignInFailure.REVOKED)
    return owner


async def _authenticate_user(request: RequestContext, scope: Scope) -> UUID:
    """Authenticate a user, and return their id.

    Every failure counts against the rate limit of the client's address, and success never does. Once the address is
    over it, only tokens that are known to be valid are looked up: guessing costs the database nothing, and does not
    shut out others behind the same address.
    """
    api, text = request.api, token_of(request)
    token = user_tokens.parse(text)
    caller = api.authenticator.cached(token) if token else None
    if caller is None:
        caller = await _look_up(api, text, token, _client(api, scope))
    _charge(api, caller.user_id)
    request.set_caller(caller)
    return caller.user_id


async def _look_up(api: ApiContext, text: str, token: ParsedToken | None, client: str) -> Caller:
    """Return the user of a token that is not cached."""
    address = ("address", client)
    wait = api.rate_limits.requests.retry_after(address)
    if wait > 0 and not (token and await api.authenticator.is_known(token)):
        api.sign_in_failures.record(client, SignInFailure.RATE_LIMITED)
        raise rate_limited(wait)
    found = await api.authenticator.authenticate(token) if token else _without_token(text)
    if isinstance(found, SignInFailure):
        api.rate_limits.requests.acquire(address)
        raise _failed(api, client, found)
    return found


def _without_token(text: str) -> SignInFailure:
    return SignInFailure.MALFORMED if text else SignInFailure.MISSING


def _client(api: ApiContext, scope: Scope) -> str:
    return api.client_addresses.client_of(scope)


def _failed(api: ApiContext, client: str, reason: SignInFailure) -> HTTPError:
    """Record a failure, and return the 401; the reason is only logged and counted."""
    api.sign_in_failures.record(client, reason)
    return unauthorized()


async def token_is_valid(request: RequestContext) -> bool:
    """Return whether the user's token of a long-running request is still valid.

    Raise ``Unavailable`` if the database cannot be reached.
    """
    token = user_tokens.parse(token_of(request))
    return token is not None and isinstance(await request.api.authenticator.authenticate(token), Caller)


def token_of(request: RequestContext) -> str:
    """Return the token of a user's request, or "" without one.

    A request that changes nothing, and so also the handshake of a WebSocket, may carry it in a cookie, because a
    browser cannot set headers there. Another site's page can make a browser send the cookie too: it is ignored if the
    request names another origin than the host it was sent to (RFC 6455, section 10.2).
    """
    token = _token_in_headers(request.headers)
    if not token and request.method in _SAFE and _is_same_origin(request.headers):
        token = _cookie(request.headers.get("cookie", ""), COOKIE)
    return token


def _is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a request names no origin, as clients other than browsers do, or that of its own host."""
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def _cookie(text: str, name: str) -> str:
    """Return the value of the first cookie of this name, or ""."""
    for pair in text.split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value.strip().strip('"')
    return ""


def _token_in_headers(headers: Mapping[str, str]) -> str:
    token = headers.get(SESSION_TOKEN, "")
    if not token:
        text = headers.get("authorization", "")
        if text[: len(_BEARER)].lower() == _BEARER:
            token = text[len(_BEARER) :]
    return token.strip()


def _charge(api: ApiContext, key: Hashable) -> None:
    wait = api.rate_limits.requests.acquire(key)
    if wait > 0:
        raise rate_limited(wait)
