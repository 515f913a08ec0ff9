from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually_async
from tests.runner.test_input import outcome

pytestmark = pytest.mark.timeout(180)

SERVER = Path(__file__).parent / "agentapi.py"


async def started(own: RunnerHarness, prompt: str = "hello", **run: Any) -> uuid.UUID:
    """A task whose agent serves AgentAPI."""
    command = [sys.executable, str(SERVER), "{port}"]
    await own.template({"command": command, "agent": "agentapi", "idle_after": 1, "grace": 1, **run})
    return await own.worker.create(input=prompt)


async def sent(own: RunnerHarness, task_id: uuid.UUID, text: str) -> str:
    """Send an input once the agent is idle; its id, when it is delivered."""
    reply = await own.worker.command("task.send", task_id, input=text)
    assert reply["ok"], reply
    await eventually_async(lambda: outcome(own, reply["input_id"]), lambda row: row.get("state") == "delivered")
    return str(reply["input_id"])


async def test_the_conversation_is_the_log(own: RunnerHarness) -> None:
    """Prompt and input are posted once, messages are entries of which the latest text counts, and idle means stable."""
    await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle", "Did: hello")
    await own.until_status(task_id, "active")
    await sent(own, task_id, "next")
    await own.until_output(task_id, "Did: next")
    assert await own.inputs(task_id) == ["hello", "next"]
    assert await own.output(task_id) == ["Did: hello", "Did: next"]
    await own.until_state(task_id, "idle", "Did: next")
    assert own.worker.reasons() == []


async def test_a_moment_of_stability_is_not_idleness(own: RunnerHarness) -> None:
    """The screen is stable for a moment in the middle of a turn: the agent is working all the while."""
    await own.start()
    task_id = await started(own, "work")
    await own.until_state(task_id, "idle", "Did: work")
    states = [
        told["task"]["current_state"]["state"]
        for told in own.worker.events_of(task_id)
        if told["task"]["current_state"]
    ]
    changes = [state for state, last in zip(states, ["", *states], strict=False) if state != last]
    assert changes in (["working", "idle"], ["idle", "working", "idle"])


async def test_a_turn_that_holds_the_post_is_followed_by_its_events(own: RunnerHarness) -> None:
    """With `acp` the post is answered after the turn: the input counts as delivered when the agent shows it."""
    await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle")
    await sent(own, task_id, "slow")
    await own.until_output(task_id, "Did: slow")


async def test_a_broken_stream_is_taken_up_again(own: RunnerHarness) -> None:
    """What was missed comes with the next stream, and nothing twice."""
    await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle")
    await sent(own, task_id, "cut")
    await own.until_output(task_id, "Did: cut")
    await own.until_state(task_id, "idle", "Did: cut")
    assert await own.output(task_id) == ["Did: hello", "Did: cut"]


async def test_an_agent_error_is_shown(own: RunnerHarness) -> None:
    """It is in the conversation, and beside the state."""
    await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle")
    await sent(own, task_id, "error")
    await own.until_output(task_id, "AgentAPI error: quota exceeded")


async def test_an_agent_that_dies_has_failed(own: RunnerHarness) -> None:
    """Its exit status is told."""
    await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle")
    assert (await own.worker.command("task.send", task_id, input="die"))["ok"]
    await own.until_state(task_id, "failed", "exit status 7")
    await own.until_status(task_id, "error")


async def test_the_next_runner_goes_on_with_the_conversation(own: RunnerHarness) -> None:
    """Adopted by the next runner: the prompt is not posted again, and inputs reach the agent."""
    first = await own.start()
    task_id = await started(own)
    await own.until_state(task_id, "idle", "Did: hello")
    await first.kill()
    await own.start()
    await sent(own, task_id, "again")
    await own.until_output(task_id, "Did: again")
    assert await own.inputs(task_id) == ["hello", "again"]
    assert await own.output(task_id) == ["Did: hello", "Did: again"]
