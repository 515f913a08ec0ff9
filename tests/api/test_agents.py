"""What an agent may say, and until when: its token, and whose words are in its log."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from taskherd.messages.agent_tokens import agent_token
from tests.api.test_access import SIGNED_OUT
from tests.harness.api import ApiHarness
from tests.harness.worker import SECRET, build_report, make_report

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
