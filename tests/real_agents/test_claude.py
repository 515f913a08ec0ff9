"""The shipped templates, with the real Claude Code and the real AgentAPI; only the model is scripted."""

from __future__ import annotations

import uuid

import pytest

from tests.harness.runner import RunnerHarness, eventually, eventually_async
from tests.harness.templates import shipped_run

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


async def create(runner: RunnerHarness, template: str, prompt: str) -> uuid.UUID:
    """Create a task from a shipped template, as it is but for a shorter ``idle_after``."""
    await runner.template(shipped_run(template) | {"idle_after": "3s"})
    return await runner.worker.create(input=prompt)


def states(runner: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the states that the task has shown, without repetitions."""
    shown = [event["task"]["current_state"] for event in runner.worker.events_of(task_id)]
    seen = [state["state"] for state in shown if state]
    return [state for state, last in zip(seen, ["", *seen], strict=False) if state != last]


async def test_claude_behind_agentapi_works_and_answers(agentapi_runner: RunnerHarness) -> None:
    """A prompt runs a command for some seconds, all the while working; then an input is answered."""
    task_id = await create(
        agentapi_runner, "claude-agentapi.yaml", "run: sleep 8; echo it is done > result; cat result"
    )
    await agentapi_runner.until_state(task_id, "working")
    await eventually((agentapi_runner.work(task_id) / "project/result").exists)
    assert agentapi_runner.worker.state(task_id)["state"] == "working"
    await agentapi_runner.until_state(task_id, "idle", "The command printed: it is done")
    assert agentapi_runner.worker.document(task_id)["status"] == "active"
    reply = await agentapi_runner.worker.command("task.send", task_id, input="Thank you\nand good night")
    assert reply["ok"], reply
    await agentapi_runner.until_output(task_id, "You said: Thank you")
    await agentapi_runner.until_state(task_id, "idle", "and good night")
    assert await agentapi_runner.inputs(task_id) == [
        "run: sleep 8; echo it is done > result; cat result",
        "Thank you\nand good night",
    ]
    assert not any(line.endswith(" ") for entry in await agentapi_runner.output(task_id) for line in entry.splitlines())
    assert set(states(agentapi_runner, task_id)) == {"working", "idle"}
    assert agentapi_runner.worker.reasons() == []


async def test_claude_behind_agentapi_continues_after_a_pause(agentapi_runner: RunnerHarness) -> None:
    """The folder and the conversation are kept: Claude Code shows what was said before."""
    task_id = await create(agentapi_runner, "claude-agentapi.yaml", "remember the word marmalade")
    await agentapi_runner.until_state(task_id, "idle", "You said: remember the word marmalade")
    assert (await agentapi_runner.worker.command("task.pause", task_id))["ok"]
    await agentapi_runner.until_status(task_id, "paused")
    before = len(await agentapi_runner.output(task_id))
    assert (await agentapi_runner.worker.command("task.resume", task_id))["ok"]
    await agentapi_runner.until_status(task_id, "active")
    await eventually_async(
        lambda: agentapi_runner.output(task_id), lambda entries: "marmalade" in "".join(entries[before:])
    )


async def test_the_end_of_claude_is_reported(agentapi_runner: RunnerHarness) -> None:
    """When a person ends Claude Code with ``/exit``, the agent is complete."""
    task_id = await create(agentapi_runner, "claude-agentapi.yaml", "hello")
    await agentapi_runner.until_state(task_id, "idle", "You said: hello")
    assert (await agentapi_runner.worker.command("task.send", task_id, input="/exit"))["ok"]
    await agentapi_runner.until_state(task_id, "complete")


async def test_claude_as_stdio_runs_once(runner: RunnerHarness) -> None:
    """The prompt comes from a file, the answer is the output, and the end is complete."""
    prompt = "run: sleep 3; echo it is done"
    task_id = await create(runner, "claude-stdio.yaml", prompt)
    await runner.until_state(task_id, "complete", "The command printed: it is done")
    assert await runner.output(task_id) == ["The command printed: it is done"]
