"""Handlers for users: those who share an organization with the caller, and signing in."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydantic import Field

from taskherd.api.http import search_query, user_tokens
from taskherd.api.http.errors import HTTPError, not_found, unauthorized
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.query_parameters import QueryModel
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.store import directory_queries, tokens
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

log = structlog.get_logger(__name__)

MESSAGE: Final = "Invalid user search query."
KEY_LIFETIME: Final = timedelta(days=7)
"""As in Coder. The end of the token with which the key was requested ends it earlier."""
MAX_TOKENS: Final = 1_000
"""Maximum number of valid tokens of a user beyond which no key is created."""
_MAX_GITHUB_ID: Final = 2**63 - 1


class UsersQuery(QueryModel):
    """Query parameters of the list of users."""

    q: str = Field(
        "",
        description=(
            "Search terms, separated by spaces: `github_com_user_id:<number>`, `search:<part of a name or address>`,"
            " `status:<status>`. A word without a colon is a search. At most 4,096 characters."
        ),
    )


async def list_users(request: RequestContext) -> BufferedResponse:
    """Return the users that match the query; the GitHub Action looks a user up by GitHub account."""
    terms = search_query.read(
        request.parameters(UsersQuery).q,
        bare="search",
        allowed=("search", "status", "github_com_user_id"),
        message=MESSAGE,
    )
    users = []
    if terms.get("status", "active") == "active":
        user_filter = directory_queries.UserFilter(
            request.api.settings.api_list_most, _github_id(terms.get("github_com_user_id")), _search(terms)
        )
        rows = await directory_queries.users(request.reader, request.caller.user_id, user_filter)
        users = [user_json(row) for row in rows]
    return json({"users": users, "count": len(users)})


async def get(request: RequestContext) -> BufferedResponse:
    """Return one user."""
    return json(user_json(await get_or_404(request)))


async def organizations(request: RequestContext) -> BufferedResponse:
    """Return the organizations that a user shares with the caller."""
    row = await get_or_404(request)
    rows = await directory_queries.organizations_of(request.reader, request.caller.user_id, row["id"])
    return json([organization_json(each, default=index == 0) for index, each in enumerate(rows)])


async def key(request: RequestContext) -> BufferedResponse:
    """Create a token of the caller, or of a user of whose organizations the caller is an admin, and return it once."""
    caller, user = request.caller, await get_or_404(request)
    text, parsed = user_tokens.generate()
    token = tokens.NewToken(parsed.id, parsed.secret_hash, user["id"], caller.token_id)
    async with transaction(request.api.engine) as connection:
        if not await tokens.issue(connection, token, KEY_LIFETIME):
            raise not_found() if await tokens.is_valid(connection, caller.token_id) else unauthorized()
        if await tokens.depth(connection, token.id) > tokens.MAX_DEPTH:
            raise HTTPError(409, "The key was issued from too many others.", "Request it with the token of the first.")
        if await tokens.count_valid(connection, user["id"]) > MAX_TOKENS:
            raise HTTPError(409, "Too many tokens are valid.", f"A user may have {MAX_TOKENS}; revoke unused ones.")
    log.info(
        "key created",
        key_id=token.id,
        user=user["username"],
        user_id=str(user["id"]),
        issued_from=caller.token_id,
        issued_by=caller.username,
        issued_by_id=str(caller.user_id),
    )
    return json({"key": text}, 201)


async def own_organizations(request: RequestContext) -> BufferedResponse:
    """Return the caller's organizations, the default one first."""
    caller = request.caller.user_id
    rows = await directory_queries.organizations_of(request.reader, caller, caller)
    return json([organization_json(each, default=index == 0) for index, each in enumerate(rows)])


async def first(_request: RequestContext) -> BufferedResponse:
    """Confirm that a first user exists, which clients check before they sign in."""
    return json({"message": "The initial user has already been created!"})


async def get_or_404(request: RequestContext) -> Row:
    """Return the row of the user that the path names. Raise a 404 if the caller may not see it."""
    user = request.user()
    row = None
    if not isinstance(user, str) or is_searchable(user):
        row = await directory_queries.user(request.reader, request.caller.user_id, user)
    if row is None:
        raise not_found()
    return row


def user_json(row: Row) -> dict[str, Any]:
    """Return the JSON of a user."""
    return {
        "id": row["id"],
        "username": row["username"],
        "name": row["name"],
        "email": row["email"],
        "avatar_url": row["avatar_url"],
        "status": "active",
        "login_type": "token",
        "organization_ids": row["organization_ids"],
        "roles": [],
        "has_ai_seat": False,
    }


def organization_json(row: Row, *, default: bool) -> dict[str, Any]:
    """Return the JSON of an organization."""
    return {
        "id": row["id"],
        "name": row["name"],
        "display_name": row["display_name"],
        "description": "",
        "icon": "",
        "is_default": default,
        "default_org_member_roles": [],
    }


def _search(terms: Mapping[str, str]) -> str | None:
    text = terms.get("search")
    if text is not None and not is_searchable(text):
        raise search_query.invalid_value(MESSAGE, "search", "expected printable characters")
    return text


def _github_id(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= _MAX_GITHUB_ID and len(text) <= 20):  # noqa: PLR2004
        raise search_query.invalid_value(MESSAGE, "github_com_user_id", "expected a whole number")
    return int(text)
