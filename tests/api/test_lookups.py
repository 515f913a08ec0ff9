"""The resources that clients look up in addition to tasks: access, errors, and the logs of builds and agents."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from logging import DEBUG
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from taskherd.api.context import RequestContext
from taskherd.api.routes import PREFIX, SOCKETS
from taskherd.api.workspaces import log_stream, logs
from taskherd.api.workspaces.queries import BuildLookup, get_or_404
from taskherd.errors import Retry, Unavailable
from taskherd.messages.agent_tokens import agent_token
from taskherd.store.read_pool import Row
from tests.api.conftest import StartApi
from tests.api.test_clients import WORKSPACE, expected_build_id, frames, socket, start_build
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


def fingerprint(response: httpx.Response) -> tuple[Any, ...]:
    """Return all parts of a response that could distinguish two errors."""
    headers = sorted((name, value) for name, value in response.headers.items() if name != "date")
    return response.status_code, response.content, *headers


@pytest.fixture
async def task(api_harness: ApiHarness) -> dict[str, Any]:
    """Create a task of alice whose workspace and agent are running."""
    created = await api_harness.create()
    await start_build(api_harness, created["id"])
    return await api_harness.get(created["id"])


async def test_a_resource_of_another_user_looks_like_a_missing_one(
    api_harness: ApiHarness, task: dict[str, Any]
) -> None:
    """On every lookup, a resource of another user, a missing one and an impossible id give identical 404s."""
    own_build = str(expected_build_id(task["id"], 1))
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
        "/templateversions/{}/rich-parameters": (str(VERSION),),
        "/templates/{}": (str(TEMPLATE),),
        "/users/alice/workspace/{}": (task["name"],),
        "/workspaces/{}": (WORKSPACE, task["id"]),
        "/workspacebuilds/{}/parameters": (own_build,),
        "/workspacebuilds/{}": (own_build,),
        "/workspacebuilds/{}/logs": (own_build,),
        "/workspaceagents/{}/logs": (agent,),
    }
    for path, names in probes.items():
        for name in names:
            assert (await api_harness.alice.get(path.format(name))).status_code == 200, (path, name)
        answers = {
            fingerprint(await api_harness.mallory.get(path.format(name)))
            for name in (*names, NOTHING, "nothing", "a%00b", "%ff", "x" * 300)
        }
        assert len(answers) == 1, (path, answers)
        assert next(iter(answers))[:2] == (404, NOT_FOUND), path
    posted = {
        fingerprint(await api_harness.bob.post(f"/workspaces/{name}/builds", json={"transition": "stop"}))
        for name in (WORKSPACE, NOTHING, "nothing")
    }
    assert {each[:2] for each in posted} == {(404, NOT_FOUND)}
    assert len(posted) == 1
    assert (await api_harness.carol.get(f"/workspaces/{WORKSPACE}")).status_code == 200
    keys = {fingerprint(await api_harness.bob.post(f"/users/{user}/keys")) for user in ("alice", "nothing", str(ALICE))}
    assert {each[:2] for each in keys} == {(404, NOT_FOUND)}
    assert await api_harness.get(task["id"]) == task


async def test_lists_contain_only_the_callers_organizations(api_harness: ApiHarness) -> None:
    """Lists contain the users and templates of the caller's organizations, and no others."""
    people = (await api_harness.alice.get("/users")).json()
    assert ([each["username"] for each in people["users"]], people["count"]) == (["alice", "bob", "carol"], 3)
    assert [each["organization_ids"] for each in people["users"]] == [[str(ORGANIZATION)]] * 3
    assert [each["username"] for each in (await api_harness.alice.get("/users?q=BO")).json()["users"]] == ["bob"]
    for number in (7, 2**63 - 1):
        found = await api_harness.alice.get(f"/users?q=github_com_user_id:{number}")
        assert found.json() == {"users": [], "count": 0}
    assert [each["name"] for each in (await api_harness.alice.get("/templates")).json()] == ["claude"]
    assert [each["name"] for each in (await api_harness.mallory.get("/templates")).json()] == ["codex"]
    assert (await api_harness.alice.get(f"/templateversions/{OTHER_VERSION}")).status_code == 404
    assert (await api_harness.mallory.get(f"/templateversions/{OTHER_VERSION}/presets")).json() == []
    for query, names in (
        ("organization:default", ["claude"]),
        (f"organization:{ORGANIZATION}", ["claude"]),
        (f"organization:{OTHER}", []),
        (f"organization:{NOTHING}", []),
        *((f"has-ai-task:{no}", []) for no in ("false", "0", "f")),
        *(
            (f"has-ai-task:{yes} deprecated:{no}", ["claude"])
            for yes, no in (("true", "false"), ("1", "0"), ("t", "f"))
        ),
        *((f"deprecated:{yes}", []) for yes in ("true", "1", "t")),
        ("exact_name:Claude", ["claude"]),
        ("exact_name:clau", []),
        ("clau", ["claude"]),
    ):
        response = await api_harness.alice.get("/templates", params={"q": query})
        assert [each["name"] for each in response.json()] == names, query
    await api_harness.worker.database.execute(
        "INSERT INTO memberships (user_id, organization_id, role) VALUES ($1, $2, 'member')", MALLORY, ORGANIZATION
    )
    for path, names in (
        ("/templates", ["claude", "codex"]),
        ("/templates?q=organization:other", ["codex"]),
        ("/organizations/acme/templates", ["claude"]),
        ("/organizations/acme/templates?q=organization:acme", ["claude"]),
        ("/organizations/acme/templates?q=organization:other", []),
    ):
        assert [each["name"] for each in (await api_harness.mallory.get(path)).json()] == names, path
    for path in ("/organizations", "/users/mallory/organizations"):
        shared = (await api_harness.mallory.get(path)).json()
        assert [each["is_default"] for each in shared] == [True, False], path
    await api_harness.worker.database.execute(
        "DELETE FROM memberships WHERE user_id = $1 AND organization_id = $2", MALLORY, ORGANIZATION
    )
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
        ("/users?q=github_com_user_id:9223372036854775808", "Invalid user search query."),
        ("/users?q=github_com_user_id:-1", "Invalid user search query."),
        ("/users?q=github_com_user_id:%C2%B2", "Invalid user search query."),
        ("/users?q=colour:red", "Invalid user search query."),
        ("/users?q=a%00b", "Invalid user search query."),
        ("/templates?q=has-ai-task:perhaps", "Invalid template search query."),
        ("/templates?q=organization:nothing", "Invalid template search query."),
        ("/templates?q=:x", "Invalid template search query."),
        ("/templates?q=name:a%00b", "Invalid template search query."),
    ],
)
async def test_an_invalid_query_is_rejected(api_harness: ApiHarness, path: str, message: str) -> None:
    """An invalid query is a 400 that names the invalid part."""
    response = await api_harness.alice.get(path)
    assert (response.status_code, response.json()["message"]) == (400, message)
    assert response.json()["validations"]


async def denied(api_harness: ApiHarness, path: str, token: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of the response to a handshake that is denied."""
    headers = {"Coder-Session-Token": token} if token else {}
    url = f"ws://127.0.0.1:{api_harness.api.port}{path}"
    with pytest.raises(InvalidStatus) as error:
        async with connect(url, additional_headers=headers, open_timeout=TIMEOUT):
            pass
    response = error.value.response
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = json.loads(response.body or b"")
    return response.status_code, body


async def test_a_denied_socket_is_no_error_of_the_server(
    api_harness: ApiHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused handshake, or one that is none, logs nothing above debug."""
    await denied(api_harness, f"{PREFIX}/workspaceagents/{NOTHING}/logs", "x")
    await denied(api_harness, f"{PREFIX}/nothing", api_harness.tokens["alice"])
    reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
    writer.write(b"GET /api/v2/x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        assert (await reader.read()).split()[1] in {b"400", b"426"}
    writer.close()
    api_harness.api.stop()
    assert [record for record in caplog.records if record.name.startswith("uvicorn") and record.levelno > DEBUG] == []


async def test_denied_sockets_get_a_json_error(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """401 without a valid token, 404 for an unknown path or a resource the caller may not see, 400 for a parameter."""
    ids = {"/workspacebuilds/{id}/logs": str(expected_build_id(task["id"], 1)), "/workspaceagents/{id}/logs": ""}
    ids["/workspaceagents/{id}/logs"] = task["workspace_agent_id"]
    ids["/workspaces/{id}/watch-ws"] = WORKSPACE
    assert {each.path for each in SOCKETS} == set(ids)
    for path, own in ids.items():
        for token in ("", "x", agent_token(SECRET, uuid.UUID(task["id"]), 1)):
            status, body = await denied(api_harness, PREFIX + path.format(id=own), token)
            assert (status, body["message"]) == (401, SIGNED_OUT)
        for identifier in (own, NOTHING, "nothing"):
            answer = await denied(api_harness, PREFIX + path.format(id=identifier), api_harness.tokens["bob"])
            assert answer == (404, json.loads(NOT_FOUND))
        if path.endswith("/logs"):
            target = f"{PREFIX}{path.format(id=own)}?after=x"
            status, body = await denied(api_harness, target, api_harness.tokens["alice"])
            assert (status, body["validations"][0]["field"]) == (400, "after")
    status, body = await denied(api_harness, "/api/v2/nothing", api_harness.tokens["alice"])
    assert (status, body) == (404, {"message": "Route not found."})


async def test_a_socket_is_denied_during_an_outage(
    api_harness: ApiHarness, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake that the database must answer gets a JSON 503, without what only operators should read."""

    async def fail(_request: RequestContext, _lookup: BuildLookup) -> Row:
        raise Unavailable("The connection to Postgres was lost")

    monkeypatch.setattr(log_stream, "get_or_404", fail)
    path = f"{PREFIX}/workspaceagents/{task['workspace_agent_id']}/logs"
    answer = await denied(api_harness, path, api_harness.tokens["alice"])
    detail = "Please try again in a moment."
    assert answer == (503, {"message": "The service is temporarily unavailable.", "detail": detail})


async def test_unknown_paths_and_methods_get_a_json_error(api_harness: ApiHarness) -> None:
    """An unknown path is a JSON 404, a wrong method a JSON 405 that names the right ones."""
    for path in ("/users/", "/users/me/logout", "/workspaceagents", "/workspaceagents/me/rpc", "/api"):
        response = await api_harness.alice.get(path)
        assert (response.status_code, response.json()) == (404, {"message": "Route not found."}), path
    for method, path, allowed in (
        ("POST", "/buildinfo", "GET, HEAD"),
        ("DELETE", "/users/me", "GET, HEAD"),
        ("GET", "/users/me/keys", "POST"),
        ("PUT", "/workspaces/x/builds", "GET, HEAD, POST"),
        ("POST", "/workspacebuilds/x/logs", "GET, HEAD"),
        ("GET", "/workspaceagents/me/app-status", "PATCH"),
    ):
        wrong = await api_harness.alice.request(method, path)
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, allowed), path
        assert wrong.headers["content-type"] == "application/json"


async def test_failed_and_superseded_builds(api_harness: ApiHarness) -> None:
    """A failed build has an error, a build superseded before its result is unknown, and each completes its log."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    first, second = (f"/workspacebuilds/{expected_build_id(str(task_id), number)}" for number in (1, 2))
    assert (await api_harness.alice.get(first)).json()["job"]["status"] == "pending"
    assert (await api_harness.alice.get(second)).status_code == 404
    async with socket(api_harness, f"{first}/logs?follow") as opened:
        await api_harness.worker.report(
            build_report(task_id, 2, "start", "running", workspace={"id": WORKSPACE, "name": "w"})
        )
        await frames(opened)
    superseded = (await api_harness.alice.get(first)).json()
    assert (superseded["job"]["status"], superseded["status"]) == ("unknown", "failed")
    async with socket(api_harness, f"{second}/logs?follow") as opened:
        await api_harness.worker.report(build_report(task_id, 2, "start", "failed", error="No space left"))
        last = (await frames(opened))[-1]
    assert (last["log_level"], last["output"]) == ("error", "No space left")
    failed = (await api_harness.alice.get(second)).json()
    assert (failed["job"]["status"], failed["job"]["error"]) == ("failed", "No space left")
    assert (await api_harness.alice.get(f"/workspaces/{WORKSPACE}")).json()["latest_build"] == failed


async def test_two_builds_in_one_batch(api_harness: ApiHarness) -> None:
    """A build keeps its result if it is folded in one batch with the next build."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    await api_harness.worker.report(
        build_report(task_id, 1, "start", "succeeded"), build_report(task_id, 2, "stop", "succeeded")
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    builds = [
        (await api_harness.alice.get(f"/workspacebuilds/{expected_build_id(str(task_id), number)}")).json()
        for number in (1, 2)
    ]
    assert [each["status"] for each in builds] == ["running", "stopped"]


async def test_a_build_that_timed_out(start_api: StartApi) -> None:
    """A build that no runner picked up has failed, with an error."""
    async with start_api(request_ttl=1, request_backoff_first=0.1, request_backoff_most=0.5) as api_harness:
        task_id = uuid.UUID((await api_harness.create())["id"])
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "error")
        build = (await api_harness.alice.get(f"/workspacebuilds/{expected_build_id(str(task_id), 1)}")).json()
        assert build["job"]["status"] == "failed"
        assert build["job"]["error"]


async def test_a_report_that_changes_no_build_writes_none(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """Heartbeats, app statuses and a build report without a change do not write the build's row."""
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


async def test_an_agent_named_only_by_its_lifecycle_report(api_harness: ApiHarness) -> None:
    """An agent is found by its id whichever report named it, until its task is deleted."""
    task_id, agent = uuid.UUID((await api_harness.create())["id"]), str(uuid.uuid4())
    await api_harness.worker.report(
        build_report(task_id, 1, "start", "succeeded"),
        make_report("agent.lifecycle", task_id, build_number=1, lifecycle="starting", agent_id=agent),
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("workspace_agent_id") == agent)
    entries = (await api_harness.alice.get(f"/workspaceagents/{agent}/logs")).json()
    assert entries[-1]["output"].startswith("Agent is starting")
    async with socket(api_harness, f"/workspaceagents/{agent}/logs?follow") as opened:
        assert (await frames(opened, lambda _: True))[0] == entries
        assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
        assert await frames(opened) == []
        assert opened.close_code == 1008
    assert (await api_harness.alice.get(f"/workspaceagents/{agent}/logs")).status_code == 404


async def test_a_socket_ends_with_its_token_and_with_the_process(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """A socket is closed when its token is revoked, and when the process stops."""
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


async def test_a_followed_log_has_every_entry_once(
    api_harness: ApiHarness, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it takes several reads; a client that has some already gets those after the one that it names."""
    path = f"/workspacebuilds/{expected_build_id(task['id'], 1)}/logs"
    entries = (await api_harness.alice.get(path)).json()
    assert len(entries) == 2
    monkeypatch.setattr(logs, "MAX_ENTRIES", 1)
    for first in range(2):
        after = f"&after={entries[first - 1]['id']}" if first else ""
        async with socket(api_harness, f"{path}?follow{after}") as opened:
            assert await frames(opened) == entries[first:]
            assert opened.close_code == 1000


@pytest.mark.parametrize("outage", [Unavailable("The database can't be reached"), Retry("The plan is stale")])
async def test_a_followed_log_survives_an_outage(
    api_harness: ApiHarness, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch, outage: Exception
) -> None:
    """While the database cannot be read the socket stays open, and then it sends what it has missed."""
    failed = asyncio.Event()

    async def fail_once(request: RequestContext, lookup: BuildLookup) -> Row:
        if not failed.is_set():
            failed.set()
            raise outage
        return await get_or_404(request, lookup)

    async with socket(api_harness, f"/workspaceagents/{task['workspace_agent_id']}/logs?follow") as opened:
        await frames(opened, lambda _: True)
        monkeypatch.setattr(log_stream, "POLL_INTERVAL", 0.2)
        monkeypatch.setattr(log_stream, "get_or_404", fail_once)
        await api_harness.worker.report(
            make_report("agent.lifecycle", uuid.UUID(task["id"]), lifecycle="shutting_down")
        )
        (entries,) = await frames(opened, lambda _: True)
        assert failed.is_set()
        assert entries[-1]["output"].startswith("Agent is shutting down")


async def test_a_log_is_followed_after_its_subscription_has_ended(
    api_harness: ApiHarness, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read at intervals then, not again and again without a pause, and new entries still arrive."""
    interval, reads = 0.2, 0

    async def count_read(request: RequestContext, lookup: BuildLookup) -> Row:
        nonlocal reads
        reads += 1
        return await get_or_404(request, lookup)

    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", interval)
    monkeypatch.setattr(log_stream, "get_or_404", count_read)
    async with socket(api_harness, f"/workspaceagents/{task['workspace_agent_id']}/logs?follow") as opened:
        await frames(opened, lambda _: True)
        (subscriber,) = api_harness.api.change_feed._subscribers[ALICE]
        subscriber.end()
        reads, began = 0, time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while reads < 10:  # noqa: ASYNC110 - a read sends no notification
                await asyncio.sleep(0.02)
        assert reads <= (time.monotonic() - began) / interval + 2
        task_id = uuid.UUID(task["id"])
        await api_harness.worker.report(make_report("agent.lifecycle", task_id, lifecycle="shutting_down"))
        (entries,) = await frames(opened, lambda _: True)
        assert entries[-1]["output"].startswith("Agent is shutting down")


async def test_invalid_requests_of_agents_are_rejected(api_harness: ApiHarness, task: dict[str, Any]) -> None:
    """Users' tokens, other tasks, unknown states and formats, and snapshots over 64 KiB are rejected."""
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
    other_tasks = {
        fingerprint(await api_harness.anonymous.post(snapshot.replace(task["id"], each), json=empty, headers=agent))
        for each in (other["id"], NOTHING, "nothing")
    }
    assert [each[:2] for each in other_tasks] == [(404, NOT_FOUND)]
    response = await api_harness.anonymous.patch(status, json={**working, "state": "asleep"}, headers=agent)
    assert (response.status_code, response.json()["message"]) == (400, "Invalid state provided.")
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
    """While the broker is unavailable an agent gets a 503 with Retry-After, and lookups keep working."""
    async with running_api(database_url, "amqp://127.0.0.1:1/", amqp_prefix) as api:
        token = {"Coder-Session-Token": agent_token(SECRET, uuid.UUID((await api_harness.create())["id"]), 1)}
        headers = {"Coder-Session-Token": api_harness.tokens["alice"]}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}/api/v2", timeout=TIMEOUT) as client:
            body = {"app_slug": "x", "state": "idle", "message": "", "uri": ""}
            response = await client.patch("/workspaceagents/me/app-status", json=body, headers=token)
            assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
            assert (await client.get("/users/me", headers=headers)).json()["username"] == "alice"
            presets = (await client.get(f"/templateversions/{VERSION}/presets", headers=headers)).json()
            assert [each["ID"] for each in presets] == [str(PRESET)]
