"""Run all tools of the PyPI package ``setup-fleet-mcp``, unmodified, against a real API: ``make clients``.

The package is installed into ``.taskherd/clients``, never into the project's own environment, and speaks MCP over stdio
as it does to an assistant. What it requests is written to ``fleet_mcp_requests.json``, which
``tests/api/test_fleet_mcp.py`` replays without the package.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.clients.recorder import recording
from tests.clients.scenario import play
from tests.harness.api import ApiHarness

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".taskherd" / "clients" / "fleet" / "bin" / "setup-fleet-mcp"
RECORDING = Path(__file__).with_name("fleet_mcp_requests.json")
REFUSED = {"cancel_agent_task"}
"""Tools that cannot work: see ``docs/compatibility.md``."""


async def test_all_tools_of_the_package(api_harness: ApiHarness) -> None:
    """Ten of the eleven tools work; interrupting an agent through its AgentAPI is refused."""
    recorded: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    async with recording(api_harness.api.port) as recorder:
        server = StdioServerParameters(
            command=str(SERVER),
            env={
                "CODER_URL": recorder.url,
                "CODER_SESSION_TOKEN": api_harness.tokens["alice"],
                "PATH": "/usr/bin:/bin",
            },
        )
        async with stdio_client(server) as streams, ClientSession(*streams) as session:
            await session.initialize()
            offered = {tool.name for tool in (await session.list_tools()).tools}

            async def call(tool: str, arguments: dict[str, Any]) -> None:
                recorder.requests.clear()
                result = await session.call_tool(tool, arguments)
                text = "".join(getattr(each, "text", "") for each in result.content)
                if result.is_error or '"error"' in text[:200].lower():
                    failed[tool] = text
                for each in recorder.requests:
                    each["path"] = re.sub(r"(/workspacebuilds/)[^/]+", r"\1{build}", each["path"])
                recorded.append({"tool": tool, "requests": list(recorder.requests)})

            await play(api_harness, call)
    assert {each["tool"] for each in recorded} == offered
    assert set(failed) == REFUSED, failed
    RECORDING.write_text(json.dumps(recorded, indent=1) + "\n")
