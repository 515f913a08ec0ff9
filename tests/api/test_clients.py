"""What each real client calls, in its own order and judged by its own rules, as they are unmodified."""

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


def told(response: httpx.Response, status: int = 200) -> Any:
    """The JSON of a response of this status."""
    assert response.status_code == status, (response.request.url, response.text)
    assert response.headers["content-type"] == "application/json"
    return response.json()


def socket(api_harness: ApiHarness, path: str, who: str = "alice") -> connect:
    """A WebSocket that is about to open, with the header that clients sign in by."""
    url = f"ws://127.0.0.1:{api_harness.api.port}/api/v2{path}"
    return connect(url, additional_headers={"Coder-Session-Token": api_harness.tokens[who]}, open_timeout=TIMEOUT)


async def frames(opened: ClientConnection, until: Callable[[Any], bool] = lambda _: False) -> list[Any]:
    """The text frames that come, until one that is looked for or until the server closes, whatever its reason."""
    found = []
    with suppress(ConnectionClosedError):
        async with asyncio.timeout(TIMEOUT):
            async for frame in opened:
                assert isinstance(frame, str)
                found.append(json.loads(frame))
                if until(found[-1]):
                    break
    return found


async def up(api_harness: ApiHarness, task: str, number: int = 1) -> None:
    """Bring a build of a task up as a runner does, with a workspace, an agent and an app."""
    named = {
        "workspace": {"id": WORKSPACE, "name": "fix-the-flaky-test"},
        "agent_id": AGENT,
        "app": {"id": APP, "slug": "claude"},
    }
    task_id = uuid.UUID(task)
    await api_harness.worker.report(
        build_report(task_id, number, "start", "succeeded", **named),
        make_report("agent.lifecycle", task_id, build_number=number, lifecycle="ready"),
        make_report("agent.heartbeat", task_id, build_number=number),
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "active")


async def idle(api_harness: ApiHarness, task: str, number: int = 1) -> None:
    """Let the agent say that it has nothing to do."""
    task_id = uuid.UUID(task)
    await api_harness.worker.report(
        make_report("app.status", task_id, build_number=number, state="idle", message="Done", uri="")
    )
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "idle")


async def test_the_github_action(api_harness: ApiHarness) -> None:
    """User by GitHub account, template, presets, tasks; a new task, and on the next run a word to the same one."""
    await api_harness.worker.database.execute("UPDATE users SET github_com_user_id = 4242 WHERE username = 'alice'")
    client, base = api_harness.carol, api_harness.base
    users = told(await client.get("/users?q=github_com_user_id:4242"))["users"]
    (user,) = shapes.parse_all(users, shapes.USER)
    assert user["username"] == "alice"
    template = shapes.parse(told(await client.get("/organizations/default/templates/claude")), shapes.TEMPLATE)
    found = told(await client.get(f"/templateversions/{template['active_version_id']}/presets"))
    presets = shapes.parse_all(found, shapes.PRESET)
    assert [(each["Name"], each["Default"]) for each in presets] == [("Default", True)]
    listing = f"{base}/api/experimental/tasks?q=owner:{user['username']}"
    assert shapes.parse_all(told(await client.get(listing))["tasks"], shapes.TASK) == []
    body = {
        "name": "gh-issue-7",
        "template_version_id": template["active_version_id"],
        "template_version_preset_id": presets[0]["ID"],
        "input": "Fix it",
    }
    made = shapes.parse(told(await client.post(f"{base}/api/experimental/tasks/alice", json=body), 201), shapes.TASK)
    assert made["owner_id"] == user["id"]
    await up(api_harness, made["id"])
    await idle(api_harness, made["id"])
    again = shapes.parse_all(told(await client.get(listing))["tasks"], shapes.TASK)
    (known,) = [each for each in again if each["name"] == "gh-issue-7"]
    one = shapes.parse(told(await client.get(f"{base}/api/experimental/tasks/alice/{known['id']}")), shapes.TASK)
    assert (one["status"], one["current_state"]["state"]) == ("active", "idle")
    sent = await client.post(f"{base}/api/experimental/tasks/alice/{known['id']}/send", json={"input": "And lint"})
    assert sent.status_code == 204


async def test_the_command_line(api_harness: ApiHarness) -> None:
    """Login, create by template, list, status, pause and resume with their builds watched, send, logs, delete."""
    client = api_harness.alice
    assert (await api_harness.anonymous.get("/users/first")).status_code == 200
    key = told(await client.post("/users/me/keys"), 201)["key"]
    mine = {"Coder-Session-Token": key}
    me = shapes.parse(told(await api_harness.anonymous.get("/users/me", headers=mine)), shapes.USER)
    assert me["id"] == str(ALICE)
    (organization,) = told(await client.get("/users/me/organizations"))
    assert (organization["id"], organization["name"]) == (str(ORGANIZATION), "acme")
    found = await client.get("/templates", params={"q": f'organization:"{organization["id"]}" has-ai-task:true'})
    (template,) = shapes.parse_all(told(found), shapes.TEMPLATE)
    named = told(await client.get(f"/organizations/{organization['id']}/templates/claude"))
    version = told(await client.get(f"/organizations/{organization['id']}/templates/claude/versions/v1"))
    assert (named["active_version_id"], version["id"]) == (template["active_version_id"], str(VERSION))
    assert told(await client.get(f"/templateversions/{version['id']}/presets"))[0]["ID"] == str(PRESET)
    body = {"template_version_id": version["id"], "template_version_preset_id": NIL, "input": "Go", "name": "go"}
    task = told(await client.post("/tasks/me", json=body), 201)["id"]
    await up(api_harness, task)
    listed = told(await client.get("/tasks", params={"q": 'owner:"me" status:"active"'}))
    assert [each["name"] for each in listed["tasks"]] == ["go"]
    status = told(await client.get("/tasks/me/go"))
    assert status["workspace_agent_health"] == {"healthy": True}
    await watched(api_harness, uuid.UUID(task), told(await client.post("/tasks/me/go/pause"), 202), "stop", 2)
    resumed = told(await client.post(f"/tasks/me/{task}/resume"), 202)
    await watched(api_harness, uuid.UUID(task), resumed, "start", 3)
    await up(api_harness, task, 3)
    workspace = told(await client.get(f"/workspaces/{WORKSPACE}"))
    assert workspace["latest_build"]["id"] == resumed["workspace_build_id"]
    assert (await client.post(f"/tasks/me/{task}/send", json={"input": "More"})).status_code == 204
    assert "logs" in told(await client.get(f"/tasks/me/{task}/logs"))
    assert (await client.delete(f"/tasks/me/{task}")).status_code == 202


async def watched(
    api_harness: ApiHarness, task_id: uuid.UUID, asked: dict[str, Any], transition: str, number: int
) -> None:
    """A build watched as the command line does: the build, its log until it is closed, the build once more."""
    path = f"/workspacebuilds/{asked['workspace_build_id']}"
    before = shapes.parse(told(await api_harness.alice.get(path)), shapes.BUILD)
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
        assert shapes.moment(frame["created_at"])
    after = shapes.parse(told(await api_harness.alice.get(path)), shapes.BUILD)
    assert after["job"]["status"] == "succeeded"
    assert after["status"] == {"stop": "stopped", "start": "running"}[transition]
    assert shapes.moment(after["job"]["completed_at"])
    assert [entry["id"] for entry in told(await api_harness.alice.get(f"{path}/logs"))][-1] == rest[-1]["id"]


async def test_vs_code(api_harness: ApiHarness) -> None:
    """The panel's look-ups, a selected task with its logs over both sockets, and all that it does to a task."""
    client = api_harness.alice
    me = told(await client.get("/users/me"))
    assert (me["username"], me["roles"]) == ("alice", [])
    version = told(await api_harness.anonymous.get("/buildinfo"))["version"]
    assert version.startswith("v2.34.0+taskherd")
    assert told(await client.get("/tasks?q=owner:me")) == {"tasks": [], "count": 0}
    (template,) = told(await client.get("/templates?q=has-ai-task:true"))
    assert {"id", "name", "display_name", "description", "active_version_id"} <= set(template)
    assert (template["id"], template["description"]) == (str(TEMPLATE), "")
    assert len(told(await client.get(f"/templateversions/{template['active_version_id']}/presets"))) == 1
    body = {"template_version_id": template["active_version_id"], "input": "Panel"}
    task = told(await client.post("/tasks/me", json=body), 201)
    assert task["workspace_id"] is None
    first = str(house_build(task["id"], 1))
    async with socket(api_harness, f"/workspacebuilds/{first}/logs?follow=true") as opened:
        await frames(opened, lambda frame: frame["stage"] == "Waiting for a runner")
        await up(api_harness, task["id"])
        assert (await frames(opened))[-1]["output"] == "The workspace is running."
    task = told(await client.get(f"/tasks/alice/{task['id']}"))
    path = f"/workspaceagents/{task['workspace_agent_id']}/logs"
    async with socket(api_harness, f"{path}?follow=true") as opened:
        (lines,) = await frames(opened, lambda _: True)
        assert isinstance(lines, list)
        assert all(isinstance(each["id"], int) and isinstance(each["output"], str) for each in lines)
        assert told(await client.get(path))[: len(lines)] == lines
        assert told(await client.get(f"/workspaces/{task['workspace_id']}"))["id"] == WORKSPACE
        assert (
            told(await client.post(f"/tasks/alice/{task['id']}/pause"), 202)["workspace_build"]["transition"] == "stop"
        )
        await frames(opened)
        assert opened.close_code == 1000
    await api_harness.worker.report(build_report(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(uuid.UUID(task["id"])).get("status") == "paused")
    older = told(await client.post(f"/workspaces/{WORKSPACE}/builds", json={"transition": "start"}), 201)
    assert (older["transition"], older["build_number"]) == ("start", 3)
    assert (await client.delete(f"/tasks/alice/{task['id']}")).status_code == 202
    assert (await client.get(f"/workspaces/{WORKSPACE}")).status_code == 404


def house_build(task: str, number: int) -> uuid.UUID:
    """The id of a build: UUIDv5 of the number's digits in the task's id."""
    return uuid.uuid5(uuid.UUID(task), str(number))


async def test_the_mcp_tools(api_harness: ApiHarness) -> None:
    """Who am I, then create, list, status, send, logs, delete."""
    client = api_harness.alice
    me = told(await client.get("/users/me"))
    body = {"template_version_id": str(VERSION), "template_version_preset_id": NIL, "input": "Do"}
    task = told(await client.post(f"/tasks/{me['id']}", json=body), 201)
    await up(api_harness, task["id"])
    listed = told(await client.get("/tasks", params={"q": 'owner:"me"'}))
    assert [each["id"] for each in listed["tasks"]] == [task["id"]]
    await idle(api_harness, task["id"])
    state = told(await client.get(f"/tasks/me/{task['id']}"))["current_state"]
    assert (state["state"], state["message"]) == ("idle", "Done")
    assert (await client.post(f"/tasks/me/{task['id']}/send", json={"input": "On"})).status_code == 204
    assert told(await client.get(f"/tasks/me/{task['id']}/logs")) == {"logs": []}
    assert (await client.delete(f"/tasks/me/{task['id']}")).status_code == 202


async def test_an_agent(api_harness: ApiHarness) -> None:
    """With the token of its start request it says what it does and leaves its conversation, for its own task only."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    await api_harness.worker.until(lambda: api_harness.worker.requests_of(task_id, "workspace.start"))
    await up(api_harness, str(task_id))
    token = api_harness.worker.requests_of(task_id, "workspace.start")[0]["agent_token"]
    mine = {"Coder-Session-Token": token}
    body = {"app_slug": "claude", "state": "working", "message": "x" * 3000, "uri": "https://example.com/pr/1"}
    taken = await api_harness.anonymous.patch("/workspaceagents/me/app-status", json=body, headers=mine)
    assert (taken.status_code, taken.content) == (200, b"null")
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("uri") == "https://example.com/pr/1")
    assert api_harness.worker.state(task_id)["message"] == "x" * 1999 + "…"
    failing = {"app_slug": "claude", "state": "failure", "message": "", "uri": ""}
    assert (
        await api_harness.anonymous.patch("/workspaceagents/me/app-status", json=failing, headers=mine)
    ).status_code == 200
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "failed")
    snapshot = {
        "messages": [
            {"id": 0, "content": "Fix it", "role": "user", "time": "2026-01-02T03:04:05Z"},
            {"id": 1, "content": "Fixed", "role": "agent", "time": "2026-01-02T03:04:06.5+01:00"},
        ]
    }
    path = f"/workspaceagents/me/tasks/{task_id}/log-snapshot"
    left = await api_harness.anonymous.post(f"{path}?format=agentapi", json=snapshot, headers=mine)
    assert (left.status_code, left.content) == (204, b"")
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=2)
    logs = told(await api_harness.alice.get(f"/tasks/me/{task_id}/logs"))["logs"]
    assert [(each["type"], each["content"]) for each in logs] == [("input", "Fix it"), ("output", "Fixed")]
