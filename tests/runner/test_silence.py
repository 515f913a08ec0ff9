"""What silence means: idle only while nothing of the agent runs or uses CPU."""

from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    "script",
    [
        "echo start; sleep 1000; echo done",
        "echo start; (sleep 1000 </dev/null); echo done",
        "echo start; cat /dev/zero >/dev/null; echo done",
        "echo start; tail -f /dev/null </dev/null; echo done",
    ],
)
async def test_an_agent_whose_command_runs_is_working(harness: RunnerHarness, script: str) -> None:
    """A silent command keeps the agent working, whether it uses CPU or waits.

    Another agent, which is silent for a shorter time, is found idle twice meanwhile.
    """
    await harness.start()
    await harness.template({"command": ["bash", "-c", script], "idle_after": 0.5, "grace": 1})
    task_id = await harness.worker.create(input="Run a silent command")
    await harness.until_output(task_id, "start")
    await harness.template({"command": ["cat"], "idle_after": 0.5, "grace": 1})
    other = await harness.worker.create(input="Wait for input")
    await harness.until_state(other, "idle")
    await harness.until_status(other, "active")
    assert (await harness.worker.command("task.send", other, input="once more"))["ok"]
    await harness.until_state(other, "idle", "once more")
    states = [(event["task"]["current_state"] or {}).get("state") for event in harness.worker.events_of(task_id)]
    assert states[-1] == "working"
    assert "idle" not in states


@pytest.mark.parametrize(
    "command",
    [
        ["cat"],
        ["bash", "-c", "echo up; cat; true"],
        ["python3", "-i", "-c", "print('up')"],
        ["bash", "-c", "bash -c 'sleep 1000 </dev/null &'; read line"],
        ["bash", "-c", "coproc cat; read line"],
    ],
)
async def test_an_agent_that_waits_for_input_is_idle(harness: RunnerHarness, command: list[str]) -> None:
    """So is one behind a wrapper, one with a daemon, and one with a server that waits for its requests."""
    await harness.start()
    await harness.template({"command": command, "idle_after": 0.5, "grace": 1})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "idle")
    row = await harness.worker.database.fetchval("SELECT state FROM tasks WHERE id = $1", task_id)
    assert "0.5 s without output, while no process of it ran or used CPU" in row
