"""What searches for users, templates and workspaces may ask for; what nobody can have is not looked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.context import RequestContext
from taskherd.api.directory import templates, users
from taskherd.api.http import query_parameters
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.workspaces import lists, queries

if TYPE_CHECKING:
    from taskherd.api.http.query_parameters import QueryModel


def request_of(model: type[QueryModel], **query: str) -> RequestContext:
    """Return a request of Alice to an API that has no database to look anything up in."""
    reads = SimpleNamespace(reader=lambda *_: None)
    api = SimpleNamespace(settings=SimpleNamespace(api_list_most=7), reads=reads)
    request = RequestContext(cast("Any", api), "GET", {}, query, {}, query_model=model)
    request.set_caller(Caller(UUID(int=1), "alice", "token"))
    return request


def invalid_field(error: HTTPError) -> str:
    """Return the field that a 400 names."""
    assert error.response.status == 400
    (validation,) = orjson.loads(error.response.body)["validations"]
    field: str = validation["field"]
    return field


@pytest.mark.parametrize(
    ("text", "number"), [(None, None), ("0", 0), (str(2**63 - 1), 2**63 - 1), ("00000000000000000007", 7)]
)
def test_the_number_of_an_account(text: str | None, number: int | None) -> None:
    """It is what the database can keep, in up to 20 digits."""
    assert users._github_id(text) == number


@pytest.mark.parametrize(
    ("q", "field"),
    [
        (f"github_com_user_id:{2**63}", "github_com_user_id"),
        ("github_com_user_id:000000000000000000007", "github_com_user_id"),
        ("github_com_user_id:x", "github_com_user_id"),
        ("github_com_user_id:²", "github_com_user_id"),
        ("search:a\0b", "search"),
        ("name:bob", "name"),
    ],
)
async def test_a_search_for_users_that_is_invalid(q: str, field: str) -> None:
    """It is refused, and names the term."""
    with pytest.raises(HTTPError) as raised:
        await users.list_users(request_of(users.UsersQuery, q=q))
    assert invalid_field(raised.value) == field


async def test_all_users_are_active() -> None:
    """Those of another status are not looked for."""
    response = await users.list_users(request_of(users.UsersQuery, q="status:suspended"))
    assert orjson.loads(response.body) == {"users": [], "count": 0}


@pytest.mark.parametrize(
    ("q", "field"),
    [
        ("name:a\0b", "name"),
        ("exact_name:a\0b", "exact_name"),
        ("has-ai-task:yes", "has-ai-task"),
        ("deprecated:no", "deprecated"),
        ("colour:red", "colour"),
    ],
)
async def test_a_search_for_templates_that_is_invalid(q: str, field: str) -> None:
    """It is refused, and names the term."""
    with pytest.raises(HTTPError) as raised:
        await templates.list_templates(request_of(templates.TemplatesQuery, q=q))
    assert invalid_field(raised.value) == field


@pytest.mark.parametrize("q", ["has-ai-task:false", "has_ai_task:0"])
async def test_a_search_for_workspaces_without_tasks_finds_none(q: str) -> None:
    """All workspaces are of tasks, so none is looked for."""
    response = await lists.list_workspaces(request_of(lists.WorkspacesQuery, q=q))
    assert orjson.loads(response.body) == {"workspaces": [], "count": 0}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "100001"}, "limit"),
        ({"offset": "100001"}, "offset"),
        ({"limit": "-1"}, "limit"),
        ({"q": "name:a\0"}, "name"),
        ({"q": "template:a\0"}, "template"),
        ({"q": "status:a\0"}, "status"),
    ],
)
async def test_workspaces_that_cannot_be_asked_for(query: dict[str, str], field: str) -> None:
    """The request is refused, and names what is invalid in it."""
    with pytest.raises(HTTPError) as raised:
        await lists.list_workspaces(request_of(lists.WorkspacesQuery, **query))
    assert invalid_field(raised.value) == field


@pytest.mark.parametrize(
    ("query", "limit", "offset"),
    [({}, 0, 0), ({"limit": "", "offset": ""}, 0, 0), ({"limit": "100", "offset": "100000"}, 100, 100_000)],
)
def test_a_page_of_builds(query: dict[str, str], limit: int, offset: int) -> None:
    """It has up to 100; without a limit, or with an empty one, it has as many as possible."""
    found = query_parameters.validate(queries.BuildsQuery, query)
    assert (found.limit, found.offset) == (limit, offset)


@pytest.mark.parametrize("query", [{"limit": "101"}, {"offset": "100001"}, {"limit": "-1"}])
def test_a_page_of_builds_that_cannot_be_asked_for(query: dict[str, str]) -> None:
    """The request is refused, and names the parameter."""
    with pytest.raises(HTTPError) as raised:
        query_parameters.validate(queries.BuildsQuery, query)
    assert invalid_field(raised.value) == next(iter(query))
