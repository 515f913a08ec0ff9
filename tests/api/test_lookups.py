"""What clients look up besides the tasks: who may, what is refused and how, and what the logs of builds tell."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from taskherd.api.routes import PREFIX, SOCKETS
from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.api.test_clients import WORKSPACE, frames, house_build, socket, up
from tests.harness.api import (
    ALICE,
    MALLORY,
    ORGANIZATION,
    OTHER,
    OTHER_VERSION,
    TEMPLATE,
    TIMEOUT,
    VERSION,
    ApiHarness,
    running_api,
)
from tests.harness.worker import PRESET, SECRET, build_report, make_report

NOT_FOUND = b'{"message":"Resource not found or you do not have access to this resource"}'
SIGNED_OUT = "You are signed out or your session has expired. Please sign in again to continue."
NOTHING = str(uuid.UUID(int=0xDEAD))


def kept(response: httpx.Response) -> tuple[Any, ...]:
    """All of a response that could tell one refusal from another."""
    headers = sorted((name, value) for name, value in response.headers.items() if name != "date")
    return response.status_code, response.content, *headers


@pytest.fixture
async def task(api_harness: ApiHarness) -> dict[str, Any]:
    """A task of alice's whose workspace and agent are up."""
    made = await api_harness.create()
    await up(api_harness, made["id"])
    return await api_harness.get(made["id"])


async def test_not_yours_is_not_there(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """On every look-up, what is another's, what is nobody's and what can't be give byte-identical 404s."""
    own_build = str(house_build(task["id"], 1))
    agent = task["workspace_agent_id"]
    probes = {
        "/users/{}": ("alice", str(ALICE)),
        "/users/{}/organizations": ("alice", str(ALICE)),
        "/organizations/{}": ("acme", "ACME", str(ORGANIZATION)),
        "/organizations/{}/templates": ("acme", str(ORGANIZATION)),
        "/organizations/{}/templates/claude": ("acme", str(ORGANIZATION)),
        "/organizations/{}/templates/claude/versions/v1": ("acme", str(ORGANIZATION)),
        "/organizations/default/templates/{}": ("claude", str(TEMPLATE)),
        "/organizations/default/templates/{}/versions/v1": ("claude", str(TEMPLATE)),
        "/templateversions/{}": (str(VERSION),),
        "/templateversions/{}/presets": (str(VERSION),),
        "/workspaces/{}": (WORKSPACE,),
        "/workspacebuilds/{}": (own_build,),
        "/workspacebuilds/{}/logs": (own_build,),
        "/workspaceagents/{}/logs": (agent,),
    }
    for path, names in probes.items():
        for name in names:
            assert (await api_harness.alice.get(path.format(name))).status_code == 200, (path, name)
        answers = {
            kept(await api_harness.mallory.get(path.format(name)))
            for name in (*names, NOTHING, "nothing", "a%00b", "%ff", "x" * 300)
        }
        assert len(answers) == 1, (path, answers)
        assert next(iter(answers))[:2] == (404, NOT_FOUND), path
    posted = {
        kept(await api_harness.bob.post(f"/workspaces/{name}/builds", json={"transition": "stop"}))
        for name in (WORKSPACE, NOTHING, "nothing")
    }
    assert {each[:2] for each in posted} == {(404, NOT_FOUND)}
    assert len(posted) == 1
    assert (await api_harness.carol.get(f"/workspaces/{WORKSPACE}")).status_code == 200
    keys = {kept(await api_harness.bob.post(f"/users/{user}/keys")) for user in ("alice", "nothing", str(ALICE))}
    assert {each[:2] for each in keys} == {(404, NOT_FOUND)}
    assert await api_harness.get(task["id"]) == task


async def test_lists_hold_what_is_the_callers(api_harness: ApiHarness) -> None:
    """People and templates of the caller's own organizations, and nothing of others."""
    people = (await api_harness.alice.get("/users")).json()
    assert ([each["username"] for each in people["users"]], people["count"]) == (["alice", "bob", "carol"], 3)
    assert [each["organization_ids"] for each in people["users"]] == [[str(ORGANIZATION)]] * 3
    assert [each["username"] for each in (await api_harness.alice.get("/users?q=BO")).json()["users"]] == ["bob"]
    assert (await api_harness.alice.get("/users?q=github_com_user_id:7")).json() == {"users": [], "count": 0}
    assert [each["name"] for each in (await api_harness.alice.get("/templates")).json()] == ["claude"]
    assert [each["name"] for each in (await api_harness.mallory.get("/templates")).json()] == ["codex"]
    assert (await api_harness.alice.get(f"/templateversions/{OTHER_VERSION}")).status_code == 404
    assert (await api_harness.mallory.get(f"/templateversions/{OTHER_VERSION}/presets")).json() == []
    for query, names in (
        ("organization:default", ["claude"]),
        (f"organization:{ORGANIZATION}", ["claude"]),
        (f"organization:{OTHER}", []),
        (f"organization:{NOTHING}", []),
        ("has-ai-task:false", []),
        ("deprecated:true", []),
        ("exact_name:Claude", ["claude"]),
        ("exact_name:clau", []),
        ("clau", ["claude"]),
    ):
        response = await api_harness.alice.get("/templates", params={"q": query})
        assert [each["name"] for each in response.json()] == names, query
    default = (await api_harness.mallory.get("/organizations/default")).json()
    assert (default["id"], default["is_default"]) == (str(OTHER), True)
    await api_harness.worker.database.execute("UPDATE templates SET active = false WHERE name = 'claude'")
    assert (await api_harness.alice.get("/organizations/default/templates")).json() == []
    assert (await api_harness.alice.get("/organizations/default/templates/claude")).status_code == 404
    assert (await api_harness.alice.get(f"/templateversions/{VERSION}/presets")).json()[0]["Parameters"] == [
        {"Name": "size", "Value": "small"}
    ]
    assert (await api_harness.alice.get(f"/users/{MALLORY}")).status_code == 404


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/users?q=github_com_user_id:x", "Invalid user search query."),
        ("/users?q=github_com_user_id:99999999999999999999", "Invalid user search query."),
        ("/users?q=colour:red", "Invalid user search query."),
        ("/users?q=a%00b", "Invalid user search query."),
        ("/templates?q=has-ai-task:perhaps", "Invalid template search query."),
        ("/templates?q=organization:nothing", "Invalid template search query."),
        ("/templates?q=:x", "Invalid template search query."),
        ("/templates?q=name:a%00b", "Invalid template search query."),
    ],
)
async def test_queries_that_are_refused(api_harness: ApiHarness, path: str, message: str) -> None:
    """A query that can't be is a 400 that names the parameter."""
    response = await api_harness.alice.get(path)
    assert (response.status_code, response.json()["message"]) == (400, message)
    assert response.json()["validations"]


async def test_a_key_is_the_token_itself(api_harness: ApiHarness) -> None:
    """Signing in begets no second token: revoking the one ends what was given out."""
    made = await api_harness.alice.post("/users/alice/keys")
    assert (made.status_code, made.json()) == (201, {"key": api_harness.tokens["alice"]})
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM api_tokens") == 4


async def refused(api_harness: ApiHarness, path: str, token: str) -> tuple[int, dict[str, Any]]:
    """What a handshake that is refused is answered with."""
    headers = {"Coder-Session-Token": token} if token else {}
    url = f"ws://127.0.0.1:{api_harness.api.port}{path}"
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, additional_headers=headers, open_timeout=TIMEOUT):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/json"
    told: dict[str, Any] = json.loads(response.body or b"")
    return response.status_code, told


async def test_sockets_are_refused_as_json(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """No token that holds: 401; not the caller's or not there: 404; no such socket: 404; a bad parameter: 400."""
    ids = {"/workspacebuilds/{id}/logs": str(house_build(task["id"], 1)), "/workspaceagents/{id}/logs": ""}
    ids["/workspaceagents/{id}/logs"] = task["workspace_agent_id"]
    assert {each.path for each in SOCKETS} == set(ids)
    for path, own in ids.items():
        for token in ("", "x", agent_token(SECRET, uuid.UUID(task["id"]), 1)):
            status, told = await refused(api_harness, PREFIX + path.format(id=own), token)
            assert (status, told["message"]) == (401, SIGNED_OUT)
        for identifier in (own, NOTHING, "nothing"):
            answer = await refused(api_harness, PREFIX + path.format(id=identifier), api_harness.tokens["bob"])
            assert answer == (404, json.loads(NOT_FOUND))
        status, told = await refused(api_harness, f"{PREFIX}{path.format(id=own)}?after=x", api_harness.tokens["alice"])
        assert (status, told["validations"][0]["field"]) == (400, "after")
    status, told = await refused(api_harness, "/api/v2/nothing", api_harness.tokens["alice"])
    assert (status, told) == (404, {"message": "Route not found."})


async def test_all_else_under_api_is_json(api_harness: ApiHarness) -> None:
    """A path that is no route is a JSON 404, a wrong method on any of these a JSON 405 that names the right ones."""
    for path in ("/users/", "/users/me/logout", "/workspaces", "/workspaceagents/me/rpc", "/organizations", "/api"):
        response = await api_harness.alice.get(path)
        assert (response.status_code, response.json()) == (404, {"message": "Route not found."}), path
    for method, path, allowed in (
        ("POST", "/buildinfo", "GET, HEAD"),
        ("DELETE", "/users/me", "GET, HEAD"),
        ("GET", "/users/me/keys", "POST"),
        ("PUT", "/workspaces/x/builds", "POST"),
        ("POST", "/workspacebuilds/x/logs", "GET, HEAD"),
        ("GET", "/workspaceagents/me/app-status", "PATCH"),
    ):
        wrong = await api_harness.alice.request(method, path)
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, allowed), path
        assert wrong.headers["content-type"] == "application/json"


async def test_the_end_of_builds(api_harness: ApiHarness) -> None:
    """A failed build says why; one that was displaced before its end was heard of is unknown; each ends its log."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    first, second = (f"/workspacebuilds/{house_build(str(task_id), number)}" for number in (1, 2))
    assert (await api_harness.alice.get(first)).json()["job"]["status"] == "pending"
    assert (await api_harness.alice.get(second)).status_code == 404
    async with socket(api_harness, f"{first}/logs?follow") as opened:
        await api_harness.worker.report(
            build_report(task_id, 2, "start", "running", workspace={"id": WORKSPACE, "name": "w"})
        )
        await frames(opened)
    displaced = (await api_harness.alice.get(first)).json()
    assert (displaced["job"]["status"], displaced["status"]) == ("unknown", "unknown")
    async with socket(api_harness, f"{second}/logs?follow") as opened:
        await api_harness.worker.report(build_report(task_id, 2, "start", "failed", error="No space left"))
        last = (await frames(opened))[-1]
    assert (last["log_level"], last["output"]) == ("error", "No space left")
    failed = (await api_harness.alice.get(second)).json()
    assert (failed["job"]["status"], failed["job"]["error"]) == ("failed", "No space left")
    assert (await api_harness.alice.get(f"/workspaces/{WORKSPACE}")).json()["latest_build"] == failed


async def test_two_builds_in_one_batch(api_harness: ApiHarness) -> None:
    """A build whose end is folded together with the next one's begin is kept as it ended."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    await api_harness.worker.report(
        build_report(task_id, 1, "start", "succeeded"), build_report(task_id, 2, "stop", "succeeded")
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    found = [
        (await api_harness.alice.get(f"/workspacebuilds/{house_build(str(task_id), number)}")).json()
        for number in (1, 2)
    ]
    assert [each["status"] for each in found] == ["running", "stopped"]


async def test_a_build_that_was_given_up(start_api: StartApi) -> None:
    """A build that nobody took up is found failed, with an error that says so."""
    async with start_api(request_ttl=1, request_backoff_first=0.1, request_backoff_most=0.5) as api_harness:
        task_id = uuid.UUID((await api_harness.create())["id"])
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "error")
        found = (await api_harness.alice.get(f"/workspacebuilds/{house_build(str(task_id), 1)}")).json()
        assert found["job"]["status"] == "failed"
        assert found["job"]["error"]


async def test_what_says_nothing_of_a_build_writes_none(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """Heartbeats, app statuses and a build report that says the same leave the build's row as it is."""
    task_id = uuid.UUID(task["id"])
    query = "SELECT xmin::text FROM task_builds WHERE task_id = $1"
    before = await api_harness.worker.database.fetchval(query, task_id)
    await api_harness.worker.report(
        make_report("agent.heartbeat", task_id, build_number=1),
        make_report("app.status", task_id, build_number=1, state="working", message="x", uri=""),
        build_report(task_id, 1, "start", "succeeded", runner="r2"),
    )
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("message") == "x")
    assert await api_harness.worker.database.fetchval(query, task_id) == before


async def test_an_agent_that_only_its_lifecycle_names(api_harness: ApiHarness) -> None:
    """An agent is found by its id whatever report named it, and a deleted task's are gone with it."""
    task_id, agent = uuid.UUID((await api_harness.create())["id"]), str(uuid.uuid4())
    await api_harness.worker.report(
        build_report(task_id, 1, "start", "succeeded"),
        make_report("agent.lifecycle", task_id, build_number=1, lifecycle="starting", agent_id=agent),
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("workspace_agent_id") == agent)
    lines = (await api_harness.alice.get(f"/workspaceagents/{agent}/logs")).json()
    assert lines[-1]["output"].startswith("Agent is starting")
    async with socket(api_harness, f"/workspaceagents/{agent}/logs?follow") as opened:
        assert (await frames(opened, lambda _: True))[0] == lines
        assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
        assert await frames(opened) == []
        assert opened.close_code == 1008
    assert (await api_harness.alice.get(f"/workspaceagents/{agent}/logs")).status_code == 404


async def test_a_socket_ends_with_its_token_and_with_the_process(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """Whose token is revoked is told nothing more; when the process leaves, so do its sockets."""
    path = f"/workspaceagents/{task['workspace_agent_id']}/logs?follow"
    async with socket(api_harness, path) as opened, socket(api_harness, path, "carol") as admins:
        await frames(opened, lambda _: True)
        await frames(admins, lambda _: True)
        revoke = "UPDATE api_tokens SET revoked_at = now() WHERE id = $1"
        await api_harness.worker.database.execute(revoke, api_harness.tokens["alice"].split("-")[0])
        assert await frames(opened) == []
        assert opened.close_code == 1008
        api_harness.api.stop()
        assert await frames(admins) == []
        assert admins.close_code in {1001, 1012}


async def test_what_agents_are_refused(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """A user's token, another task, a state or format that is not known, and a snapshot over 64 KiB."""
    agent = {"Coder-Session-Token": agent_token(SECRET, uuid.UUID(task["id"]), 1)}
    status, snapshot = "/workspaceagents/me/app-status", f"/workspaceagents/me/tasks/{task['id']}/log-snapshot"
    working = {"app_slug": "x", "state": "working", "message": "", "uri": ""}
    empty: dict[str, Any] = {"messages": []}
    for headers in ({}, {"Coder-Session-Token": api_harness.tokens["alice"]}, {"Coder-Session-Token": "x"}):
        for response in (
            await api_harness.anonymous.patch(status, json=working, headers=headers),
            await api_harness.anonymous.post(f"{snapshot}?format=agentapi", json=empty, headers=headers),
        ):
            assert (response.status_code, response.json()["message"]) == (401, SIGNED_OUT)
    for path in ("/tasks", "/users/me", f"/workspaces/{WORKSPACE}"):
        assert (await api_harness.anonymous.get(path, headers=agent)).status_code == 401
    other = await api_harness.create(api_harness.bob)
    elsewhere = {
        kept(await api_harness.anonymous.post(snapshot.replace(task["id"], each), json=empty, headers=agent))
        for each in (other["id"], NOTHING, "nothing")
    }
    assert [each[:2] for each in elsewhere] == [(404, NOT_FOUND)]
    bad = await api_harness.anonymous.patch(status, json={**working, "state": "asleep"}, headers=agent)
    assert (bad.status_code, bad.json()["message"]) == (400, "Invalid state provided.")
    for query, body in (
        ("", empty),
        ("?format=xml", empty),
        ("?format=agentapi", {}),
        ("?format=agentapi", {"messages": None}),
        ("?format=agentapi", {"messages": [{"id": 0, "content": "x", "role": "system"}]}),
        ("?format=agentapi", {"messages": [{"id": -1, "content": "x", "role": "user"}]}),
        ("?format=agentapi", {"messages": [{"id": 0, "content": "x", "role": "user", "time": "soon"}]}),
    ):
        assert (await api_harness.anonymous.post(snapshot + query, json=body, headers=agent)).status_code == 400, body
    large = {"messages": [{"id": 0, "content": "x" * 65_536, "role": "user"}]}
    too_large = await api_harness.anonymous.post(f"{snapshot}?format=agentapi", json=large, headers=agent)
    assert (too_large.status_code, too_large.json()["message"]) == (413, "Request body is too large.")
    many = {"messages": [{"id": each, "content": "", "role": "user"} for each in range(1_500)]}
    assert (
        await api_harness.anonymous.post(f"{snapshot}?format=agentapi", json=many, headers=agent)
    ).status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=1_500)
    assert api_harness.worker.dead_letters == []


async def test_agents_without_a_broker(api_harness: ApiHarness, database_url: str, amqp_prefix: str) -> None:
    """While the broker is away an agent is answered 503 with Retry-After, and look-ups go on."""
    async with running_api(database_url, "amqp://127.0.0.1:1/", amqp_prefix) as lonely:
        token = {"Coder-Session-Token": agent_token(SECRET, uuid.uuid4(), 1)}
        mine = {"Coder-Session-Token": api_harness.tokens["alice"]}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{lonely.port}/api/v2", timeout=TIMEOUT) as client:
            body = {"app_slug": "x", "state": "idle", "message": "", "uri": ""}
            answer = await client.patch("/workspaceagents/me/app-status", json=body, headers=token)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
            assert (await client.get("/users/me", headers=mine)).json()["username"] == "alice"
            presets = (await client.get(f"/templateversions/{VERSION}/presets", headers=mine)).json()
            assert [each["ID"] for each in presets] == [str(PRESET)]
