"""People: whom the caller shares an organization with, and how somebody signs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from taskherd.api.http import search_query
from taskherd.api.http.endpoint import token_of
from taskherd.api.http.ids import findable
from taskherd.api.http.responses import Answer, json, not_found
from taskherd.api.query import QueryModel
from taskherd.store import directory_queries

if TYPE_CHECKING:
    from taskherd.api.context import Ask
    from taskherd.store.reader import Row

MESSAGE: Final = "Invalid user search query."
_GITHUB_ID_MOST: Final = 2**63 - 1


class UsersQuery(QueryModel):
    """The parameters of the list of users."""

    q: str = Field(
        "", description="Terms github_com_user_id:<number>, search:<part of a name or address>, status:<status>."
    )


async def listed(ask: Ask) -> Answer:
    """The people that the query names; the GitHub Action looks one up by their GitHub account."""
    said = search_query.read(
        ask.parameters(UsersQuery).q, bare="search", known=("search", "status", "github_com_user_id"), message=MESSAGE
    )
    rows = []
    if said.get("status", "active") == "active":
        wanted = directory_queries.People(
            ask.house.settings.api_list_most, _github_id(said.get("github_com_user_id")), _part(said)
        )
        rows = [shown(row) for row in await directory_queries.people(ask.house.reader, ask.caller.user_id, wanted)]
    return json({"users": rows, "count": len(rows)})


async def get(ask: Ask) -> Answer:
    """One of them."""
    return json(shown(await found(ask)))


async def organizations(ask: Ask) -> Answer:
    """The organizations of a person."""
    row = await found(ask)
    rows = await directory_queries.organizations_of(ask.house.reader, ask.caller.user_id, row["id"])
    return json([organization(each, default=place == 0) for place, each in enumerate(rows)])


async def key(ask: Ask) -> Answer:
    """The token that was presented, once more: signing in begets no second one that would outlive its revocation."""
    if ask.user() != ask.caller.user_id:
        raise not_found()
    return json({"key": token_of(ask.headers)}, 201)


async def first(_ask: Ask) -> Answer:
    """There is a first user: clients ask before they sign somebody in."""
    return json({"message": "The initial user has already been created!"})


async def found(ask: Ask) -> Row:
    """The person that the path names; raises the 404 where there is none for the caller."""
    user = ask.user()
    row = None
    if not isinstance(user, str) or findable(user):
        row = await directory_queries.person(ask.house.reader, ask.caller.user_id, user)
    if row is None:
        raise not_found()
    return row


def shown(row: Row) -> dict[str, Any]:
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


def organization(row: Row, *, default: bool) -> dict[str, Any]:
    """An organization as clients are told of it."""
    told = {"id": row["id"], "name": row["name"], "display_name": row["display_name"]}
    return {**told, "description": "", "icon": "", "is_default": default}


def _part(said: Any) -> str | None:
    part: str | None = said.get("search")
    if part is not None and not findable(part):
        raise search_query.bad_value(MESSAGE, "search", "printable characters were expected")
    return part


def _github_id(said: str | None) -> int | None:
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and int(said[:20]) <= _GITHUB_ID_MOST and len(said) <= 20):  # noqa: PLR2004
        raise search_query.bad_value(MESSAGE, "github_com_user_id", "a whole number was expected")
    return int(said)
