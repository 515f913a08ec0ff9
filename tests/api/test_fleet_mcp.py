"""The requests of the PyPI package ``setup-fleet-mcp``, as ``make clients`` recorded them, get the same answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.clients.scenario import play
from tests.harness.api import TIMEOUT, ApiHarness

RECORDING = Path(__file__).parents[1] / "clients" / "fleet_mcp_requests.json"


async def test_the_recorded_requests_get_the_same_answers(api_harness: ApiHarness) -> None:
    """Every request of every tool has the status that the package got when its tools worked."""
    steps = {each["tool"]: each["requests"] for each in json.loads(RECORDING.read_text())}
    build = ""

    async def send(request: dict[str, Any]) -> None:
        nonlocal build
        url = api_harness.base + request["path"].replace("{build}", build)
        async with asyncio.timeout(TIMEOUT):
            while True:
                response = await api_harness.alice.request(request["method"], url, json=request["body"])
                assert response.status_code == request["status"], (request, response.text)
                body: Any = response.json() if response.content else None
                if "{build}" not in request["path"] or body["status"] in {"stopped", "failed", "canceled"}:
                    break
                await asyncio.sleep(0.05)
        if request["method"] == "POST" and request["path"].endswith("/builds"):
            build = body["id"]

    async def call(tool: str, _arguments: dict[str, Any]) -> None:
        for request in steps.pop(tool):
            await send(request)

    await play(api_harness, call)
    assert steps == {}
