"""Claude Code by its own events, under a real runner; only the model is scripted."""

from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, start_runner

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


async def test_claude_by_its_events_survives_its_runner_and_a_pause(
    runner: RunnerHarness, model: ModelServer, acp_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is killed in a turn, the next one sees its end; a resumed task remembers the session; usage adds up."""
    harness = runner
    await harness.template(shipped_run("claude-stream.yaml"))
    task_id = await harness.worker.create(input="run: sleep 8; echo it is done > result; cat result")
    await harness.until_state(task_id, "working", "sleep 8")
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    await eventually(lambda: harness.worker.document(task_id)["usage"])
    first = harness.worker.document(task_id)["usage"]
    assert (await harness.worker.command("task.send", task_id, input="Thank you"))["ok"]
    await harness.until_state(task_id, "idle", "You said: Thank you")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.send", task_id, input="recall"))["ok"]
    await harness.until_state(task_id, "idle", "You began with: run: sleep 8")
    output = await harness.output(task_id)
    assert sum("it is done" in text for text in output) == 3, output  # tool call, answer and memory, each once
    await eventually(lambda: harness.worker.document(task_id)["usage"]["input_tokens"] == 400)
    usage = harness.worker.document(task_id)["usage"]
    assert (first["input_tokens"], first["output_tokens"], usage["output_tokens"]) == (200, 40, 80)
    assert [each["currency"] for each in usage["cost"]] == ["USD"]
    assert usage["context_size"]
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
