from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually, eventually_async, is_alive
from tests.runner.acp import AGENT

pytestmark = pytest.mark.timeout(180)


async def acp_task(harness: RunnerHarness, *traits: str, prompt: str, **run: Any) -> uuid.UUID:
    """Create a task with the tests' agent that speaks ACP."""
    command = [sys.executable, str(AGENT), *traits]
    await harness.template({"command": command, "agent": "acp", "grace": 1, **run})
    return await harness.worker.create(input=prompt)


async def test_a_task_with_an_agent_that_speaks_acp(harness: RunnerHarness) -> None:
    """Runner and worker show its turns; a runner killed in a turn leaves nothing undone, and nothing is told twice."""
    first = await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\ntool: 1 Run make\nwait: go\ndone: 1 ok\nline: It works.")
    await harness.until_state(task_id, "working", "Run make")
    await first.kill()
    await harness.start()
    harness.work(task_id).joinpath("go").touch()
    await harness.until_state(task_id, "idle", "It works.")
    assert harness.worker.document(task_id)["status"] == "active"
    for text in ("line: one", "line: two"):
        assert (await harness.worker.command("task.send", task_id, input=text))["ok"]
    await harness.until_state(task_id, "idle", "two")
    rows = await harness.worker.database.fetch(
        "SELECT content, kind, status FROM task_logs WHERE task_id = $1 ORDER BY log_id", task_id
    )
    assert [(row["content"].strip(), row["kind"], row["status"]) for row in rows[1:]] == [
        ("I begin.", "message", None),
        ("Run make\nok", "tool_call", "completed"),
        ("It works.", "message", None),
        ("line: one", None, None),
        ("one", "message", None),
        ("line: two", None, None),
        ("two", "message", None),
    ]


async def test_an_agent_that_wants_a_sign_in_fails_the_build(harness: RunnerHarness) -> None:
    """The build fails with words that say what to do, and no process is left."""
    await harness.start()
    task_id = await acp_task(harness, "auth", prompt="line: hello")
    await harness.until_status(task_id, "error")
    await harness.until_state(task_id, "failed", "wants its user to sign in")
    await eventually(lambda: not harness.marked(task_id))


async def test_an_agent_that_ended_without_a_runner_is_not_starting(harness: RunnerHarness) -> None:
    """If it ended before its session was open, the runner that resumes the start has it end in an error."""
    first = await harness.start()
    task_id = await acp_task(harness, "hang-initialize", prompt="line: hello")
    await eventually((harness.state(task_id) / "run-1/started.json").exists)
    await first.kill()
    harness.kill(harness.agent(task_id)["agent"])
    await eventually((harness.state(task_id) / "run-1/exit.json").exists)
    await harness.start()
    await harness.until(lambda: harness.worker.document(task_id).get("workspace_status") == "running")
    assert harness.worker.document(task_id)["status"] == "error"
    assert harness.worker.state(task_id)["state"] == "failed"


async def test_a_resumed_task_continues_its_session(harness: RunnerHarness) -> None:
    """After a pause the agent continues its session, and the prompt that it had finished is not given again."""
    await harness.start()
    task_id = await acp_task(harness, "load", prompt="line: hello")
    await harness.until_state(task_id, "idle", "hello")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert not is_alive(agent)
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.send", task_id, input="line: again"))["ok"]
    await harness.until_state(task_id, "idle", "again")
    received = harness.work(task_id).joinpath("received.jsonl").read_text()
    assert received.count('"session/load"') == 1
    assert received.count('"session/prompt"') == 2
    await eventually_async(
        lambda: harness.output(task_id), lambda texts: [text.strip() for text in texts] == ["hello", "again"]
    )


async def test_a_task_continues_its_session_after_a_reboot(harness: RunnerHarness) -> None:
    """If runner, shim and agent were all killed, the next runner reports the loss; a resume loads the session, once."""
    first = await harness.start()
    task_id = await acp_task(harness, "load", prompt="line: hello")
    await harness.until_state(task_id, "idle", "hello")
    await first.kill()
    harness.kill_all(task_id)
    await harness.start()
    await harness.until_state(task_id, "failed", "exit status is lost")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.send", task_id, input="line: again"))["ok"]
    await harness.until_state(task_id, "idle", "again")
    received = harness.work(task_id).joinpath("received.jsonl").read_text()
    assert received.count('"session/load"') == received.count('"session/new"') == 1
    assert received.count('"session/prompt"') == 2
    await eventually_async(
        lambda: harness.output(task_id), lambda texts: [text.strip() for text in texts][-1:] == ["again"]
    )


async def test_an_active_task_shows_that_its_prompt_is_to_be_given(harness: RunnerHarness) -> None:
    """It is never active without a state: an input would be sent then that waits for the end of the prompt's turn."""
    await harness.start()
    task_id = await acp_task(harness, prompt="wait: go\nline: It works.")
    await harness.until_status(task_id, "active")
    assert harness.worker.state(task_id)["state"] == "working"
    assert (await harness.worker.command("task.send", task_id, input="line: instead", interrupt=True))["ok"]
    await harness.until_state(task_id, "idle", "instead")
    shown = [event["task"] for event in harness.worker.events_of(task_id)]
    assert all(task["current_state"] for task in shown if task["status"] == "active")


async def test_a_runner_ends_although_an_agent_never_opens_its_session(harness: RunnerHarness) -> None:
    """The next runner starts that agent again."""
    first = await harness.start(runner_drain="pause")
    await harness.template({"command": ["sleep", "600"], "agent": "acp", "start_timeout": "20m", "grace": 1})
    task_id = await harness.worker.create(input="Do it")
    await harness.until(lambda: harness.marked(task_id))
    assert await first.terminate() == 0
    assert harness.marked(task_id) == set()
    await harness.start(runner_drain="pause")
    await harness.until(lambda: harness.worker.document(task_id)["workspace_build_number"] == 3)
    await harness.until(lambda: harness.marked(task_id))
    assert "error" not in {event["task"]["status"] for event in harness.worker.events_of(task_id)}
