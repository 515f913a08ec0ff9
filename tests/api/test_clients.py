"""The calls of each unmodified client, in its order, with responses validated by its rules."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from tests.api import shapes
from tests.harness.api import ALICE, ORGANIZATION, TEMPLATE, TIMEOUT, VERSION, ApiHarness
from tests.harness.worker import PRESET, build_report, make_report

NIL = str(uuid.UUID(int=0))
AGENT, WORKSPACE, APP = (str(uuid.UUID(int=number)) for number in (0xA9E, 0x305, 0xA99))


def json_of(response: httpx.Response, status: int = 200) -> Any:
    """Return the JSON of a response, which must have this status."""
    assert response.status_code == status, (response.request.url, response.text)
    assert response.headers["content-type"] == "application/json"
    return response.json()


def socket(api_harness: ApiHarness, path: str, username: str = "alice") -> connect:
    """Connect a WebSocket, with the header by which clients authenticate."""
    url = f"ws://127.0.0.1:{api_harness.api.port}/api/v2{path}"
    return connect(url, additional_headers={"Coder-Session-Token": api_harness.tokens[username]}, open_timeout=TIMEOUT)


async def frames(opened: ClientConnection, until: Callable[[Any], bool] = lambda _: False) -> list[Any]:
    """Return the frames received until one matches ``until`` or the server closes the socket, with any code."""
    received = []
    with suppress(ConnectionClosedError):
        async with asyncio.timeout(TIMEOUT):
            async for frame in opened:
                assert isinstance(frame, str)
                received.append(json.loads(frame))
                if until(received[-1]):
                    break
    return received


async def start_build(api_harness: ApiHarness, task: str, number: int = 1) -> None:
    """Report a started build as a runner does, with a workspace, an agent and an app."""
    resources = {
        "workspace": {"id": WORKSPACE, "name": "fix-the-flaky-test"},
        "agent_id": AGENT,
        "app": {"id": APP, "slug": "claude"},
    }
    task_id = uuid.UUID(task)
    await api_harness.worker.report(
        build_report(task_id, number, "start", "succeeded", **resources),
        make_report("agent.lifecycle", task_id, build_number=number, lifecycle="ready"),
        make_report("agent.heartbeat", task_id, build_number=number),
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "active")


async def report_idle(api_harness: ApiHarness, task: str, number: int = 1) -> None:
    """Report that the agent is idle."""
    task_id = uuid.UUID(task)
    await api_harness.worker.report(
        make_report("app.status", task_id, build_number=number, state="idle", message="Done", uri="")
    )
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "idle")


async def test_the_github_action(api_harness: ApiHarness) -> None:
    """The first run finds user, template and presets and creates a task; the next sends an input to that task."""
    await api_harness.worker.database.execute("UPDATE users SET github_com_user_id = 4242 WHERE username = 'alice'")
    client, base = api_harness.carol, api_harness.base
    users = json_of(await client.get("/users?q=github_com_user_id:4242"))["users"]
    (user,) = shapes.parse_all(users, shapes.USER)
    assert user["username"] == "alice"
    template = shapes.parse(json_of(await client.get("/organizations/default/templates/claude")), shapes.TEMPLATE)
    response = await client.get(f"/templateversions/{template['active_version_id']}/presets")
    presets = shapes.parse_all(json_of(response), shapes.PRESET)
    assert [(each["Name"], each["Default"]) for each in presets] == [("Default", True)]
    listing = f"{base}/api/experimental/tasks?q=owner:{user['username']}"
    assert shapes.parse_all(json_of(await client.get(listing))["tasks"], shapes.TASK) == []
    body = {
        "name": "gh-issue-7",
        "template_version_id": template["active_version_id"],
        "template_version_preset_id": presets[0]["ID"],
        "input": "Fix it",
    }
    created = shapes.parse(
        json_of(await client.post(f"{base}/api/experimental/tasks/alice", json=body), 201), shapes.TASK
    )
    assert created["owner_id"] == user["id"]
    await start_build(api_harness, created["id"])
    await report_idle(api_harness, created["id"])
    again = shapes.parse_all(json_of(await client.get(listing))["tasks"], shapes.TASK)
    (existing,) = [each for each in again if each["name"] == "gh-issue-7"]
    task = shapes.parse(json_of(await client.get(f"{base}/api/experimental/tasks/alice/{existing['id']}")), shapes.TASK)
    assert (task["status"], task["current_state"]["state"]) == ("active", "idle")
    sent = await client.post(f"{base}/api/experimental/tasks/alice/{existing['id']}/send", json={"input": "And lint"})
    assert sent.status_code == 204


async def test_the_command_line(api_harness: ApiHarness) -> None:
    """Login, create by template, list, status, pause and resume while watching their builds, send, logs, delete."""
    client = api_harness.alice
    assert (await api_harness.anonymous.get("/users/first")).status_code == 200
    key = json_of(await client.post("/users/me/keys"), 201)["key"]
    headers = {"Coder-Session-Token": key}
    me = shapes.parse(json_of(await api_harness.anonymous.get("/users/me", headers=headers)), shapes.USER)
    assert me["id"] == str(ALICE)
    (organization,) = json_of(await client.get("/users/me/organizations"))
    assert (organization["id"], organization["name"]) == (str(ORGANIZATION), "acme")
    response = await client.get("/templates", params={"q": f'organization:"{organization["id"]}" has-ai-task:true'})
    (template,) = shapes.parse_all(json_of(response), shapes.TEMPLATE)
    by_name = json_of(await client.get(f"/organizations/{organization['id']}/templates/claude"))
    version = json_of(await client.get(f"/organizations/{organization['id']}/templates/claude/versions/v1"))
    assert (by_name["active_version_id"], version["id"]) == (template["active_version_id"], str(VERSION))
    assert json_of(await client.get(f"/templateversions/{version['id']}/presets"))[0]["ID"] == str(PRESET)
    body = {"template_version_id": version["id"], "template_version_preset_id": NIL, "input": "Go", "name": "go"}
    task = json_of(await client.post("/tasks/me", json=body), 201)["id"]
    await start_build(api_harness, task)
    listed = json_of(await client.get("/tasks", params={"q": 'owner:"me" status:"active"'}))
    assert [each["name"] for each in listed["tasks"]] == ["go"]
    status = json_of(await client.get("/tasks/me/go"))
    assert status["workspace_agent_health"] == {"healthy": True}
    await watch_build(api_harness, uuid.UUID(task), json_of(await client.post("/tasks/me/go/pause"), 202), "stop", 2)
    resumed = json_of(await client.post(f"/tasks/me/{task}/resume"), 202)
    await watch_build(api_harness, uuid.UUID(task), resumed, "start", 3)
    await start_build(api_harness, task, 3)
    workspace = json_of(await client.get(f"/workspaces/{WORKSPACE}"))
    assert workspace["latest_build"]["id"] == resumed["workspace_build_id"]
    assert (await client.post(f"/tasks/me/{task}/send", json={"input": "More"})).status_code == 204
    assert "logs" in json_of(await client.get(f"/tasks/me/{task}/logs"))
    assert (await client.delete(f"/tasks/me/{task}")).status_code == 202


async def watch_build(
    api_harness: ApiHarness, task_id: uuid.UUID, requested: dict[str, Any], transition: str, number: int
) -> None:
    """Watch a build as the command line does: read it, follow its log until the server closes it, read it again."""
    path = f"/workspacebuilds/{requested['workspace_build_id']}"
    before = shapes.parse(json_of(await api_harness.alice.get(path)), shapes.BUILD)
    assert (before["job"]["status"], before["transition"], before["build_number"]) == ("pending", transition, number)
    async with socket(api_harness, f"{path}/logs?follow&after=0") as opened:
        first = await frames(opened, lambda frame: frame["stage"] == "Waiting for a runner")
        await api_harness.worker.report(build_report(task_id, number, transition, "running"))
        await frames(opened, lambda frame: frame["output"].endswith("ing."))
        await api_harness.worker.report(build_report(task_id, number, transition, "succeeded"))
        rest = await frames(opened)
        assert opened.close_code == 1000
    for frame in first + rest:
        assert set(frame) == {"id", "created_at", "log_source", "log_level", "stage", "output"}
        assert shapes.time(frame["created_at"])
    after = shapes.parse(json_of(await api_harness.alice.get(path)), shapes.BUILD)
    assert after["job"]["status"] == "succeeded"
    assert after["status"] == {"stop": "stopped", "start": "running"}[transition]
    assert shapes.time(after["job"]["completed_at"])
    assert [entry["id"] for entry in json_of(await api_harness.alice.get(f"{path}/logs"))][-1] == rest[-1]["id"]


async def test_vs_code(api_harness: ApiHarness) -> None:
    """The requests of the panel, a selected task with its logs over both sockets, and all actions on a task."""
    client = api_harness.alice
    me = json_of(await client.get("/users/me"))
    assert (me["username"], me["roles"]) == ("alice", [])
    version = json_of(await api_harness.anonymous.get("/buildinfo"))["version"]
    assert version.startswith("v2.34.0+taskherd")
    assert json_of(await client.get("/tasks?q=owner:me")) == {"tasks": [], "count": 0}
    (template,) = json_of(await client.get("/templates?q=has-ai-task:true"))
    assert {"id", "name", "display_name", "description", "active_version_id"} <= set(template)
    assert (template["id"], template["description"]) == (str(TEMPLATE), "")
    assert len(json_of(await client.get(f"/templateversions/{template['active_version_id']}/presets"))) == 1
    body = {"template_version_id": template["active_version_id"], "input": "Panel"}
    task = json_of(await client.post("/tasks/me", json=body), 201)
    assert task["workspace_id"] is None
    first = str(expected_build_id(task["id"], 1))
    async with socket(api_harness, f"/workspacebuilds/{first}/logs?follow=true") as opened:
        await frames(opened, lambda frame: frame["stage"] == "Waiting for a runner")
        await start_build(api_harness, task["id"])
        assert (await frames(opened))[-1]["output"] == "The workspace is running."
    task = json_of(await client.get(f"/tasks/alice/{task['id']}"))
    path = f"/workspaceagents/{task['workspace_agent_id']}/logs"
    async with socket(api_harness, f"{path}?follow=true") as opened:
        (entries,) = await frames(opened, lambda _: True)
        assert isinstance(entries, list)
        assert all(isinstance(each["id"], int) and isinstance(each["output"], str) for each in entries)
        assert json_of(await client.get(path))[: len(entries)] == entries
        assert json_of(await client.get(f"/workspaces/{task['workspace_id']}"))["id"] == WORKSPACE
        assert (
            json_of(await client.post(f"/tasks/alice/{task['id']}/pause"), 202)["workspace_build"]["transition"]
            == "stop"
        )
        await frames(opened)
        assert opened.close_code == 1000
    await api_harness.worker.report(build_report(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(uuid.UUID(task["id"])).get("status") == "paused")
    build = json_of(await client.post(f"/workspaces/{WORKSPACE}/builds", json={"transition": "start"}), 201)
    assert (build["transition"], build["build_number"]) == ("start", 3)
    assert (await client.delete(f"/tasks/alice/{task['id']}")).status_code == 202
    assert (await client.get(f"/workspaces/{WORKSPACE}")).status_code == 404


def expected_build_id(task: str, number: int) -> uuid.UUID:
    """Return the id of a build: the UUIDv5 of the number's digits in the namespace of the task's id."""
    return uuid.uuid5(uuid.UUID(task), str(number))


async def test_the_mcp_tools(api_harness: ApiHarness) -> None:
    """The current user, then create, list, status, send, logs, delete."""
    client = api_harness.alice
    me = json_of(await client.get("/users/me"))
    body = {"template_version_id": str(VERSION), "template_version_preset_id": NIL, "input": "Do"}
    task = json_of(await client.post(f"/tasks/{me['id']}", json=body), 201)
    await start_build(api_harness, task["id"])
    listed = json_of(await client.get("/tasks", params={"q": 'owner:"me"'}))
    assert [each["id"] for each in listed["tasks"]] == [task["id"]]
    await report_idle(api_harness, task["id"])
    state = json_of(await client.get(f"/tasks/me/{task['id']}"))["current_state"]
    assert (state["state"], state["message"]) == ("idle", "Done")
    assert (await client.post(f"/tasks/me/{task['id']}/send", json={"input": "On"})).status_code == 204
    assert json_of(await client.get(f"/tasks/me/{task['id']}/logs")) == {"logs": []}
    assert (await client.delete(f"/tasks/me/{task['id']}")).status_code == 202


async def test_an_agent(api_harness: ApiHarness) -> None:
    """With the token of its start request, an agent reports its status and uploads its conversation."""
    task_id = uuid.UUID((await api_harness.create(input="Fix the flaky test"))["id"])
    await api_harness.worker.until(lambda: api_harness.worker.requests_of(task_id, "workspace.start"))
    await start_build(api_harness, str(task_id))
    token = api_harness.worker.requests_of(task_id, "workspace.start")[0]["agent_token"]
    headers = {"Coder-Session-Token": token}
    body = {"app_slug": "claude", "state": "working", "message": "x" * 3000, "uri": "https://example.com/pr/1"}
    updated = await api_harness.anonymous.patch("/workspaceagents/me/app-status", json=body, headers=headers)
    assert (updated.status_code, updated.content) == (200, b"null")
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("uri") == "https://example.com/pr/1")
    assert api_harness.worker.state(task_id)["message"] == "x" * 1999 + "…"
    failing = {"app_slug": "claude", "state": "failure", "message": "", "uri": ""}
    assert (
        await api_harness.anonymous.patch("/workspaceagents/me/app-status", json=failing, headers=headers)
    ).status_code == 200
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "failed")
    snapshot = {
        "messages": [
            {"id": 0, "content": "Fix the flaky test", "role": "user", "time": "2026-01-02T03:04:05Z"},
            {"id": 1, "content": "Fixed", "role": "agent", "time": "2026-01-02T03:04:06.5+01:00"},
        ]
    }
    path = f"/workspaceagents/me/tasks/{task_id}/log-snapshot"
    uploaded = await api_harness.anonymous.post(f"{path}?format=agentapi", json=snapshot, headers=headers)
    assert (uploaded.status_code, uploaded.content) == (204, b"")
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=2)
    logs = json_of(await api_harness.alice.get(f"/tasks/me/{task_id}/logs"))["logs"]
    assert [(each["type"], each["content"]) for each in logs] == [
        ("input", "Fix the flaky test"),
        ("output", "Fixed"),
    ]
    assert [each["time"] for each in logs] == ["2026-01-02T03:04:05.000000Z", "2026-01-02T02:04:06.500000Z"]
