"""Each real agent that speaks ACP, as its shipped template starts it: an approved and a rejected tool, and a resume."""

from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, start_runner

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

TEMPLATES = ("claude-code", "codex", "gemini", "opencode")
REJECTED = {
    "claude-code": "refused permission",
    "codex": "was rejected",
    "gemini": "by the user",
    "opencode": "I run the",
}
"""Part of the state's message after a tool was rejected: what the agent's model or the agent itself says then."""
SESSIONS = ("claude-code", "codex", "opencode")
"""The agents that can continue a session."""


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("policy", "is_run"), [("allow", True), ("deny", False)])
async def test_a_tool_runs_as_the_policy_says(
    acp_runner: RunnerHarness, template: str, policy: str, *, is_run: bool
) -> None:
    """A command runs if the policy allows it, and otherwise the turn ends without it; either is told to the task."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": policy}})
    task_id = await harness.worker.create(input="run: echo it is done > result; cat result")
    await harness.until_state(task_id, "idle", "The command printed: it is done" if is_run else REJECTED[template])
    assert (harness.work(task_id) / "project/result").exists() == is_run
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", SESSIONS)
async def test_an_agent_continues_its_session(
    acp_runner: RunnerHarness, model: ModelServer, acp_path: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is killed in a turn, the next one sees its end; a resumed task continues its session."""
    harness = acp_runner
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "allow"}})
    task_id = await harness.worker.create(input="run: sleep 8; echo it is done > result; cat result")
    await harness.until_state(task_id, "working", "sleep 8")
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.send", task_id, input="Good night"))["ok"]
    await harness.until_state(task_id, "idle", "Good night")
    assert not any("begins a new one" in text for text in await harness.output(task_id))
