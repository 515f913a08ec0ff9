"""``taskherd mcp`` as a separate process, called by the SDK's client, with a real API."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

from taskherd.client import mcp_tools
from taskherd.messages.agent_tokens import agent_token
from tests.harness.api import VERSION, ApiHarness
from tests.harness.worker import SECRET, make_report

USER_TOOLS = {
    "coder_create_task": {"input", "template_version_id", "template_version_preset_id", "user"},
    "coder_delete_task": {"task_id"},
    "coder_get_task_logs": {"task_id"},
    "coder_get_task_status": {"task_id"},
    "coder_list_tasks": {"status", "user"},
    "coder_list_templates": set(),
    "coder_send_task_input": {"task_id", "input", "interrupt"},
    "answer_task_request": {"task_id", "request_id", "option", "text"},
    "interrupt_task": {"task_id"},
}
AGENT_TOOLS = {
    "coder_report_task": {"summary", "link", "state"},
    "report_usage": {"model", *mcp_tools.TOKENS, "cost", "currency"},
    "ask_person": {"question", "detail", "options"},
}


@asynccontextmanager
async def mcp_client(**environ: str) -> AsyncIterator[Client]:
    """Run ``taskherd mcp`` with these variables and connect a client."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASKHERD_", "CODER_"))}
    server = StdioServerParameters(command=sys.executable, args=["-m", "taskherd", "mcp"], env={**inherited, **environ})
    async with Client(server) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """Call a tool and return its result, as a model reads it."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)  # type: ignore[union-attr]


async def tools(client: Client) -> dict[str, set[str]]:
    """Return the names of the tools, and of the arguments of each."""
    return {tool.name: set(tool.input_schema["properties"]) for tool in (await client.list_tools()).tools}


async def test_an_assistant_uses_all_tools(api_harness: ApiHarness) -> None:
    """All tools of a user, with Coder's names: create, list, status, send input, logs, delete."""
    async with mcp_client(TASKHERD_URL=api_harness.base, TASKHERD_TOKEN=api_harness.tokens["alice"]) as client:
        assert await tools(client) == USER_TOOLS
        (template,) = await call(client, "coder_list_templates")
        assert (template["name"], template["active_version_id"]) == ("claude", str(VERSION))
        assert set(template) == set(mcp_tools.TEMPLATE_FIELDS)
        created = await call(client, "coder_create_task", input="Fix it", template_version_id=str(VERSION))
        task_id = uuid.UUID(created["id"])
        await api_harness.worker.make_active(task_id)
        assert [each["id"] for each in (await call(client, "coder_list_tasks", status="active"))["tasks"]] == [
            created["id"]
        ]
        assert (await call(client, "coder_list_tasks", user="bob"))["tasks"] == []
        entry = {"id": 0, "type": "output", "content": "On it", "time": "2026-01-01T10:00:00Z"}
        await api_harness.worker.report(
            make_report("task.log", task_id, entries=[entry]),
            make_report("app.status", task_id, state="working", message="Looking", uri=""),
        )
        await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("message") == "Looking")
        status = await call(client, "coder_get_task_status", task_id=f"alice/{created['name']}.main")
        assert (status["status"], status["state"]["state"], status["state"]["message"]) == (
            "active",
            "working",
            "Looking",
        )
        assert (status["agent_exit"], status["stalled_since"]) == (None, None)
        assert status["workspace_agent_health"] == {"healthy": True}
        assert (await call(client, "coder_get_task_logs", task_id=created["id"]))["logs"][0]["content"] == "On it"
        assert (
            "waits" in (await call(client, "coder_send_task_input", task_id=created["name"], input="Hurry"))["message"]
        )
        steered = await call(client, "coder_send_task_input", task_id=created["name"], input="Stop", interrupt="true")
        assert "waits" in steered["message"]
        joined = await call(client, "interrupt_task", task_id=created["id"])
        request = await api_harness.worker.database.fetchval("SELECT interrupt_id FROM work_requests")
        assert (joined["interrupt_id"], "being interrupted" in joined["message"]) == (str(request), True)
        await api_harness.worker.report(make_report("agent.exit", task_id, why="exited", status=3, words="disk full"))
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("agent_exit"))
        status = await call(client, "coder_get_task_status", task_id=created["id"])
        assert status["state"]["state"] == "working"  # what the agent reported last
        assert (status["agent_exit"]["why"], status["agent_exit"]["status"]) == ("exited", 3)
        assert status["agent_exit"]["words"] == "disk full"
        assert status["workspace_agent_health"] == {"healthy": False, "reason": "agent is not running"}
        (listed,) = (await call(client, "coder_list_tasks"))["tasks"]
        assert {name: listed[name] for name in mcp_tools.AGENT_FIELDS} == {
            name: status[name] for name in mcp_tools.AGENT_FIELDS
        }
        await call(client, "coder_delete_task", task_id=created["id"])
        deleted = await client.call_tool("coder_get_task_status", {"task_id": created["id"]})
        assert deleted.is_error


async def test_an_agent_reports_its_own_task(api_harness: ApiHarness) -> None:
    """With its agent token, an agent has tools of its own; what it says it is doing becomes the task's state."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    token = agent_token(SECRET, task_id, 1)
    async with mcp_client(CODER_AGENT_URL=api_harness.base, CODER_AGENT_TOKEN=token) as client:
        assert await tools(client) == AGENT_TOOLS
        await call(client, "coder_report_task", summary="Done", link="https://example.com/pull/7", state="complete")
        await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "complete")
        assert api_harness.worker.state(task_id)["uri"] == "https://example.com/pull/7"
        refused = await client.call_tool("coder_report_task", {"summary": "?", "link": "", "state": "dancing"})
        assert refused.is_error


async def test_an_agent_reports_what_it_used(api_harness: ApiHarness) -> None:
    """What an agent reports as used becomes the task's usage; an amount that is none is refused with words."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    token = agent_token(SECRET, task_id, 1)
    async with mcp_client(CODER_AGENT_URL=api_harness.base, CODER_AGENT_TOKEN=token) as client:
        await call(client, "report_usage", model="opus", input_tokens=7, cost="0.25")
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("usage"))
        usage = api_harness.worker.document(task_id)["usage"]
        assert (usage["input_tokens"], usage["cost"]) == (7, [{"amount": "0.25", "currency": "USD"}])
        for wrong in (
            {"cost": "a quarter"},
            {"cost": "1", "currency": "gold"},
            {"input_tokens": "7"},
            {"output_tokens": -1},
        ):
            refused = await client.call_tool("report_usage", wrong)
            assert refused.is_error
            assert next(iter(wrong)) in str(refused.content) or "currency" in str(refused.content)


async def test_an_error_of_the_api_reaches_the_model(api_harness: ApiHarness) -> None:
    """An error of the API becomes the tool's error, with the API's message; the server keeps working."""
    async with mcp_client(TASKHERD_URL=api_harness.base, TASKHERD_TOKEN="wrong") as client:
        refused = await client.call_tool("coder_list_tasks", {})
        assert refused.is_error
        assert "signed out" in str(refused.content)
        assert set(await tools(client)) == set(USER_TOOLS)
