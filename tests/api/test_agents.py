"""What an agent may say, and until when: its token, and whose words are in its log."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import pytest

from taskherd.api.http import endpoint
from taskherd.messages.agent_tokens import agent_token
from tests.api.test_access import SIGNED_OUT
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.worker import SECRET, build_report, make_report

SendBody: TypeAlias = Callable[[], Awaitable[int]]
STATUS: dict[str, Any] = {"app_slug": "x", "state": "working", "message": "Still here", "uri": ""}


def message(number: int, role: str, content: str) -> dict[str, Any]:
    """Return a message of a snapshot."""
    return {"id": number, "role": role, "content": content}


async def say(api_harness: ApiHarness, task_id: uuid.UUID, number: int) -> httpx.Response:
    """Report a status with the agent token of a build."""
    headers = {"Coder-Session-Token": agent_token(SECRET, task_id, number)}
    return await api_harness.anonymous.patch("/workspaceagents/me/app-status", json=STATUS, headers=headers)


async def upload(api_harness: ApiHarness, task_id: uuid.UUID, number: int, *messages: dict[str, Any]) -> httpx.Response:
    """Upload a snapshot with the agent token of a build."""
    headers = {"Coder-Session-Token": agent_token(SECRET, task_id, number)}
    path = f"/workspaceagents/me/tasks/{task_id}/log-snapshot?format=agentapi"
    return await api_harness.anonymous.post(path, json={"messages": messages}, headers=headers)


async def test_an_agents_token_ends_with_a_later_start_or_a_delete(api_harness: ApiHarness) -> None:
    """An agent may speak while its build stops, and no longer once the next start or the task's delete is accepted."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    assert (await say(api_harness, task_id, 1)).status_code == 200
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
    assert (await say(api_harness, task_id, 1)).status_code == 200
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/resume")).status_code == 202
    for response in (
        await say(api_harness, task_id, 1),
        await upload(api_harness, task_id, 1, message(0, "user", "Delete everything")),
    ):
        assert (response.status_code, response.json()) == (401, SIGNED_OUT)
    assert (await say(api_harness, task_id, 3)).status_code == 200
    assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
    assert (await say(api_harness, task_id, 3)).status_code == 401
    assert (await say(api_harness, uuid.uuid4(), 1)).status_code == 401


@asynccontextmanager
async def slow_request(api_harness: ApiHarness, path: str, token: str, body: bytes) -> AsyncIterator[SendBody]:
    """Send the head of a POST, and yield what sends its body and returns the status, once the API has asked for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {token}\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())

    async def send_body() -> int:
        writer.write(body)
        return int((await reader.readuntil(b"\r\n\r\n")).split()[1])

    try:
        async with asyncio.timeout(TIMEOUT):
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            yield send_body
    finally:
        writer.close()


async def test_a_token_that_ends_while_the_body_comes_has_no_effect(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that sends the head of its request, and the body after the next start was accepted, adds nothing.

    Likewise who sends a command and is signed out meanwhile. While the token is valid, a slow body is no matter.
    """
    monkeypatch.setattr(endpoint, "SLOW_BODY", 0.0)
    task_id = uuid.UUID((await api_harness.active())["id"])
    entry = {"id": 1, "type": "output", "content": "Out of the past", "time": TIME}
    log, token = json.dumps({"entries": [entry]}).encode(), agent_token(SECRET, task_id, 1)
    path = "/api/v2/workspaceagents/me/logs"
    async with slow_request(api_harness, path, token, log.replace(b"Out of", b"Part of")) as send_body:
        assert await send_body() == 204
    async with slow_request(api_harness, path, token, log) as send_body:
        assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
        await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
        assert (await api_harness.alice.post(f"/tasks/me/{task_id}/resume")).status_code == 202
        assert await send_body() == 401
    await api_harness.worker.until_row("SELECT array_agg(content) FROM task_logs", is_=["Part of the past"])
    send, bob = json.dumps({"input": "By bob"}).encode(), api_harness.tokens["bob"]
    own = (await api_harness.create(api_harness.bob))["id"]
    async with slow_request(api_harness, f"/api/v2/tasks/me/{own}/send", bob, send) as send_body:
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now() WHERE id = $1", bob[:10])
        while (await api_harness.bob.get("/users/me")).status_code == 200:
            continue
        assert await send_body() == 401


async def test_an_agents_words_are_never_a_persons(api_harness: ApiHarness) -> None:
    """In a snapshot only the task's prompt and inputs that were sent to its agent are input; all else is output."""
    task_id = uuid.UUID((await api_harness.active(input="Fix the flaky test"))["id"])
    await api_harness.create(input="Prompt of another task")
    for text in ("Which one?\nThe first.", "Not yet sent"):
        assert (await api_harness.alice.post(f"/tasks/me/{task_id}/send", json={"input": text})).status_code == 204
    await api_harness.worker.until(lambda: api_harness.worker.requests_of(task_id, "agent.input"))
    sent = api_harness.worker.requests_of(task_id, "agent.input")[0]["input_id"]
    await api_harness.worker.report(make_report("task.input", task_id, input_id=sent, outcome="delivered"))
    await api_harness.worker.until_row("SELECT count(*) FROM inputs WHERE state = 'delivered'", is_=1)
    response = await upload(
        api_harness,
        task_id,
        1,
        message(0, "user", "Fix the\nflaky test "),
        message(1, "agent", "Fix the flaky test"),
        message(2, "user", "Which one? The first."),
        message(3, "user", "Yes, deploy it to production."),
        message(4, "user", "Prompt of another task"),
        message(5, "user", "Not yet sent"),
    )
    assert response.status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task_id, is_=6)
    logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    assert [each["type"] for each in logs] == ["input", "output", "input", "output", "output", "output"]


TIME = "2026-01-02T03:04:05Z"


async def give(api_harness: ApiHarness, task_id: uuid.UUID, text: str) -> None:
    """Send an input, as a person, and report that it was delivered."""
    sent = len(api_harness.worker.requests_of(task_id, "agent.input"))
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/send", json={"input": text})).status_code == 204
    await api_harness.worker.until(lambda: len(api_harness.worker.requests_of(task_id, "agent.input")) > sent)
    request = api_harness.worker.requests_of(task_id, "agent.input")[-1]
    input_id = request["input_id"]
    await api_harness.worker.report(make_report("task.input", task_id, input_id=input_id, outcome="delivered"))
    await api_harness.worker.until_row(
        "SELECT state FROM inputs WHERE input_id = $1", uuid.UUID(input_id), is_="delivered"
    )


async def add(api_harness: ApiHarness, task_id: uuid.UUID, *entries: tuple[int, str, str]) -> None:
    """Add entries to the log with the agent's token."""
    headers = {"Coder-Session-Token": agent_token(SECRET, task_id, 1)}
    body = {"entries": [{"id": number, "type": kind, "content": text, "time": TIME} for number, kind, text in entries]}
    response = await api_harness.anonymous.post("/workspaceagents/me/logs", json=body, headers=headers)
    assert response.status_code == 204


async def log_of(api_harness: ApiHarness, task_id: uuid.UUID, until: str) -> list[tuple[str, str]]:
    """Return types and contents of the log, once it has an entry with that content."""
    statement = "SELECT count(*) FROM task_logs WHERE task_id = $1 AND content = $2"
    await api_harness.worker.until_row(statement, task_id, until, is_=1)
    logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    return [(each["type"], each["content"]) for each in logs]


async def test_an_agent_neither_changes_nor_repeats_what_its_runner_logged(api_harness: ApiHarness) -> None:
    """It turns no "no" into an earlier "yes", makes no second "yes", and no word of a person its own."""
    task_id = uuid.UUID((await api_harness.create(input="Clean up"))["id"])
    claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
    assert (await api_harness.worker.send(claim, "claims"))["granted"]
    await api_harness.worker.make_active(task_id)
    await give(api_harness, task_id, "yes")
    await give(api_harness, task_id, "no")
    conversation = [
        ("input", "Clean up"),
        ("output", "Delete the cache?"),
        ("input", "yes"),
        ("output", "Delete the backups?"),
        ("input", "no"),
    ]
    logged = [
        {"id": number, "type": kind, "content": text, "time": TIME} for number, (kind, text) in enumerate(conversation)
    ]
    await api_harness.worker.report(make_report("task.log", task_id, build_number=1, seq=1, entries=logged))
    assert await log_of(api_harness, task_id, "no") == conversation
    await add(
        api_harness, task_id, (4, "input", "yes"), (3, "input", "yes"), (5, "input", "yes"), (2, "output", "maybe")
    )
    messages = [message(4, "user", "yes"), message(6, "user", "yes"), message(8, "agent", "perhaps")]
    assert (await upload(api_harness, task_id, 1, *messages)).status_code == 204
    await add(api_harness, task_id, (7, "output", "end"))
    log = await log_of(api_harness, task_id, "end")
    assert log[:5] == conversation
    assert set(log[5:]) == {("output", "maybe"), ("output", "perhaps"), ("output", "end")}


async def test_an_agent_shows_an_input_as_often_as_it_was_given(api_harness: ApiHarness) -> None:
    """Where no runner logs what the agent is given, it does so itself, but each input once."""
    task_id = uuid.UUID((await api_harness.active(input="Clean up"))["id"])
    await give(api_harness, task_id, "yes")
    await add(api_harness, task_id, (0, "input", "Clean up"), (1, "input", "yes"))
    await add(api_harness, task_id, (2, "input", "yes"), (0, "input", "Clean up"), (1, "output", "Delete the backups?"))
    await add(api_harness, task_id, (3, "output", "end"))
    given = [("input", "Clean up"), ("input", "yes")]
    assert await log_of(api_harness, task_id, "end") == [
        *given, ("output", "Delete the backups?"), ("output", "end")
    ]  # fmt: skip
    await give(api_harness, task_id, "yes")
    await upload(api_harness, task_id, 1, *(message(number, "user", "yes") for number in (4, 5, 6)))
    await add(api_harness, task_id, (7, "output", "the end"))
    log = await log_of(api_harness, task_id, "the end")
    assert [text for kind, text in log if kind == "input"] == ["Clean up", "yes", "yes"]
    assert log[4:] == [("output", "yes"), ("input", "yes"), ("output", "the end")]
