"""Requests of agents, as runners report them, and as agents open them with their own token."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from taskherd.messages.agent_tokens import agent_token
from tests.harness.api import ApiHarness
from tests.harness.worker import SECRET, make_report

OPTIONS = [
    {"id": "yes", "label": "Allow once", "kind": "allow_once"},
    {"id": "always", "label": "Always allow", "kind": "allow_always"},
    {"id": "no", "label": "No", "kind": "reject_once"},
]
OWN = "/workspaceagents/me/requests"


def request_report(task_id: uuid.UUID, request_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
    """Return a report of a request, by default an open question of the first build."""
    defaults = {"kind": "question", "title": f"Question {request_id}", "state": "open", "build_number": 1}
    return make_report("agent.request", task_id, request_id=str(request_id), **{**defaults, **fields})


async def asked(harness: ApiHarness, task_id: uuid.UUID, **fields: Any) -> uuid.UUID:
    """Report an open request, wait until the task shows it, and return its id."""
    request_id = uuid.uuid4()
    await harness.worker.report(request_report(task_id, request_id, **fields))
    await harness.worker.until(lambda: shows(harness, task_id, request_id))
    return request_id


async def approval(harness: ApiHarness, task_id: uuid.UUID, **fields: Any) -> uuid.UUID:
    """Report an open request for an approval with options."""
    return await asked(harness, task_id, **{"kind": "approval", "options": OPTIONS, **fields})


async def closed(harness: ApiHarness, task_id: uuid.UUID, request_id: uuid.UUID, **fields: Any) -> None:
    """Report that a request is over, and wait until the worker knows it."""
    await harness.worker.report(request_report(task_id, request_id, **fields))
    statement = "SELECT report::json ->> 'state' FROM agent_requests WHERE request_id = $1"
    await harness.worker.until_row(statement, request_id, is_=fields["state"])


def shows(harness: ApiHarness, task_id: uuid.UUID, request_id: uuid.UUID) -> bool:
    """Return whether the task's document has this open request."""
    return str(request_id) in {each["id"] for each in harness.worker.document(task_id).get("requests", ())}


async def as_agent(
    harness: ApiHarness, task_id: uuid.UUID, method: str, path: str = OWN, *, number: int = 1, **more: Any
) -> httpx.Response:
    """Send a request with the token of the task's agent."""
    headers = {"Coder-Session-Token": agent_token(SECRET, task_id, number)}
    return await harness.anonymous.request(method, path, headers=headers, **more)


async def own(harness: ApiHarness, task_id: uuid.UUID, **fields: Any) -> uuid.UUID:
    """Open a request with the agent's token, wait until the task shows it, and return its id."""
    body = {"kind": "question", "title": f"Question of {task_id}", **fields}
    response = await as_agent(harness, task_id, "POST", json=body)
    assert response.status_code == 202, response.text
    request_id = uuid.UUID(response.json()["request_id"])
    await harness.worker.until(lambda: shows(harness, task_id, request_id))
    return request_id


async def active(harness: ApiHarness, **fields: Any) -> uuid.UUID:
    """Create an active task and return its id."""
    return uuid.UUID((await harness.active(**fields))["id"])


async def requests_of(client: httpx.AsyncClient, task_id: uuid.UUID, **query: Any) -> list[dict[str, Any]]:
    """Return a page of a task's requests."""
    response = await client.get(f"/tasks/me/{task_id}/requests", params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["requests"]
    return found


async def give(
    client: httpx.AsyncClient, task_id: uuid.UUID, request_id: uuid.UUID | str, **body: Any
) -> httpx.Response:
    """Answer a request."""
    return await client.post(f"/tasks/me/{task_id}/requests/{request_id}/answer", json=body)


def titles(body: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """Return the titles of requests, in their order."""
    return [each["title"] for each in (body["requests"] if isinstance(body, dict) else body)]
