"""How much one member and one agent may ask for."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx

from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.api.test_agents import message, say, upload
from tests.harness.api import VERSION, ApiHarness
from tests.harness.worker import SECRET


async def test_creates_have_a_rate_of_their_own(start_api: StartApi) -> None:
    """A member over the rate gets a 429 that says when the next create is accepted; reads and others go on."""
    async with start_api(api_create_rate=1, api_create_burst=3) as api_harness:
        for number in range(3):
            await api_harness.create(input=f"One of a burst {number}")
        body = {"template_version_id": str(VERSION), "input": "One too many"}
        response = await api_harness.alice.post("/tasks/me", json=body)
        assert response.status_code == 429
        assert response.json()["message"] == "You have created too many tasks. Please wait."
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert response.json()["detail"] == f"The next one is accepted in {response.headers['Retry-After']} s."
        workspace = {"template_version_id": str(VERSION), "name": "by-another-route"}
        assert (await api_harness.alice.post("/users/me/workspaces", json=workspace)).status_code == 429
        assert (await api_harness.alice.get("/tasks")).status_code == 200
        await api_harness.create(api_harness.bob, input="Of another member")


async def test_too_many_running_tasks_are_refused_with_what_to_do(start_api: StartApi) -> None:
    """The refusal of the worker is a 409 of the API, with its detail."""
    async with start_api(tasks_running_most=1) as api_harness:
        task = await api_harness.create(input="The only one")
        body = {"template_version_id": str(VERSION), "input": "Another one"}
        response = await api_harness.alice.post("/tasks/me", json=body)
        assert (response.status_code, response.json()["message"]) == (409, "Too many tasks are running.")
        assert "Pause or delete one" in response.json()["detail"]
        assert (await api_harness.alice.delete(f"/tasks/me/{task['id']}")).status_code == 202
        await api_harness.create(input="In its place")


async def test_an_agents_reports_are_limited_by_its_token(start_api: StartApi) -> None:
    """An agent over its rate gets a 429 with Retry-After; the agents of other tasks go on."""
    async with start_api(api_agent_rate=0.1, api_agent_burst=3) as api_harness:
        loud, quiet = [uuid.UUID((await api_harness.active(input=each))["id"]) for each in ("Loud", "Quiet")]
        statuses = [(await say(api_harness, loud, 1)).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert 1 <= int((await say(api_harness, loud, 1)).headers["Retry-After"]) <= 10
        assert (await say(api_harness, quiet, 1)).status_code == 200


async def log_of(api_harness: ApiHarness, task_id: uuid.UUID, entries: int) -> list[dict[str, Any]]:
    """Return the log of a task of alice, once it has so many entries."""
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task_id, is_=entries)
    found: list[dict[str, Any]] = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    return found


async def test_an_agents_log_is_limited_in_bytes_and_entries(start_api: StartApi) -> None:
    """Snapshots over a rate get a 429 with Retry-After, and the log says so; statuses go on."""
    async with start_api(log_bytes_rate=1024, log_entries_rate=10) as api_harness:
        by_bytes, by_entries = [uuid.UUID((await api_harness.active(input=each))["id"]) for each in ("Long", "Many")]
        long = [message(0, "agent", "x" * 3_000)]
        assert (await upload(api_harness, by_bytes, 1, *long)).status_code == 204
        refused = await upload(api_harness, by_bytes, 1, *long)
        assert (refused.status_code, refused.json()["message"]) == (
            429,
            "The log of this task grows too fast. Please wait.",
        )
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        assert (await say(api_harness, by_bytes, 1)).status_code == 200
        assert (await upload(api_harness, by_bytes, 1, *long)).status_code == 429
        for number, text in ((1, "Short"), (2, "Shorter")):
            assert (await upload(api_harness, by_bytes, 1, message(number, "agent", text))).status_code == 204
        logged = await log_of(api_harness, by_bytes, 4)
        assert [entry["content"] for entry in logged if "kind" not in entry] == ["x" * 3_000, "Short", "Shorter"]
        assert (logged[1]["kind"], logged[1]["type"]) == ("notice", "output")
        assert re.fullmatch(
            r"taskherd: the agent added to this log too fast\. 2 entries with 6000 bytes were refused since"
            r" \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ; what it sent again follows\.",
            logged[1]["content"],
        )
        many = [message(number, "agent", "x") for number in range(30)]
        assert (await upload(api_harness, by_entries, 1, *many)).status_code == 204
        assert (await upload(api_harness, by_entries, 1, *many)).status_code == 429


async def add_entries(api_harness: ApiHarness, task_id: uuid.UUID, entries: list[dict[str, Any]]) -> httpx.Response:
    """Add entries to the log of a task, as its agent."""
    return await api_harness.anonymous.post(
        "/workspaceagents/me/logs",
        json={"entries": entries},
        headers={"Coder-Session-Token": agent_token(SECRET, task_id, 1)},
    )


async def test_all_of_an_entry_counts_and_is_paid_in_full(start_api: StartApi) -> None:
    """Data and titles count as content does, and what is larger than the burst keeps the log closed for as long."""
    async with start_api(log_bytes_rate=1024, log_entries_rate=10) as api_harness:
        data, title, large = [
            uuid.UUID((await api_harness.active(input=each))["id"]) for each in ("Data", "Title", "Large")
        ]
        entry = {"type": "output", "content": "x", "time": "2026-01-01T00:00:00Z"}
        with_data = {**entry, "id": 1, "kind": "tool_call", "data": {"diff": "x" * 8_000}}
        assert (await add_entries(api_harness, data, [with_data])).status_code == 204
        refused = await add_entries(api_harness, data, [{**entry, "id": 2}])
        assert (refused.status_code, 2 <= int(refused.headers["Retry-After"]) <= 5) == (429, True)
        titled = [{**entry, "id": number, "title": "x" * 200} for number in range(21)]
        assert (await add_entries(api_harness, title, titled)).status_code == 204
        assert (await add_entries(api_harness, title, titled[:15])).status_code == 429
        content = [{**entry, "id": number, "content": "x" * 50_000} for number in range(10)]
        assert (await add_entries(api_harness, large, content)).status_code == 204
        refused = await add_entries(api_harness, large, [{**entry, "id": 11}])
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 400) == (429, True)
