"""Real agents that speak ACP, under a real runner; only the model is scripted."""

from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, start_runner

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


async def test_claude_over_acp_survives_its_runner_and_a_pause(
    acp_runner: RunnerHarness, model: ModelServer, acp_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is killed in a turn, the next one sees its end; a resumed task continues its session."""
    harness = acp_runner
    await harness.template(shipped_run("claude-code.yaml"))
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
    output = await harness.output(task_id)
    assert sum("it is done" in text for text in output) == 2  # the tool call and the answer, each told once
    assert not any("begins a new one" in text for text in output)
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize(
    ("policy", "words", "is_run"), [("allow", "The command printed: it is done", True), ("deny", "by the user", False)]
)
async def test_gemini_works_as_the_policy_says(
    acp_runner: RunnerHarness, model: ModelServer, policy: str, words: str, *, is_run: bool
) -> None:
    """A prompt runs a command if the policy allows it."""
    harness = acp_runner
    variables = {"GEMINI_API_KEY": "of-the-scripted-model", "GOOGLE_GEMINI_BASE_URL": model.url}
    env = {"inherit": ["PATH"], "set": {**variables, "HOME": str(harness.folder)}}
    command = ["gemini", "--acp", "--model", "gemini-2.5-pro"]
    run = {"command": command, "agent": "acp", "env": env, "complete_after_turn": True}
    await harness.template({**run, "approvals": {"default": policy}})
    task_id = await harness.worker.create(input="run: echo it is done > result; cat result")
    await harness.until_state(task_id, "complete", words)
    assert (harness.work(task_id) / "result").exists() == is_run
