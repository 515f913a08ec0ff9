"""What a user of ``setup-fleet-mcp`` does with its eleven tools, on a real API; an agent is played by reports."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tests.harness.api import ApiHarness
from tests.harness.worker import build_report, make_report

Call: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Calls a tool by name with arguments, and returns its result, or raises."""

WORKSPACE, AGENT, APP = (str(uuid.UUID(int=number)) for number in (0x305, 0xA9E, 0xA99))
# The package takes a template for a project only if it has parameters for both prompts.
PROJECT = """
UPDATE presets SET parameters = '{"System Prompt": "Be brief"}';
UPDATE templates SET display_name = 'Claude Code'
"""
NAME = "fleet"


async def play(api_harness: ApiHarness, call: Call) -> None:
    """Call every tool, in the order in which a user would, and report what an agent would in between."""
    worker = api_harness.worker
    await worker.database.execute(PROJECT)
    await call("list_agent_projects", {})
    await call("list_agent_roles", {"project": "Claude Code"})
    await call("create_agent", {"name": NAME, "project": "Claude Code", "task": "Fix it"})
    task_id: uuid.UUID = await worker.database.fetchval("SELECT id FROM tasks")
    await _started(api_harness, task_id, 1, "idle")
    await call("list_agents", {})
    await call("show_agent", {"agent_name": NAME})
    await call("start_agent_task", {"agent_name": NAME, "task_description": "And lint"})
    await call("show_agent_task_history", {"agent_name": NAME})
    await call("show_agent_log", {"agent_name": NAME})
    await worker.report(make_report("app.status", task_id, build_number=1, state="working", message="Linting", uri=""))
    await worker.until(lambda: worker.state(task_id).get("state") == "working")
    await call("cancel_agent_task", {"agent_name": NAME})
    restart = asyncio.create_task(_as_coroutine(call("restart_agent", {"agent_name": NAME})))
    await worker.until(lambda: worker.requests_of(task_id, "workspace.stop"))
    await worker.report(build_report(task_id, 2, "stop", "succeeded", workspace={"id": WORKSPACE, "name": NAME}))
    await restart
    await call("delete_agent", {"agent_name": NAME})


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _started(api_harness: ApiHarness, task_id: uuid.UUID, number: int, state: str) -> None:
    worker = api_harness.worker
    resources = {
        "workspace": {"id": WORKSPACE, "name": NAME},
        "agent_id": AGENT,
        "app": {"id": APP, "slug": "ccw"},
    }
    await worker.report(
        build_report(task_id, number, "start", "succeeded", **resources),
        make_report("agent.lifecycle", task_id, build_number=number, lifecycle="ready"),
        make_report("agent.heartbeat", task_id, build_number=number),
        make_report("app.status", task_id, build_number=number, state=state, message="Fixed", uri=""),
    )
    await worker.until(lambda: worker.document(task_id).get("status") == "active")
    await worker.until(lambda: worker.state(task_id).get("state") == state)
