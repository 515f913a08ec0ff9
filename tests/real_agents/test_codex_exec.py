"""Codex by its own events, under a real runner; only the model is scripted."""

from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, start_runner

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


async def test_codex_by_its_events_survives_its_runner_and_an_interrupt(
    runner: RunnerHarness, model: ModelServer, acp_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is killed in a turn, the next one sees its end; a resume continues an interrupted session."""
    harness = runner
    run = shipped_run("codex-exec.yaml")
    assert run["resume_command"].pop() == "Go on."
    run["resume_command"].append("recall")
    await harness.template(run)
    task_id = await harness.worker.create(input="run: sleep 8; echo it is done > result; cat result")
    await harness.until_state(task_id, "working", "sleep 8")
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await harness.until_state(task_id, "complete", "The command printed: it is done")
    await eventually(lambda: harness.worker.document(task_id)["usage"])
    assert harness.worker.document(task_id)["usage"]["input_tokens"] == 200
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    output = await harness.output(task_id)
    assert sum("it is done" in text for text in output) == 2, output  # the tool call and the answer, each told once

    task_id = await harness.worker.create(input="run: sleep 60; echo never")
    await harness.until_state(task_id, "working", "sleep 60")
    assert (await harness.worker.command("task.interrupt", task_id))["ok"]
    await harness.until_state(task_id, "idle", "interrupt")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_state(task_id, "complete", "You began with: run: sleep 60")
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))
