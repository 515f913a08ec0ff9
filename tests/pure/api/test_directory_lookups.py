"""What lookups and lists of users, organizations, templates and workspaces ask the store for, and how they answer."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.context import RequestContext
from taskherd.api.directory import templates, users
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.tasks import commands
from taskherd.api.workspaces import create, lists, queries
from taskherd.api.workspaces.schemas import NewWorkspace
from taskherd.store import builds, directory_queries, task_queries
from taskherd.store.directory_queries import TemplateFilter, UserFilter
from taskherd.store.task_lists import Listed
from taskherd.store.task_queries import TaskFilter, TaskRef
from tests.pure.api import test_build_documents

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from taskherd.api.context import ApiContext
    from taskherd.api.http.query_parameters import QueryModel
    from taskherd.api.http.responses import BufferedResponse
    from taskherd.api.tasks.schemas import CreateTask

ALICE, BOB, ACME, OTHER, TEMPLATE, VERSION, PRESET, TASK = (UUID(int=number) for number in range(1, 9))
MOST = 7
ORGANIZATION = {"id": ACME, "name": "acme", "display_name": "Acme"}
USER = {
    "id": BOB,
    "username": "bob",
    "name": "Bob",
    "email": "bob@example.com",
    "avatar_url": "/bob.png",
    "organization_ids": [ACME],
}
A_TEMPLATE = {
    "id": TEMPLATE,
    "organization_id": ACME,
    "name": "claude",
    "display_name": "Claude",
    "active_version_id": VERSION,
}
A_VERSION = {
    "id": VERSION,
    "template_id": TEMPLATE,
    "organization_id": ACME,
    "name": "v7",
    "active": True,
    "template_name": "claude",
    "template_display_name": "Claude",
    "template_icon": "/c.svg",
}


class Store:
    """A directory with one of each; every lookup finds it, unless ``empty``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.empty = False
        self.default: UUID | None = ACME
        self.presets: list[dict[str, Any]] = []
        self.ids: list[UUID] = []
        self.api = SimpleNamespace(
            reads=SimpleNamespace(reader=lambda *_: "reader"), settings=SimpleNamespace(api_list_most=MOST)
        )
        found: dict[str, Any] = {
            "users": [USER],
            "user": USER,
            "organization": ORGANIZATION,
            "organizations_of": [ORGANIZATION, {**ORGANIZATION, "id": OTHER, "name": "other"}],
            "templates": [A_TEMPLATE],
            "template": A_TEMPLATE,
            "template_by_id": A_TEMPLATE,
            "version": A_VERSION,
            "version_of": A_VERSION,
        }
        for name in found:
            monkeypatch.setattr(directory_queries, name, self.answer(name, partial(dict.get, found, name)))
        monkeypatch.setattr(directory_queries, "presets", self.answer("presets", lambda: self.presets))
        monkeypatch.setattr(task_queries, "default_organization_id", self._default_organization_id)
        monkeypatch.setattr(task_queries, "organization_id", self.answer("organization id", lambda: OTHER))
        monkeypatch.setattr(task_queries, "user_id", self.answer("user id", lambda: BOB))
        monkeypatch.setattr(task_queries, "find_id", self.answer("task", lambda: TASK))
        monkeypatch.setattr(task_queries, "task_ids", self._task_ids)
        build = test_build_documents.row()
        monkeypatch.setattr(builds, "of_task", self.answer("of task", lambda: build))
        monkeypatch.setattr(builds, "of_tasks", self.answer("of tasks", lambda: [build]))
        monkeypatch.setattr(builds, "latest_of_workspace", self.answer("latest", lambda: build))
        monkeypatch.setattr(builds, "all_of_task", self.answer("all", lambda: [build]))
        monkeypatch.setattr(builds, "app_statuses", self.answer("statuses", list))

    def answer(self, name: str, found: Callable[[], Any]) -> Callable[..., Awaitable[Any]]:
        """Return a query that finds something of the caller."""

        async def query(reader: object, *arguments: Any) -> Any:
            assert reader == "reader"
            self.calls.append((name, *arguments))
            return None if self.empty else found()

        return query

    def request(self, model: type[QueryModel] | None = None, body: Any = None, **params: str) -> RequestContext:
        """Return a request of Alice with these parameters of the path, and ``q`` and others of the query."""
        query: dict[str, str] = {name: params.pop(name) for name in ("q", "limit", "offset") if name in params}
        request = RequestContext(cast("ApiContext", self.api), "GET", params, query, {}, body)
        request.query_model = model or request.query_model
        request.set_caller(Caller(ALICE, "alice", "token"))
        return request

    async def _default_organization_id(self, reader: object, caller: UUID) -> UUID | None:
        assert (reader, caller) == ("reader", ALICE)
        return self.default

    async def _task_ids(self, reader: object, wanted: TaskFilter) -> Sequence[UUID]:
        assert reader == "reader"
        self.calls.append(("task ids", wanted))
        return self.ids


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store."""
    return Store(monkeypatch)


def body_of(response: BufferedResponse, status: int = 200) -> Any:
    """Return the body of a response with this status."""
    assert response.status == status
    return orjson.loads(response.body)


async def problem(answer: Awaitable[BufferedResponse]) -> tuple[int, str | None]:
    """Return the status and the invalid field of an error."""
    with pytest.raises(HTTPError) as raised:
        await answer
    response = raised.value.response
    validations = orjson.loads(response.body).get("validations", [])
    return response.status, validations[0]["field"] if validations else None


@pytest.mark.parametrize(
    ("q", "criteria"),
    [
        ("", UserFilter(MOST, None, None)),
        ("bo", UserFilter(MOST, None, "bo")),
        ("search:bo status:active", UserFilter(MOST, None, "bo")),
        ("github_com_user_id:0", UserFilter(MOST, 0, None)),
        (f"github_com_user_id:{2**63 - 1}", UserFilter(MOST, 2**63 - 1, None)),
        ("github_com_user_id:00000000000000000007", UserFilter(MOST, 7, None)),
        ("github_com_user_id:7 bo", UserFilter(MOST, 7, "bo")),
    ],
)
async def test_users_are_found_by_name_or_account(store: Store, q: str, criteria: UserFilter) -> None:
    """All users are active; those of another status are not looked for."""
    found = body_of(await users.list_users(store.request(users.UsersQuery, q=q)))
    assert (found["count"], [each["username"] for each in found["users"]]) == (1, ["bob"])
    assert store.calls == [("users", ALICE, criteria)]
    nobody = body_of(await users.list_users(store.request(users.UsersQuery, q="status:suspended")))
    assert (nobody, len(store.calls)) == ({"users": [], "count": 0}, 1)


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
async def test_a_user_that_cannot_be_is_not_looked_for(store: Store, q: str, field: str) -> None:
    """What is invalid is named."""
    assert await problem(users.list_users(store.request(users.UsersQuery, q=q))) == (400, field)
    assert store.calls == []


async def test_a_user_is_shown_with_what_clients_know(store: Store) -> None:
    """By name or id; ``me`` is the caller."""
    expected = {
        **USER,
        "id": str(BOB),
        "organization_ids": [str(ACME)],
        "status": "active",
        "login_type": "token",
        "roles": [],
        "has_ai_seat": False,
    }
    for text, user in (("bob", "bob"), (str(BOB), BOB), ("me", ALICE), ("Alice", ALICE)):
        assert body_of(await users.get(store.request(user=text))) == expected
        assert store.calls[-1] == ("user", ALICE, user)
    assert await problem(users.get(store.request(user="a\0b"))) == (404, None)
    store.empty = True
    assert await problem(users.get(store.request(user="bob"))) == (404, None)
    assert len(store.calls) == 5


async def test_the_first_organization_is_the_default_one(store: Store) -> None:
    """Of the caller, and of those that another user shares with the caller."""
    expected = [
        {
            "id": str(identifier),
            "name": name,
            "display_name": "Acme",
            "description": "",
            "icon": "",
            "is_default": default,
            "default_org_member_roles": [],
        }
        for identifier, name, default in ((ACME, "acme", True), (OTHER, "other", False))
    ]
    assert body_of(await users.own_organizations(store.request())) == expected
    assert store.calls == [("organizations_of", ALICE, ALICE)]
    assert body_of(await users.organizations(store.request(user="bob"))) == expected
    assert store.calls[-1] == ("organizations_of", ALICE, BOB)


@pytest.mark.parametrize(
    ("text", "default", "asked"),
    [("default", OTHER, OTHER), ("DEFAULT", OTHER, OTHER), ("Acme", ACME, "Acme"), (str(ACME), ACME, ACME)],
)
async def test_an_organization_is_found_by_name_or_id(
    store: Store, text: str, default: UUID, asked: UUID | str
) -> None:
    """It says whether it is the caller's default one."""
    store.default = default
    found = body_of(await templates.organization(store.request(organization=text)))
    assert (found["name"], found["is_default"]) == ("acme", default == ACME)
    assert store.calls == [("organization", ALICE, asked)]
    assert await templates.organization_id(store.request(organization=text)) == ACME


@pytest.mark.parametrize(("text", "default", "lookups"), [("a\0b", ACME, 0), ("default", None, 0), ("none", ACME, 1)])
async def test_an_organization_that_is_not_there(store: Store, text: str, default: UUID | None, lookups: int) -> None:
    """One that cannot be is not looked up."""
    store.default, store.empty = default, True
    assert await problem(templates.organization(store.request(organization=text))) == (404, None)
    assert len(store.calls) == lookups


@pytest.mark.parametrize(
    ("q", "criteria"),
    [
        ("", TemplateFilter(MOST, None, None, None)),
        ("clau", TemplateFilter(MOST, None, None, "clau")),
        ("name:clau exact_name:claude", TemplateFilter(MOST, None, "claude", "clau")),
        ("organization:other", TemplateFilter(MOST, OTHER, None, None)),
        ("organization:default has-ai-task:1 deprecated:f", TemplateFilter(MOST, ACME, None, None)),
        ("has-ai-task:t deprecated:0", TemplateFilter(MOST, None, None, None)),
        ("has-ai-task:true deprecated:false", TemplateFilter(MOST, None, None, None)),
    ],
)
async def test_which_templates_are_listed(store: Store, q: str, criteria: TemplateFilter) -> None:
    """All of the caller's organizations by default; all run tasks, and none is deprecated."""
    (found,) = body_of(await templates.list_templates(store.request(templates.TemplatesQuery, q=q)))
    assert (found["name"], found["active_user_count"], found["max_port_share_level"]) == ("claude", -1, "owner")
    assert store.calls[-1] == ("templates", ALICE, criteria)


@pytest.mark.parametrize(
    "q", ["has-ai-task:false", "has-ai-task:0", "has-ai-task:f", "deprecated:true", "deprecated:1", "deprecated:t"]
)
async def test_templates_that_there_are_none_of(store: Store, q: str) -> None:
    """They are not looked for."""
    assert body_of(await templates.list_templates(store.request(templates.TemplatesQuery, q=q))) == []
    assert store.calls == []


async def test_the_templates_of_an_organization(store: Store) -> None:
    """None, if another one is searched for."""
    request = store.request(templates.TemplatesQuery, organization="acme", q="organization:default")
    assert len(body_of(await templates.list_of_organization(request))) == 1
    assert store.calls[-1] == ("templates", ALICE, TemplateFilter(MOST, ACME, None, None))
    request = store.request(templates.TemplatesQuery, organization="acme", q="organization:other")
    assert body_of(await templates.list_of_organization(request)) == []
    request = store.request(templates.TemplatesQuery, organization="acme")
    assert len(body_of(await templates.list_of_organization(request))) == 1
    assert store.calls[-1] == ("templates", ALICE, TemplateFilter(MOST, ACME, None, None))


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
async def test_a_search_for_templates_that_is_invalid(store: Store, q: str, field: str) -> None:
    """The term is named."""
    answer = templates.list_templates(store.request(templates.TemplatesQuery, q=q))
    assert await problem(answer) == (400, field)


async def test_a_template_is_found_by_name_or_id(store: Store) -> None:
    """In its organization, or by its id alone."""
    for text, asked in (("claude", "claude"), (str(TEMPLATE), TEMPLATE)):
        found = body_of(await templates.get(store.request(organization="acme", template=text)))
        assert (found["id"], found["deprecated"]) == (str(TEMPLATE), False)
        assert store.calls[-1] == ("template", ALICE, ACME, asked)
    assert body_of(await templates.by_id(store.request(template=str(TEMPLATE))))["name"] == "claude"
    assert store.calls[-1] == ("template_by_id", ALICE, TEMPLATE)
    count = len(store.calls)
    assert await problem(templates.by_id(store.request(template="claude"))) == (404, None)
    assert len(store.calls) == count
    assert await problem(templates.get(store.request(organization="acme", template="a\0b"))) == (404, None)
    store.empty = True
    assert await problem(templates.by_id(store.request(template=str(TEMPLATE)))) == (404, None)


@pytest.mark.parametrize("active", [True, False])
async def test_a_version_of_a_template(store: Store, monkeypatch: pytest.MonkeyPatch, *, active: bool) -> None:
    """By its id, or by its name in the template; one that is not active is archived."""
    row = {**A_VERSION, "active": active}
    monkeypatch.setattr(directory_queries, "version", store.answer("version", lambda: row))
    found = body_of(await templates.version(store.request(version=str(VERSION))))
    assert store.calls == [("version", ALICE, VERSION)]
    assert found == {
        "id": str(VERSION),
        "template_id": str(TEMPLATE),
        "organization_id": str(ACME),
        "name": "v7",
        "message": "",
        "readme": "",
        "archived": not active,
        "has_external_agent": False,
        "job": {
            "id": str(VERSION),
            "status": "succeeded",
            "organization_id": str(ACME),
            "type": "template_version_import",
            "tags": {},
            "queue_position": 0,
            "queue_size": 0,
            "logs_overflowed": False,
            "input": {"template_version_id": str(VERSION)},
            "metadata": {
                "template_version_name": "v7",
                "template_id": str(TEMPLATE),
                "template_name": "claude",
                "template_display_name": "Claude",
                "template_icon": "/c.svg",
            },
        },
    }
    request = store.request(organization="acme", template="claude", version="v7")
    assert body_of(await templates.version_by_name(request))["archived"] is False
    assert store.calls[-1] == ("version_of", ALICE, TEMPLATE, "v7")
    for answer in (
        templates.version(store.request(version="x")),
        templates.version_by_name(store.request(organization="acme", template="claude", version="a\0b")),
    ):
        assert await problem(answer) == (404, None)


async def test_the_parameters_of_a_version(store: Store) -> None:
    """The prompt first, then what presets set, by name, with the values of the default one; every value is text."""
    store.presets = [
        {"id": PRESET, "name": "big", "is_default": False, "parameters": '{"size":"big","b":2,"AI Prompt":"x"}'},
        {"id": PRESET, "name": "small", "is_default": True, "parameters": '{"a":[1],"size":"small"}'},
        {"id": PRESET, "name": "none", "is_default": False, "parameters": None},
    ]
    shown = body_of(await templates.rich_parameters(store.request(version=str(VERSION))))
    assert [(each["name"], each["default_value"], each["mutable"], each["form_type"]) for each in shown] == [
        ("AI Prompt", "", True, "textarea"),
        ("a", "[1]", False, "input"),
        ("b", "", False, "input"),
        ("size", "", False, "input"),
    ]
    texts = ["The prompt of the task.", *["Set by presets."] * 3]
    assert [each["description"] for each in shown] == [each["description_plaintext"] for each in shown] == texts
    presets = body_of(await templates.presets(store.request(version=str(VERSION))))
    assert [(each["Name"], each["Default"], each["Parameters"]) for each in presets] == [
        (
            "big",
            False,
            [
                {"Name": "AI Prompt", "Value": "x"},
                {"Name": "b", "Value": "2"},
                {"Name": "size", "Value": "big"},
            ],
        ),
        ("small", True, [{"Name": "a", "Value": "[1]"}, {"Name": "size", "Value": "small"}]),
        ("none", False, []),
    ]
    assert await problem(templates.presets(store.request(version="x"))) == (404, None)
    store.empty = True
    assert await problem(templates.rich_parameters(store.request(version=str(VERSION)))) == (404, None)


@pytest.mark.parametrize(
    ("q", "fields"),
    [
        ("", {}),
        ("fix", {"name": "fix"}),
        ("name:fix", {"name": "fix"}),
        ("bob/fix", {"name": "fix", "owner": BOB}),
        ("bob/", {"owner": BOB}),
        ("owner:me name:bob/fix", {"name": "fix", "owner": ALICE}),
        ("owner:me", {"owner": ALICE}),
        ("organization:default", {"organization": ACME}),
        ("template:Claude", {"listed": Listed(template="claude")}),
        ("status:running", {"workspace_status": "running"}),
        ("has-ai-task:true", {}),
        ("has_ai_task:1", {}),
        ("has-ai-task:t", {}),
    ],
)
async def test_which_workspaces_are_listed(store: Store, q: str, fields: dict[str, Any]) -> None:
    """Those of tasks, which are all that there are, by what clients search by."""
    found = body_of(await lists.list_workspaces(store.request(lists.WorkspacesQuery, q=q)))
    assert found == {"workspaces": [], "count": 0}
    assert store.calls[-1] == ("task ids", TaskFilter(ALICE, MOST, **fields))


@pytest.mark.parametrize("q", ["has-ai-task:false", "has_ai_task:0"])
async def test_there_are_no_other_workspaces(store: Store, q: str) -> None:
    """They are not looked for."""
    store.ids = [TASK]
    found = body_of(await lists.list_workspaces(store.request(lists.WorkspacesQuery, q=q)))
    assert (found, store.calls) == ({"workspaces": [], "count": 0}, [])


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, range(7)),
        ({"limit": "0", "offset": ""}, range(7)),
        ({"limit": "2"}, range(2)),
        ({"limit": "2", "offset": "3"}, range(3, 5)),
        ({"offset": "6"}, range(6, 7)),
        ({"limit": "100000", "offset": "5"}, range(5, 7)),
        ({"offset": "7"}, range(0)),
    ],
)
async def test_workspaces_have_pages(store: Store, query: dict[str, str], page: range) -> None:
    """Of as many as a list has at most, and how many these are; those of an empty page are not read."""
    store.ids = [UUID(int=number) for number in range(9)]
    found = body_of(await lists.list_workspaces(store.request(lists.WorkspacesQuery, **query)))
    assert (found["count"], len(found["workspaces"])) == (MOST, min(1, len(page)))
    read = [("of tasks", ALICE, [UUID(int=number) for number in page])] if page else []
    assert store.calls[1:] == read


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
async def test_workspaces_that_cannot_be_asked_for(store: Store, query: dict[str, str], field: str) -> None:
    """What is invalid is named."""
    answer = lists.list_workspaces(store.request(lists.WorkspacesQuery, **query))
    assert await problem(answer) == (400, field)


async def test_a_workspace_is_found_by_user_and_name(store: Store) -> None:
    """Of a user by name or id; what no task can be called is not looked up."""
    for text, user in (("bob", "bob"), (str(BOB), BOB), ("me", ALICE)):
        found = body_of(await queries.workspace_by_name(store.request(user=text, workspace="fix-it")))
        assert found["name"] == "fix-it"
        assert store.calls[-3:-1] == [("task", TaskRef(ALICE, user, "fix-it")), ("of task", ALICE, TASK)]
        assert store.calls[-1] == ("statuses", test_build_documents.TASK, 3, 100)
    count = len(store.calls)
    for user_text, name in (("bob", "a\0b"), ("a\0b", "fix-it")):
        answer = queries.workspace_by_name(store.request(user=user_text, workspace=name))
        assert await problem(answer) == (404, None)
    assert len(store.calls) == count
    store.empty = True
    assert await problem(queries.workspace_by_name(store.request(user="me", workspace="fix-it"))) == (404, None)


async def test_a_workspace_is_found_by_id(store: Store) -> None:
    """What is no id is not looked up; what an app has reported is read only if there is an agent."""
    workspace = str(test_build_documents.WORKSPACE)
    assert body_of(await queries.workspace(store.request(id=workspace)))["id"] == workspace
    assert [call[0] for call in store.calls] == ["latest", "statuses"]
    assert store.calls[0][1:] == (ALICE, test_build_documents.WORKSPACE)
    assert await problem(queries.workspace(store.request(id="x"))) == (404, None)
    await queries.full_workspace(store.request(), test_build_documents.row(agent_id=None))
    assert len(store.calls) == 2


@pytest.mark.parametrize(
    ("query", "limit", "offset"),
    [({}, 100, 0), ({"limit": "0"}, 100, 0), ({"limit": "7", "offset": "3"}, 7, 3), ({"limit": "100"}, 100, 0)],
)
async def test_builds_have_pages(store: Store, query: dict[str, str], limit: int, offset: int) -> None:
    """As many as possible by default."""
    request = store.request(queries.BuildsQuery, id=str(test_build_documents.WORKSPACE), **query)
    (build,) = body_of(await queries.list_builds(request))
    assert build["build_number"] == 3
    assert store.calls[-1] == ("all", ALICE, test_build_documents.TASK, limit, offset)
    for invalid in ({"limit": "101"}, {"offset": "100001"}):
        bad = store.request(queries.BuildsQuery, id=str(test_build_documents.WORKSPACE), **invalid)
        assert await problem(queries.list_builds(bad)) == (400, next(iter(invalid)))


class Creates:
    """The tasks that were created."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[CreateTask] = []
        monkeypatch.setattr(commands, "create_task", self._create_task)

    async def _create_task(self, _request: RequestContext, body: CreateTask) -> Any:
        self.made.append(body)
        return SimpleNamespace(task={"id": str(TASK)})


@pytest.mark.parametrize("name", ["AI Prompt", "ai prompt", "AI_Prompt"])
async def test_a_workspace_is_a_new_task(store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the template's active version unless one is given; its prompt is a parameter."""
    creates = Creates(monkeypatch)
    fields = {"name": "fix-it", "rich_parameter_values": [{"name": name, "value": "Fix it"}]}
    body = NewWorkspace.model_validate({**fields, "template_id": TEMPLATE, "template_version_preset_id": PRESET})
    shown = body_of(await create.for_user(store.request(body=body, user="me")), 201)
    assert shown["name"] == "fix-it"
    assert store.calls[0] == ("template_by_id", ALICE, TEMPLATE)
    (made,) = creates.made
    assert (made.template_version_id, made.template_version_preset_id) == (VERSION, PRESET)
    assert (made.name, made.input) == ("fix-it", "Fix it")
    given = NewWorkspace(template_id=TEMPLATE, template_version_id=OTHER)
    await create.for_user(store.request(body=given, user="me"))
    assert (creates.made[1].template_version_id, creates.made[1].input, creates.made[1].name) == (OTHER, "", None)
    await create.for_user(store.request(body=NewWorkspace(), user="me"))
    assert creates.made[2].template_version_id is None


async def test_a_workspace_in_an_organization(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template must be of that organization."""
    creates = Creates(monkeypatch)
    body = NewWorkspace(template_id=TEMPLATE)
    request = store.request(body=body, organization="acme", user="me")
    assert body_of(await create.in_organization(request), 201)["name"] == "fix-it"
    elsewhere = {**A_TEMPLATE, "organization_id": OTHER}
    monkeypatch.setattr(directory_queries, "template_by_id", store.answer("template", lambda: elsewhere))
    assert await problem(create.in_organization(request)) == (404, None)
    assert body_of(await create.for_user(request), 201)["name"] == "fix-it"
    monkeypatch.setattr(directory_queries, "template_by_id", store.answer("template", lambda: None))
    assert await problem(create.for_user(request)) == (404, None)
    assert len(creates.made) == 2


async def test_a_workspace_has_no_parameter_but_the_prompt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets set the others."""
    creates = Creates(monkeypatch)
    values = [{"name": "AI Prompt", "value": "Fix it"}, {"name": "size", "value": "big"}]
    body = NewWorkspace.model_validate({"template_version_id": VERSION, "rich_parameter_values": values})
    with pytest.raises(HTTPError) as raised:
        await create.for_user(store.request(body=body, user="me"))
    assert orjson.loads(raised.value.response.body) == {
        "message": "Unable to validate parameters.",
        "validations": [
            {"field": "rich_parameter_values", "detail": "The parameter 'size' is set by presets; choose one."}
        ],
    }
    assert creates.made == []
