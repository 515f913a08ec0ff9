"""Tenants: who leaves an organization loses its tasks; what exists elsewhere answers as what does not exist."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from taskherd.api.http.route import Auth
from taskherd.api.routes import ROUTES, SOCKETS
from taskherd.api.tasks import sse
from taskherd.messages.agent_tokens import agent_token
from tests.api.test_clients import AGENT, WORKSPACE, expected_build_id, report_idle, socket, start_build
from tests.api.test_open_requests import leave, unfinished_action
from tests.harness.api import ALICE, OTHER, OTHER_TEMPLATE, OTHER_VERSION, VERSION, ApiHarness
from tests.harness.asking import asked
from tests.harness.sse import sse_client
from tests.harness.worker import SECRET

NEW = str(uuid.uuid4())
"""An id that nothing has."""


def answer(response: httpx.Response, *words: str) -> tuple[Any, ...]:
    """Return all that a client sees of a response, without the names that it asked for itself."""
    text = response.text
    for word in words:
        text = text.replace(word, "?")
    headers = {name: value for name, value in response.headers.items() if name not in {"date", "content-length"}}
    return response.status_code, text, sorted(headers.items())


async def foreign_task(api_harness: ApiHarness) -> str:
    """Create an active task of alice with a workspace and an agent, and return its id."""
    task: str = (await api_harness.create(name="secret", input="Do not tell mallory"))["id"]
    await start_build(api_harness, task)
    await report_idle(api_harness, task)
    return task


_ONE = "/tasks/me/{task}"
LOST: tuple[tuple[str, str, Any], ...] = (
    ("GET", _ONE, None),
    ("GET", f"{_ONE}?wait=1s", None),
    ("GET", f"{_ONE}/logs", None),
    ("GET", f"{_ONE}/logs/watch", None),
    ("GET", f"{_ONE}/events", None),
    ("GET", f"{_ONE}/explain", None),
    ("GET", f"{_ONE}/durations", None),
    ("GET", f"{_ONE}/watch", None),
    ("GET", f"{_ONE}/watch?logs=9", None),
    ("POST", f"{_ONE}/send", {"input": "And now?"}),
    ("GET", f"{_ONE}/requests", None),
    ("POST", f"{_ONE}/requests/{{request}}/answer", {"text": "Yes"}),
    ("PATCH", f"{_ONE}/input", {"input": "Something else"}),
    ("PATCH", f"{_ONE}/labels", {"labels": {"mine": "still"}}),
    ("POST", f"{_ONE}/pause", None),
    ("POST", f"{_ONE}/resume", None),
    ("POST", f"{_ONE}/interrupt", None),
    ("DELETE", _ONE, None),
    ("GET", "/workspaces/{workspace}", None),
    ("GET", "/workspaces/{workspace}/watch", None),
    ("GET", "/workspaces/{workspace}/builds", None),
    ("POST", "/workspaces/{workspace}/builds", {"transition": "stop"}),
    ("GET", "/users/me/workspace/secret", None),
    ("GET", "/workspacebuilds/{build}", None),
    ("GET", "/workspacebuilds/{build}/parameters", None),
    ("GET", "/workspacebuilds/{build}/logs", None),
    ("GET", "/workspaceagents/{agent}/logs", None),
)
"""Method, path and body of each request about one task of a former member; the answer is a 404."""
LOST_SOCKETS = ("/workspaces/{workspace}/watch-ws", "/workspacebuilds/{build}/logs", "/workspaceagents/{agent}/logs")
EMPTY = (
    "/tasks?q=owner:me",
    "/task-totals?q=owner:me",
    "/task-overview?q=owner:me",
    "/deleted-tasks?q=owner:me",
    "/requests?q=owner:me",
    "/workspaces?q=owner:me",
    "/templates",
    "/organizations",
    "/users/me/organizations",
    "/usage?by=organization,user,template,model",
    "/fleet",
)
"""Lists in which nothing of a former member's tasks is left."""


async def test_who_leaves_an_organization_loses_its_tasks(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former member reads and changes nothing of its tasks on any route; an admin still sees and deletes them."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL", 0.1)
    task = await foreign_task(api_harness)
    build = expected_build_id(task, 1)
    request = await asked(api_harness, uuid.UUID(task), title="Shall I?")
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        last = stream.last
    deleted = await api_harness.create(name="secret-too", input="Deleted before alice left")
    assert (await api_harness.alice.delete(f"/tasks/me/{deleted['id']}")).status_code == 202
    made = await api_harness.alice.post("/task-actions", json={"action": "interrupt", "q": "owner:me"})
    action = made.json()["id"]
    await leave(api_harness)
    client = api_harness.alice
    ids = {"build": build, "agent": AGENT, "workspace": WORKSPACE, "request": request}
    for method, path, body in LOST:
        for ref in (task, "secret") if "{task}" in path else ("",):
            response = await client.request(method, path.format(task=ref, **ids), json=body)
            assert response.status_code == 404, (method, path)
    assert (await client.get(f"/workspaces/{task}")).status_code == 404
    for path in ("watch", "watch?logs=9"):
        last_id = last if path == "watch" else f"{last}.1"
        response = await client.get(f"/tasks/me/{task}/{path}", headers={"Last-Event-ID": last_id})
        assert response.status_code == 404, path
    for path in LOST_SOCKETS:
        with pytest.raises(InvalidStatus, match="HTTP 404"):
            await socket(api_harness, path.format(**ids))
    for path in ("/tasks", "/tasks?q=owner:me", f"/tasks?q=owner:{ALICE}", "/workspaces"):
        assert (await client.get(path)).json()["count"] == 0, path
    totals = (await client.get("/task-totals")).json()
    assert totals["total"] == 0
    results = (
        "/task-actions/{action}/results"  # has the ids of the tasks whose action alice requested, and nothing more
    )
    for path in (*EMPTY, results):
        response = await client.get(path.format(action=action))
        assert response.status_code == 200, path
        for word in ("secret", "Do not tell mallory", "Shall I", "acme", "claude"):
            assert word not in response.text, (path, word)
        assert path == results or task not in response.text, path
    previews = []
    for each in (task, NEW):
        preview = await client.post("/task-actions", json={"action": "pause", "ids": [each], "dry_run": True})
        previews.append(answer(preview, each))
    assert previews[0] == previews[1]
    async with sse_client(client, "/tasks/watch") as stream, sse_client(client, "/tasks/watch", "0") as from_start:
        await stream.ready()
        await from_start.until(lambda: from_start.comments)
        assert stream.events == from_start.events == []
    for ref in (f"me/{task}", f"alice/{task}", "alice/secret"):
        assert (await api_harness.carol.get(f"/tasks/{ref}")).json()["id"] == task
    listed = (await api_harness.carol.get("/tasks?q=owner:alice")).json()
    assert [each["id"] for each in listed["tasks"]] == [task]
    assert (await api_harness.carol.delete("/tasks/alice/secret")).status_code == 202


async def test_a_repeated_create_shows_a_former_member_nothing(api_harness: ApiHarness) -> None:
    """Who repeats a create after leaving gets what a new create gets, alone and in a batch."""
    body = {"input": "Do not tell who left", "template_version_id": str(VERSION)}
    client, path = api_harness.alice, "/tasks/me"
    batch = {"tasks": [{**body, "input": "Nor this", "idempotency_key": "b"}, {**body, "idempotency_key": "k"}]}
    task = (await client.post(path, json=body, headers={"Idempotency-Key": "k"})).json()["id"]
    for result in (await client.post("/task-batches", json=batch)).json()["results"]:
        assert result["status"] in {200, 201}
    await leave(api_harness)
    fresh = await client.post(path, json=body, headers={"Idempotency-Key": "new"})
    again = await client.post(path, json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.text) == (fresh.status_code, fresh.text)
    assert again.status_code == 400
    for result in (await client.post("/task-batches", json=batch)).json()["results"]:
        assert (result["status"], result["error"]) == (400, fresh.json())
    assert (await api_harness.carol.delete(f"/tasks/alice/{task}")).status_code == 202


async def test_the_owner_repeats_the_create_of_a_deleted_task(api_harness: ApiHarness) -> None:
    """The delete takes nobody's access: a create that is sent again late is not taken for a new one."""
    body = {"input": "Deleted at once", "template_version_id": str(VERSION)}
    created = await api_harness.alice.post("/tasks/me", json=body, headers={"Idempotency-Key": "k"})
    task = created.json()["id"]
    assert (await api_harness.alice.delete(f"/tasks/me/{task}")).status_code == 202
    again = await api_harness.alice.post("/tasks/me", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code in {200, 201}, again.json()["id"]) == (True, task)


async def test_the_agent_of_a_former_member_may_still_report(api_harness: ApiHarness) -> None:
    """A task goes on after its owner has left: admins of the organization follow it, so its agent's token counts."""
    task = await foreign_task(api_harness)
    await leave(api_harness)
    headers = {"Coder-Session-Token": agent_token(SECRET, uuid.UUID(task), 1)}
    body = {"app_slug": "", "state": "working", "message": "Still at it", "uri": ""}
    path = "/workspaceagents/me/app-status"
    assert (await api_harness.anonymous.patch(path, json=body, headers=headers)).status_code == 200
    await api_harness.worker.until(lambda: api_harness.worker.state(uuid.UUID(task)).get("message") == "Still at it")
    for path in ("/tasks/watch", f"/tasks/me/{task}/watch", f"/tasks/me/{task}?wait=5s", f"/workspaces/{task}/watch"):
        assert (await api_harness.anonymous.get(path, headers=headers)).status_code == 401


CREATE = {"input": "Go", "template_version_id": str(VERSION)}
PROBES: tuple[tuple[str, str, Any, str, str], ...] = (
    ("GET", "/tasks?q=owner:{}", None, "alice", "nobodyx"),
    ("GET", "/tasks?q={}", None, "alice", "nobodyx"),
    ("GET", "/tasks?q=owner:{}", None, "{alice}", "{new}"),
    ("GET", "/tasks?q=organization:{}", None, "acme", "nothing"),
    ("GET", "/tasks?q=organization:{}", None, "{acme}", "{new}"),
    ("GET", "/tasks/watch?q=owner:{}", None, "alice", "nobodyx"),
    ("GET", "/tasks/watch?q=organization:{}", None, "acme", "nothing"),
    ("GET", "/tasks?q=template:{}", None, "claude", "nothing"),
    ("GET", "/tasks?q=template:{}", None, "{template}", "{new}"),
    *(
        ("GET", f"{path}?q={term}:{{}}", None, elsewhere, missing)
        for path in ("/task-totals", "/task-overview", "/deleted-tasks")
        for term, elsewhere, missing in (
            ("owner", "alice", "nobodyx"),
            ("owner", "{alice}", "{new}"),
            ("organization", "acme", "nothing"),
            ("template", "claude", "nothing"),
        )
    ),
    ("GET", "/requests?q=owner:{}", None, "alice", "nobodyx"),
    ("GET", "/requests?q=owner:{}", None, "{alice}", "{new}"),
    ("GET", "/requests?q=organization:{}", None, "acme", "nothing"),
    ("GET", "/requests?q=template:{}", None, "claude", "nothing"),
    ("GET", "/workspaces?q=owner:{}", None, "alice", "nobodyx"),
    ("GET", "/workspaces?q=organization:{}", None, "acme", "nothing"),
    ("GET", "/workspaces?q=template:{}", None, "claude", "nothing"),
    ("GET", "/workspaces?q={}/secret", None, "alice", "nobodyx"),
    ("GET", "/templates?q=organization:{}", None, "acme", "nothing"),
    ("GET", "/templates?q=exact_name:{}", None, "claude", "nothing"),
    ("GET", "/users?q={}", None, "alice@example.com", "nobodyx"),
    ("GET", "/users?q=github_com_user_id:{}", None, "4242", "4243"),
    ("GET", "/users/{}", None, "alice", "nobodyx"),
    ("GET", "/users/{}", None, "{alice}", "{new}"),
    ("GET", "/users/{}/organizations", None, "alice", "nobodyx"),
    ("POST", "/users/{}/keys", None, "alice", "nobodyx"),
    ("GET", "/users/{}/workspace/secret", None, "alice", "nobodyx"),
    ("GET", "/organizations/{}", None, "acme", "nothing"),
    ("GET", "/organizations/{}", None, "{acme}", "{new}"),
    ("GET", "/organizations/{}/templates", None, "acme", "nothing"),
    ("GET", "/organizations/other/templates/{}", None, "claude", "nothing"),
    ("GET", "/organizations/other/templates/{}", None, "{template}", "{new}"),
    ("GET", "/organizations/other/templates/codex/versions/{}", None, "{version}", "{new}"),
    ("GET", "/templates/{}", None, "{template}", "{new}"),
    ("GET", "/templateversions/{}", None, "{version}", "{new}"),
    ("GET", "/templateversions/{}/presets", None, "{version}", "{new}"),
    ("GET", "/templateversions/{}/rich-parameters", None, "{version}", "{new}"),
    ("POST", "/tasks/{}", CREATE, "alice", "nobodyx"),
    ("POST", "/tasks/{}", CREATE, "{alice}", "{new}"),
    ("POST", "/tasks/me", {"input": "Go", "template_version_id": "{}"}, "{version}", "{new}"),
    ("POST", "/tasks/sub", {"input": "Go", "template_version_id": "{}"}, "{version}", "{new}"),
    (
        "POST",
        "/tasks/me",
        {"input": "Go", "template_version_id": str(OTHER_VERSION), "template_version_preset_id": "{}"},
        "{preset}",
        "{new}",
    ),
    ("POST", "/task-batches", {"tasks": [{**CREATE, "owner": "{}", "idempotency_key": "k"}]}, "alice", "nobodyx"),
    ("POST", "/task-batches", {"tasks": [{**CREATE, "owner": "{}", "idempotency_key": "k"}]}, "{alice}", "{new}"),
    ("POST", "/task-actions", {"action": "pause", "ids": ["{}"], "dry_run": True}, "{task}", "{new}"),
    ("POST", "/task-actions", {"action": "pause", "q": "owner:{}", "dry_run": True}, "alice", "nobodyx"),
    ("POST", "/task-actions", {"action": "pause", "q": "organization:{}", "dry_run": True}, "acme", "nothing"),
    ("POST", "/task-actions", {"action": "pause", "q": "template:{}", "dry_run": True}, "claude", "nothing"),
    ("POST", "/users/me/workspaces", {"template_id": "{}", "name": "x"}, "{template}", "{new}"),
    ("POST", "/users/{}/workspaces", {"template_id": str(OTHER_TEMPLATE), "name": "x"}, "alice", "nobodyx"),
    ("POST", "/organizations/{}/members/me/workspaces", {"template_version_id": NEW}, "acme", "nothing"),
    ("GET", "/tasks/{}/secret", None, "alice", "nobodyx"),
    ("GET", "/tasks/{}/mine", None, "alice", "nobodyx"),
    ("GET", "/tasks/{}/{mine}", None, "alice", "nobodyx"),
    ("GET", "/tasks/{}/{mine}", None, "{alice}", "{new}"),
    ("POST", "/tasks/{}/{mine}/pause", None, "alice", "nobodyx"),
    ("GET", "/tasks/me/{}", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}", None, "{workspace}", "{new}"),
    ("GET", "/tasks/me/{}/logs", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/watch", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/watch?logs=9", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/logs/watch", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/events", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/explain", None, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/durations", None, "{task}", "{new}"),
    ("PATCH", "/tasks/me/{}/input", {"input": "x"}, "{task}", "{new}"),
    ("PATCH", "/tasks/me/{}/labels", {"labels": {"x": "y"}}, "{task}", "{new}"),
    ("POST", "/tasks/me/{}/resume", None, "{task}", "{new}"),
    ("POST", "/tasks/me/{}/interrupt", None, "{task}", "{new}"),
    ("POST", "/tasks/me/{}/send", {"input": "x"}, "{task}", "{new}"),
    ("GET", "/tasks/me/{}/requests", None, "{task}", "{new}"),
    ("POST", "/tasks/me/{}/requests/{request}/answer", {"text": "x"}, "{task}", "{new}"),
    ("POST", "/tasks/me/{mine}/requests/{}/answer", {"text": "x"}, "{request}", "{new}"),
    ("DELETE", "/tasks/me/{}", None, "{task}", "{new}"),
    ("GET", "/workspaces/{}", None, "{workspace}", "{new}"),
    ("GET", "/workspaces/{}/watch", None, "{workspace}", "{new}"),
    ("GET", "/workspaces/{}/builds", None, "{workspace}", "{new}"),
    ("POST", "/workspaces/{}/builds", {"transition": "stop"}, "{workspace}", "{new}"),
    ("GET", "/workspacebuilds/{}", None, "{build}", "{new}"),
    ("GET", "/workspacebuilds/{}/parameters", None, "{build}", "{new}"),
    ("GET", "/workspacebuilds/{}/logs", None, "{build}", "{new}"),
    ("GET", "/workspaceagents/{}/logs", None, "{agent}", "{new}"),
    ("GET", "/task-actions/{}", None, "{action}", "{new}"),
    ("GET", "/task-actions/{}/results", None, "{action}", "{new}"),
    ("GET", "/task-actions/{}/watch", None, "{action}", "{new}"),
    ("POST", "/task-actions/{}/cancel", None, "{action}", "{new}"),
    ("POST", "/dead-letters/replay", {"ids": ["{}"]}, "{task}", "{new}"),
)
"""Method, path and body with a place for a name or id, one that exists elsewhere, and one that does not exist."""


def route_of(method: str, path: str) -> str:
    """Return the path of the first route that serves a path, as the router does."""
    for route in ROUTES:
        pattern = "/".join("[^/]+" if part.startswith("{") else part for part in route.path.split("/"))
        if route.method == method and re.fullmatch(pattern, path.partition("?")[0]):
            return f"{method} {route.path}"
    raise AssertionError(path)


def test_every_route_that_takes_a_name_is_probed() -> None:
    """A route with a name or an id in its path, a search or a body is among the probes of what exists elsewhere."""
    takes_name = {
        f"{route.method} {route.path}"
        for route in ROUTES
        if route.auth is Auth.USER
        and (
            "{" in route.path or "q" in route.query.model_fields or (route.method == "POST" and route.body is not None)
        )
    }
    assert {route_of(method, path) for method, path, *_ in PROBES} == takes_name


def test_every_route_about_one_task_is_lost_with_the_access() -> None:
    """A route that names a task, its workspace, builds or agent is among those that a former member loses."""
    about_a_task = re.compile(r"/tasks/\{user\}/\{task\}|/workspace(s|builds|agents)/\{id\}|/users/\{user\}/workspace/")
    lost = {f"{route.method} {route.path}" for route in ROUTES if about_a_task.match(route.path)}
    assert {route_of(method, path) for method, path, _ in LOST} == lost
    assert len(LOST_SOCKETS) == len(SOCKETS)
    for path, each in zip(LOST_SOCKETS, SOCKETS, strict=True):
        assert re.sub(r"\{\w+\}", "{id}", path) == each.path
    of_tasks = [each.path for each in ROUTES if each.path.startswith(("/task", "/requests", "/workspaces", "/usage"))]
    lists = {
        f"GET {each.path}" for each in ROUTES if each.method == "GET" and "{" not in each.path and each.path in of_tasks
    }
    others = {"GET /tasks/watch", "GET /task-actions"}  # a stream, which the test reads; what alice did herself
    assert lists - others <= {route_of("GET", path) for path in EMPTY}


async def test_what_exists_elsewhere_answers_as_what_does_not_exist(api_harness: ApiHarness) -> None:
    """For an admin of another organization, status, body and headers are the same, on every route that takes a name."""
    task = await foreign_task(api_harness)
    database = api_harness.worker.database
    await database.execute("UPDATE users SET github_com_user_id = 4242 WHERE username = 'alice'")
    sub = uuid.uuid4()
    await database.execute(f"""
        INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{sub}', 'sub', '', 'sub@example.com', '');
        INSERT INTO memberships (user_id, organization_id, role) VALUES ('{sub}', '{OTHER}', 'member')""")
    mine = await api_harness.create(api_harness.mallory, template_version_id=str(OTHER_VERSION), name="mine")
    ids = {
        "alice": ALICE,
        "new": NEW,
        "acme": await database.fetchval("SELECT id FROM organizations WHERE name = 'acme'"),
        "template": await database.fetchval("SELECT id FROM templates WHERE name = 'claude'"),
        "version": VERSION,
        "preset": await database.fetchval("SELECT id FROM presets"),
        "task": task,
        "workspace": WORKSPACE,
        "build": expected_build_id(task, 1),
        "agent": AGENT,
        "mine": mine["id"],
        "action": await unfinished_action(api_harness),
        "request": await asked(api_harness, uuid.UUID(task)),
    }

    def filled(text: str, word: str) -> str:
        text = text.replace("{}", word)
        for name, value in ids.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    for method, path, body, elsewhere, missing in PROBES:
        answers = []
        for word in (elsewhere, missing):
            sent = None if body is None else json.loads(filled(json.dumps(body), word))
            response = await api_harness.mallory.request(method, filled(path, word), json=sent)
            answers.append(answer(response, filled(word, "")))
        assert answers[0] == answers[1], (method, path, elsewhere)
    assert await api_harness.get(task) == await api_harness.get(task, api_harness.carol)


async def test_members_find_each_other_by_name(api_harness: ApiHarness) -> None:
    """Members of one organization may name each other and it in a query; admins also name former members."""
    await foreign_task(api_harness)
    for client, query, count in (
        (api_harness.bob, "owner:alice", 0),
        (api_harness.carol, "owner:alice organization:acme", 1),
        (api_harness.alice, "organization:acme", 1),
    ):
        assert (await client.get("/tasks", params={"q": query})).json()["count"] == count, query
    await leave(api_harness)
    assert (await api_harness.carol.get("/tasks?q=owner:alice")).json()["count"] == 1
    assert (await api_harness.bob.get("/tasks?q=owner:alice")).status_code == 400
    assert (await api_harness.alice.get("/tasks?q=organization:acme")).status_code == 400
