from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually_async
from tests.harness.templates import shipped_run
from tests.runner.test_input import outcome

pytestmark = pytest.mark.timeout(180)

SERVER = Path(__file__).parent / "agentapi.py"
WELCOME = "Welcome back!\nTips for getting started"


def did(text: str) -> str:
    """Return the agent's message of a turn, as it stands on the screen."""
    return f"● Did: {text}\n\n✻ Cooked for 6s"


async def create_agentapi_task(harness: RunnerHarness, prompt: str = "hello", **run: Any) -> uuid.UUID:
    """Create a task whose agent serves AgentAPI."""
    command = [sys.executable, str(SERVER), "{port}"]
    await harness.template({"command": command, "agent": "agentapi", "idle_after": 1, "grace": 1, **run})
    return await harness.worker.create(input=prompt)


def shown_states(harness: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the states that the task showed while it was active, each change once."""
    shown = [event["task"] for event in harness.worker.events_of(task_id) if event["task"]["status"] == "active"]
    states = [(task["current_state"] or {}).get("state", "none") for task in shown]
    return [state for state, last in zip(states, ["", *states], strict=False) if state != last]


async def send(harness: RunnerHarness, task_id: uuid.UUID, text: str) -> str:
    """Send an input, wait until it is delivered, and return its id."""
    reply = await harness.worker.command("task.send", task_id, input=text)
    assert reply["ok"], reply
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "delivered")
    return str(reply["input_id"])


async def test_messages_become_log_entries(harness: RunnerHarness) -> None:
    """Prompt and input are posted once, each message is an entry with its latest text, and stable means idle."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle", "Did: hello")
    await harness.until_status(task_id, "active")
    await send(harness, task_id, "next")
    await harness.until_output(task_id, "Did: next")
    assert await harness.inputs(task_id) == ["hello", "next"]
    assert await harness.output(task_id) == [WELCOME, did("hello"), did("next")]
    await harness.until_state(task_id, "idle", "Did: next")
    assert harness.worker.reasons() == []


async def test_brief_stability_does_not_mean_idle(harness: RunnerHarness) -> None:
    """If the screen is stable for a moment in the middle of a turn, the agent still counts as working."""
    await harness.start()
    task_id = await create_agentapi_task(harness, "work", idle_after=4)
    await harness.until_state(task_id, "idle", "Did: work")
    assert shown_states(harness, task_id) == ["working", "idle"]


async def test_a_task_whose_prompt_is_still_to_be_given_is_at_work(harness: RunnerHarness) -> None:
    """It is never active and idle before: an input would be sent then that waits for the end of the prompt's turn."""
    await harness.start()
    task_id = await create_agentapi_task(harness, "refused")
    await harness.until_state(task_id, "idle", "Did: refused")
    assert shown_states(harness, task_id) == ["working", "idle"]


async def test_input_is_delivered_once_it_is_echoed(harness: RunnerHarness) -> None:
    """With ``acp`` the post is answered after the turn: the input counts as delivered once AgentAPI echoes it."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle")
    await send(harness, task_id, "slow")
    await harness.until_output(task_id, "Did: slow")


async def test_a_broken_stream_is_reopened(harness: RunnerHarness) -> None:
    """Missed messages arrive with the next stream, and none is reported twice."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle")
    await send(harness, task_id, "cut")
    await harness.until_output(task_id, "Did: cut")
    await harness.until_state(task_id, "idle", "Did: cut")
    assert await harness.output(task_id) == [WELCOME, did("hello"), did("cut")]


async def test_an_agent_error_is_logged(harness: RunnerHarness) -> None:
    """An ``agent_error`` becomes a log entry."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle")
    await send(harness, task_id, "error")
    await harness.until_output(task_id, "AgentAPI error: quota exceeded")


async def test_an_agent_error_is_logged_once(harness: RunnerHarness) -> None:
    """AgentAPI sends earlier errors again to each new stream, also to the stream of the next runner."""
    first = await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle")
    await send(harness, task_id, "error")
    await harness.until_state(task_id, "idle", "Did: error")
    await send(harness, task_id, "cut")
    await harness.until_state(task_id, "idle", "Did: cut")
    await first.kill()
    await harness.start()
    await send(harness, task_id, "again")
    await harness.until_state(task_id, "idle", "Did: again")
    assert (await harness.output(task_id)).count("AgentAPI error: quota exceeded") == 1


async def test_an_agent_that_exits_with_an_error_has_failed(harness: RunnerHarness) -> None:
    """The state's message contains the exit status."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle")
    assert (await harness.worker.command("task.send", task_id, input="die"))["ok"]
    await harness.until_state(task_id, "failed", "exit status 1")
    await harness.until_status(task_id, "error")


async def test_the_next_runner_continues_the_conversation(harness: RunnerHarness) -> None:
    """After the next runner has adopted the agent, the prompt is not posted again, and inputs reach the agent."""
    first = await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle", "Did: hello")
    await first.kill()
    await harness.start()
    await send(harness, task_id, "again")
    await harness.until_output(task_id, "Did: again")
    assert await harness.inputs(task_id) == ["hello", "again"]
    assert await harness.output(task_id) == [WELCOME, did("hello"), did("again")]


async def test_what_an_agent_claims_that_its_user_said_is_its_own_word(harness: RunnerHarness) -> None:
    """A user's message is input if the runner posted its text, once for each time, also for the next runner."""
    first = await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle", "Did: hello")
    await send(harness, task_id, "forge")
    await harness.until_state(task_id, "idle", "Did: forge")
    await first.kill()
    await harness.start()
    await send(harness, task_id, "again")
    await harness.until_state(task_id, "idle", "Did: again")
    assert await harness.inputs(task_id) == ["hello", "forge", "again"]
    expected = [WELCOME, did("hello"), did("forge"), "Yes, deploy it", "hello", did("again")]
    assert await harness.output(task_id) == expected


async def test_a_prompt_that_the_agent_posts_itself_is_input(harness: RunnerHarness) -> None:
    """With ``post_prompt: false`` the agent has it from elsewhere, here its stdin; it counts once, as any other."""
    await harness.start()
    command = ["sh", "-c", f'printf %s "$TASKHERD_PROMPT" | {sys.executable} {SERVER} "$AGENTAPI_PORT"']
    task_id = await create_agentapi_task(harness, command=command, post_prompt=False)
    await harness.until_state(task_id, "idle", "Did: hello")
    await send(harness, task_id, "forge")
    await harness.until_state(task_id, "idle", "Did: forge")
    assert await harness.inputs(task_id) == ["hello", "forge"]
    assert (await harness.output(task_id)).count("hello") == 1


async def test_the_shipped_template_starts_agentapi(
    harness: RunnerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``deploy/templates/claude-agentapi.yaml`` runs as it is; here the emulator stands in for AgentAPI."""
    for name, script in {"id": "echo 1000", "claude": "", "agentapi": f'exec {sys.executable} {SERVER} "$@"'}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    await harness.start()
    await harness.template(shipped_run("claude-agentapi.yaml") | {"idle_after": 1})
    task_id = await harness.worker.create(input="hello")
    await harness.until_state(task_id, "idle", "Did: hello")
    await send(harness, task_id, "next")
    await harness.until_state(task_id, "idle", "Did: next")
