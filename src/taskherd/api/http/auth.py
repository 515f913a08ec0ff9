"""Authentication of requests, by the token of a user or of an agent, and their rate limits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final

from taskherd.api.http import user_tokens
from taskherd.api.http.errors import rate_limited, unauthorized
from taskherd.api.http.route import Auth
from taskherd.messages.agent_tokens import verify_agent_token

if TYPE_CHECKING:
    from starlette.types import Scope

    from taskherd.api.context import ApiContext, RequestContext

SESSION_TOKEN: Final = "coder-session-token"  # noqa: S105 - a header's name
_BEARER: Final = "bearer "


async def authenticate(request: RequestContext, auth: Auth, scope: Scope) -> None:
    """Authenticate a request and record its caller. Raise a 401, or a 429 if the caller exceeds its rate.

    A failed token lookup counts against the rate limit of the client address, which limits how many guesses reach the
    database.
    """
    api = request.api
    if auth is Auth.NONE:
        return
    text = token_of(request.headers)
    if auth is Auth.AGENT:
        request.agent = verify_agent_token(api.settings.secret_keys, text)
        if request.agent is None:
            raise unauthorized()
        _charge(api, request.agent)
        return
    address = ("address", (scope.get("client") or ("", 0))[0])
    token = user_tokens.parse(text)
    caller = api.authenticator.cached(token) if token else None
    if caller is None:
        wait = api.rate_limiter.retry_after(address)
        if wait > 0:
            raise rate_limited(wait)
        caller = await api.authenticator.authenticate(token) if token else None
    if caller is None:
        api.rate_limiter.acquire(address)
        raise unauthorized()
    _charge(api, caller.user_id)
    request.set_caller(caller)


async def token_is_valid(request: RequestContext) -> bool:
    """Return whether the user's token of a long-running request is still valid.

    Raise ``Unavailable`` if the database cannot be reached.
    """
    token = user_tokens.parse(token_of(request.headers))
    return token is not None and await request.api.authenticator.authenticate(token) is not None


def token_of(headers: Mapping[str, str]) -> str:
    """Return the token of a request, or "" without one."""
    token = headers.get(SESSION_TOKEN, "")
    if not token:
        text = headers.get("authorization", "")
        if text[: len(_BEARER)].lower() == _BEARER:
            token = text[len(_BEARER) :]
    return token.strip()


def _charge(api: ApiContext, key: Hashable) -> None:
    wait = api.rate_limiter.acquire(key)
    if wait > 0:
        raise rate_limited(wait)
