"""People: whom the caller shares an organization with, and how somebody signs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from taskherd.api.http import search_query
from taskherd.api.http.endpoint import token_of
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.responses import BufferedResponse, json, not_found
from taskherd.api.query import QueryModel
from taskherd.store import directory_queries

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row

MESSAGE: Final = "Invalid user search query."
_MAX_GITHUB_ID: Final = 2**63 - 1


class UsersQuery(QueryModel):
    """The parameters of the list of users."""

    q: str = Field(
        "", description="Terms github_com_user_id:<number>, search:<part of a name or address>, status:<status>."
    )


async def list_users(request: RequestContext) -> BufferedResponse:
    """The people that the query names; the GitHub Action looks one up by their GitHub account."""
    text = search_query.read(
        request.parameters(UsersQuery).q,
        bare="search",
        known=("search", "status", "github_com_user_id"),
        message=MESSAGE,
    )
    rows = []
    if text.get("status", "active") == "active":
        wanted = directory_queries.UserFilter(
            request.api.settings.api_list_most, _github_id(text.get("github_com_user_id")), _part(text)
        )
        rows = [
            user_json(row) for row in await directory_queries.people(request.api.reader, request.caller.user_id, wanted)
        ]
    return json({"users": rows, "count": len(rows)})


async def get(request: RequestContext) -> BufferedResponse:
    """One of them."""
    return json(user_json(await get_or_404(request)))


async def organizations(request: RequestContext) -> BufferedResponse:
    """The organizations of a person."""
    row = await get_or_404(request)
    rows = await directory_queries.organizations_of(request.api.reader, request.caller.user_id, row["id"])
    return json([organization_json(each, default=place == 0) for place, each in enumerate(rows)])


async def key(request: RequestContext) -> BufferedResponse:
    """The token that was presented, once more: signing in begets no second one that would outlive its revocation."""
    if request.user() != request.caller.user_id:
        raise not_found()
    return json({"key": token_of(request.headers)}, 201)


async def first(_ask: RequestContext) -> BufferedResponse:
    """There is a first user: clients ask before they sign somebody in."""
    return json({"message": "The initial user has already been created!"})


async def get_or_404(request: RequestContext) -> Row:
    """The person that the path names; raises the 404 where there is none for the caller."""
    user = request.user()
    row = None
    if not isinstance(user, str) or is_searchable(user):
        row = await directory_queries.person(request.api.reader, request.caller.user_id, user)
    if row is None:
        raise not_found()
    return row


def user_json(row: Row) -> dict[str, Any]:
    """A person as clients are told of them."""
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
    }


def organization_json(row: Row, *, default: bool) -> dict[str, Any]:
    """An organization as clients are told of it."""
    told = {"id": row["id"], "name": row["name"], "display_name": row["display_name"]}
    return {**told, "description": "", "icon": "", "is_default": default}


def _part(said: Any) -> str | None:
    part: str | None = said.get("search")
    if part is not None and not is_searchable(part):
        raise search_query.bad_value(MESSAGE, "search", "printable characters were expected")
    return part


def _github_id(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= _MAX_GITHUB_ID and len(text) <= 20):  # noqa: PLR2004
        raise search_query.bad_value(MESSAGE, "github_com_user_id", "a whole number was expected")
    return int(text)
