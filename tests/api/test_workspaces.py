"""Workspaces as clients see them that know no tasks: lists, agents and apps, creating, watching, and links to pages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from taskherd.api.directory import users
from tests.api.test_clients import APP, WORKSPACE, expected_build_id, frames, json_of, report_idle, socket, start_build
from tests.harness.api import (
    ALICE,
    BOB,
    ORGANIZATION,
    OTHER,
    OTHER_TEMPLATE,
    TEMPLATE,
    TIMEOUT,
    VERSION,
    ApiHarness,
)
from tests.harness.worker import PRESET

COOKIE = "coder_session_token"


@pytest.fixture
async def task(api_harness: ApiHarness) -> dict[str, Any]:
    """Create a task of alice whose workspace and agent are running, and whose agent is idle."""
    created = await api_harness.create(name="flaky")
    await start_build(api_harness, created["id"])
    await report_idle(api_harness, created["id"])
    return await api_harness.get(created["id"])


async def test_a_workspace_has_its_agent_and_app(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """The latest build shows the connected agent, and its app with what it reported."""
    workspace = json_of(await api_harness.alice.get(f"/workspaces/{WORKSPACE}"))
    (resource,) = workspace["latest_build"]["resources"]
    (agent,) = resource["agents"]
    (app,) = agent["apps"]
    assert (agent["status"], agent["lifecycle_state"], agent["health"]) == ("connected", "ready", {"healthy": True})
    assert (app["id"], app["slug"], app["health"]) == (APP, "claude", "healthy")
    assert [(each["state"], each["message"]) for each in app["statuses"]] == [("idle", "Done")]
    assert workspace["latest_app_status"]["state"] == "idle"
    assert workspace["latest_build"]["workspace_owner_name"] == "alice"
    await api_harness.alice.post(f"/tasks/me/{task['id']}/pause")
    paused = json_of(await api_harness.alice.get(f"/workspaces/{WORKSPACE}"))
    assert (paused["latest_build"]["resources"], paused["latest_app_status"]) == ([], None)


async def test_a_workspace_is_found_by_every_name(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """By its id, by its task's id, by owner and name; a task also by its workspace's id. Others see none of it."""
    for path in (
        f"/workspaces/{WORKSPACE}",
        f"/workspaces/{task['id']}",
        "/users/me/workspace/flaky",
        "/users/alice/workspace/FLAKY",
    ):
        assert json_of(await api_harness.alice.get(path))["id"] == WORKSPACE, path
        if "/me/" not in path:
            assert (await api_harness.carol.get(path)).status_code == 200, path
        for stranger in (api_harness.bob, api_harness.mallory):
            assert (await stranger.get(path)).status_code == 404, path
    assert json_of(await api_harness.alice.get(f"/tasks/alice/{WORKSPACE}"))["id"] == task["id"]
    assert (await api_harness.bob.get(f"/tasks/alice/{WORKSPACE}")).status_code == 404
    log = json_of(await api_harness.alice.get(f"/tasks/me/{task['id']}/logs"))
    for name in ("flaky", task["id"], WORKSPACE):
        assert json_of(await api_harness.alice.get(f"/tasks/me/{name}/logs")) == log, name
        assert json_of(await api_harness.carol.get(f"/tasks/alice/{name}/logs")) == log, name
    assert (await api_harness.bob.get(f"/workspaces/{WORKSPACE}/watch")).status_code == 404


async def test_the_list_of_workspaces(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """The list has what the caller may see, and its query filters by owner, name, template, status and organization."""
    await api_harness.create(api_harness.bob, name="bobs")
    assert task["workspace_id"] == WORKSPACE
    for client, query, names in (
        (api_harness.alice, "", ["flaky"]),
        (api_harness.carol, "", ["bobs", "flaky"]),
        (api_harness.mallory, "", []),
        (api_harness.carol, "owner:alice", ["flaky"]),
        (api_harness.carol, "alice/fla", ["flaky"]),
        (api_harness.carol, "bob", ["bobs"]),
        (api_harness.carol, "name:nothing", []),
        (api_harness.carol, "template:claude status:running", ["flaky"]),
        (api_harness.carol, f"organization:{ORGANIZATION} status:pending", ["bobs"]),
        (api_harness.carol, "alice/", ["flaky"]),
        (api_harness.alice, "owner:me name:bob/fla", ["flaky"]),
        (api_harness.carol, "has-ai-task:t template:Claude fla", ["flaky"]),
        (api_harness.carol, "has_ai_task:1 organization:default", ["bobs", "flaky"]),
        (api_harness.carol, "has-ai-task:false", []),
    ):
        body = json_of(await client.get("/workspaces", params={"q": query}))
        assert len(body["workspaces"]) == body["count"] == len(names), query
        listed = [json_of(await client.get(f"/tasks/me/{each['task_id']}"))["name"] for each in body["workspaces"]]
        assert listed == names, query
    for query, length in (("limit=1&offset=1", 1), ("limit=&offset=1", 1), ("offset=2", 0), ("limit=0", 2)):
        page = json_of(await api_harness.carol.get(f"/workspaces?{query}"))
        assert (len(page["workspaces"]), page["count"]) == (length, 2), query
        assert page["workspaces"][-1:] == [] or page["workspaces"][-1]["task_id"] == task["id"], query
    assert (await api_harness.alice.get("/workspaces?q=nonsense:1")).status_code == 400


async def test_creating_and_deleting_a_workspace(api_harness: ApiHarness) -> None:
    """A workspace is created with its task's prompt as a parameter, and deleted by a build."""
    prompt = [{"name": "AI Prompt", "value": "Fix it"}]
    body: dict[str, Any] = {"name": "made", "template_id": str(TEMPLATE), "rich_parameter_values": prompt}
    path = f"/organizations/{ORGANIZATION}/members/me/workspaces"
    created = json_of(await api_harness.alice.post(path, json={**body, "template_version_preset_id": str(PRESET)}), 201)
    assert (created["name"], created["owner_name"], created["latest_build"]["resources"]) == ("made", "alice", [])
    assert (await api_harness.get(created["task_id"]))["initial_prompt"] == "Fix it"
    build = expected_build_id(created["task_id"], 1)
    values = json_of(await api_harness.alice.get(f"/workspacebuilds/{build}/parameters"))
    assert {"name": "AI Prompt", "value": "Fix it"} in values
    given = {"template_version_id": str(VERSION), "rich_parameter_values": [{"name": "ai_prompt", "value": "Test it"}]}
    other = json_of(await api_harness.alice.post("/users/me/workspaces", json={**given, "name": "other"}), 201)
    assert (other["name"], (await api_harness.get(other["task_id"]))["initial_prompt"]) == ("other", "Test it")
    assert (await api_harness.alice.post("/users/me/workspaces", json={**body, "name": "other"})).status_code == 409
    unknown = {**body, "name": "x", "rich_parameter_values": [{"name": "cpu", "value": "8"}]}
    refused = await api_harness.alice.post("/users/me/workspaces", json=unknown)
    assert (refused.status_code, refused.json()["message"]) == (400, "Unable to validate parameters.")
    assert refused.json()["validations"] == [
        {"field": "rich_parameter_values", "detail": "The parameter 'cpu' is set by presets; choose one."}
    ]
    no_prompt = await api_harness.alice.post("/users/me/workspaces", json={**body, "rich_parameter_values": []})
    assert (no_prompt.status_code, no_prompt.json()["message"]) == (400, "Task input is required.")
    assert (await api_harness.bob.post("/users/alice/workspaces", json={**body, "name": "y"})).status_code == 404
    mallory = await api_harness.mallory.post("/users/me/workspaces", json={**body, "name": "z"})
    assert mallory.status_code == 404
    deleted = await api_harness.alice.post(f"/workspaces/{created['id']}/builds", json={"transition": "delete"})
    assert json_of(deleted, 201)["transition"] == "delete"
    assert (await api_harness.alice.get(f"/workspaces/{created['id']}")).status_code == 404


async def test_a_workspace_in_an_organization_has_its_template(api_harness: ApiHarness) -> None:
    """A template of another organization of the caller is not there; without a template nothing is created."""
    await api_harness.worker.database.execute(
        "INSERT INTO memberships (user_id, organization_id, role) VALUES ($1, $2, 'member')", ALICE, OTHER
    )
    prompt = [{"name": "AI Prompt", "value": "Fix it elsewhere"}]
    body = {"name": "elsewhere", "template_id": str(OTHER_TEMPLATE), "rich_parameter_values": prompt}
    for organization, status in ((ORGANIZATION, 404), (OTHER, 201)):
        path = f"/organizations/{organization}/members/me/workspaces"
        assert (await api_harness.alice.post(path, json=body)).status_code == status
    body = {"name": "nowhere", "rich_parameter_values": prompt}
    assert (await api_harness.alice.post("/users/me/workspaces", json=body)).status_code == 400
    created = json_of(await api_harness.alice.get("/workspaces"))["workspaces"]
    assert [(each["name"], each["template_name"]) for each in created] == [("elsewhere", "codex")]


async def test_the_parameters_of_a_version(api_harness: ApiHarness) -> None:
    """The prompt is a parameter, and so is each that a preset sets, with the default preset's value."""
    await api_harness.worker.database.execute("""UPDATE presets SET parameters = '{"cpu": 8, "AI Prompt": "Go"}'""")
    await api_harness.worker.database.execute(
        """INSERT INTO presets (id, template_version_id, name, is_default, parameters)
        VALUES (gen_random_uuid(), $1, 'A large one', false, '{"cpu": 64, "disk": "big"}')""",
        VERSION,
    )
    parameters = json_of(await api_harness.alice.get(f"/templateversions/{VERSION}/rich-parameters"))
    assert [(each["name"], each["default_value"]) for each in parameters] == [
        ("AI Prompt", ""), ("cpu", "8"), ("disk", ""),
    ]  # fmt: skip
    presets = json_of(await api_harness.alice.get(f"/templateversions/{VERSION}/presets"))
    assert [(each["Default"], [tuple(value.values()) for value in each["Parameters"]]) for each in presets] == [
        (True, [("AI Prompt", "Go"), ("cpu", "8")]),
        (False, [("cpu", "64"), ("disk", "big")]),
    ]
    for path in (f"/templateversions/{VERSION}/rich-parameters", f"/templates/{TEMPLATE}"):
        assert (await api_harness.alice.get(path)).status_code == 200
        assert (await api_harness.mallory.get(path)).status_code == 404
    assert [each["id"] for each in json_of(await api_harness.alice.get("/organizations"))] == [str(ORGANIZATION)]


async def test_both_ways_to_watch_a_workspace(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """A ping, the workspace, and the workspace again after a change; deleting the task ends the watch."""
    path = f"/workspaces/{WORKSPACE}"
    async with socket(api_harness, f"{path}/watch-ws") as opened:
        first = await frames(opened, lambda frame: frame["type"] == "data")
        assert [each["type"] for each in first] == ["ping", "data"]
        assert first[1]["data"] == json_of(await api_harness.alice.get(path))
        await api_harness.alice.post(f"/tasks/me/{task['id']}/pause")
        changed = await frames(
            opened, lambda frame: frame["type"] == "data" and frame["data"]["latest_build"]["build_number"] == 2
        )
        assert changed[-1]["data"]["latest_build"]["transition"] == "stop"
        async with api_harness.alice.stream("GET", f"{path}/watch") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            seen = [await anext(lines) for _ in range(4)]
            assert seen[:3] == ["event: ping", "", "event: data"]
            assert json.loads(seen[3].removeprefix("data: "))["latest_build"]["build_number"] == 2
            assert (await api_harness.alice.delete(f"/tasks/me/{task['id']}")).status_code == 202
            async for _line in lines:
                pass
        await frames(opened)
        assert opened.close_code == 1000


async def test_a_cookie_authenticates_what_changes_nothing(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """A GET and a WebSocket may carry the token in a cookie, except from another site's page; a POST may not."""
    headers = {"Cookie": f"theme=dark; {COOKIE}={api_harness.tokens['alice']}"}
    client, own = api_harness.anonymous, api_harness.base
    assert (await client.get("/tasks", headers=headers)).status_code == 200
    assert (await client.get("/tasks", headers={**headers, "Origin": own})).status_code == 200
    assert (await client.get("/tasks", headers={**headers, "Origin": "https://evil.example"})).status_code == 401
    path = f"/tasks/me/{task['id']}"
    for method, target in (
        ("POST", f"{path}/pause"),
        ("DELETE", path),
        ("PATCH", f"{path}/input"),
        ("POST", "/users/me/keys"),
    ):
        refused = await client.request(method, target, headers={**headers, "Origin": own}, json={"input": "x"})
        assert refused.status_code == 401, target
    url = f"ws://127.0.0.1:{api_harness.api.port}/api/v2/workspaces/{WORKSPACE}/watch-ws"
    for origin, accepted in ((None, True), (own, True), ("https://evil.example", False), ("null", False)):
        sent = {**headers, **({"Origin": origin} if origin else {})}
        if accepted:
            async with connect(url, additional_headers=sent, open_timeout=TIMEOUT) as opened:
                assert json.loads(await opened.recv()) == {"type": "ping", "data": None}
        else:
            with pytest.raises(InvalidStatus) as refusal:
                await connect(url, additional_headers=sent, open_timeout=TIMEOUT)
            assert refusal.value.response.status_code == 401
    assert await api_harness.get(task["id"]) == task


async def test_a_new_key(api_harness: ApiHarness) -> None:
    """A key is a new token that ends after a week; an admin of all of a user's organizations may create one too."""
    database, seen = api_harness.worker.database, set()
    for client, user, owner in (
        (api_harness.alice, "me", ALICE),
        (api_harness.alice, "alice", ALICE),
        (api_harness.carol, "bob", BOB),
    ):
        key = json_of(await client.post(f"/users/{user}/keys"), 201)["key"]
        seen.add(key)
        row = await database.fetchrow(
            "SELECT user_id, expires_at - now() BETWEEN '6 days' AND '7 days' AS week FROM api_tokens WHERE id = $1",
            key[:10],
        )
        assert tuple(row) == (owner, True)
        used = await api_harness.anonymous.get("/users/me", headers={"Coder-Session-Token": key})
        assert json_of(used)["id"] == str(owner)
    assert len(seen - set(api_harness.tokens.values())) == 3
    await database.execute(
        "INSERT INTO memberships (user_id, organization_id, role) SELECT $1, id, 'member' FROM organizations"
        " WHERE id <> $2",
        BOB,
        ORGANIZATION,
    )
    for client, user in ((api_harness.carol, "bob"), (api_harness.bob, "alice"), (api_harness.mallory, "alice")):
        assert (await client.post(f"/users/{user}/keys")).status_code == 404, user
    await database.execute(
        "UPDATE api_tokens SET expires_at = now() + interval '1 hour' WHERE id = $1", api_harness.tokens["alice"][:10]
    )
    short = json_of(await api_harness.alice.post("/users/me/keys"), 201)["key"]
    assert await database.fetchval(
        "SELECT expires_at < now() + interval '2 hours' FROM api_tokens WHERE id = $1", short[:10]
    )


async def test_a_user_has_a_limited_number_of_valid_tokens(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused with what to do, and not stored; one that was revoked makes room."""
    valid = "SELECT count(*) FROM api_tokens WHERE user_id = $1 AND revoked_at IS NULL"
    before = await api_harness.worker.database.fetchval(valid, ALICE)
    monkeypatch.setattr(users, "MAX_TOKENS", before + 1)
    key = json_of(await api_harness.alice.post("/users/me/keys"), 201)["key"]
    refused = await api_harness.alice.post("/users/me/keys")
    assert (refused.status_code, refused.json()["message"]) == (409, "Too many tokens are valid.")
    assert await api_harness.worker.database.fetchval(valid, ALICE) == before + 1
    await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now() WHERE id = $1", key[:10])
    assert (await api_harness.alice.post("/users/me/keys")).status_code == 201


async def test_links_to_a_workspace_lead_to_the_page_of_its_task(api_harness: ApiHarness) -> None:
    """Coder's links to workspaces, builds and apps are redirected alike, whether anything is there or not."""
    for path, page in (
        ("/@alice/flaky", "/tasks/alice/flaky"),
        ("/@alice/flaky/builds/3", "/tasks/alice/flaky"),
        (f"/@alice/flaky.{WORKSPACE}/apps/ccw/", "/tasks/alice/flaky"),
        ("/@nobody/nothing.main/terminal", "/tasks/nobody/nothing"),
        ("/@%5Cevil.example/x", "/tasks/%5Cevil.example/x"),
    ):
        response = await api_harness.anonymous.get(f"{api_harness.base}{path}")
        assert (response.status_code, response.content) == (307, b""), path
        assert response.headers["Location"] == page, path
    assert (await api_harness.anonymous.get(f"{api_harness.base}/tasks/nobody/nothing")).status_code == 200
