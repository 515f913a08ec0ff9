from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually_async

pytestmark = pytest.mark.timeout(180)


async def outcome(harness: RunnerHarness, input_id: str) -> dict[str, Any]:
    """Return the row of an input, or an empty dictionary."""
    row = await harness.worker.database.fetchrow("SELECT * FROM inputs WHERE input_id = $1", uuid.UUID(input_id))
    return dict(row) if row else {}


async def test_inputs_reach_the_agent_in_order(harness: RunnerHarness) -> None:
    """Inputs sent while the agent is busy are delivered later, in order, once."""
    await harness.start()
    task_id = await harness.task("echo")
    await harness.until_state(task_id, "idle")
    for number in range(3):
        assert (await harness.worker.command("task.send", task_id, input=f"input {number}"))["ok"]
    await harness.until_output(task_id, "got input 2")
    lines = "\n".join(await harness.output(task_id)).splitlines()
    assert [line for line in lines if line.startswith("got")] == ["got input 0", "got input 1", "got input 2"]
    assert await harness.inputs(task_id) == ["Do it", "input 0", "input 1", "input 2"]


async def test_an_input_that_may_have_been_delivered_is_not_delivered_again(harness: RunnerHarness) -> None:
    """If the runner dies while it delivers an input, the outcome is failed, and its detail says that it is unknown."""
    first = await harness.start()
    task_id = await harness.task("echo")
    await harness.until_state(task_id, "idle")
    await first.kill()
    reply = await harness.worker.command("task.send", task_id, input="perhaps")
    journal = harness.state(task_id) / "journal.json"
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "inputs": {reply["input_id"]: "delivering"}}))
    await harness.start()
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert "unknown" in (await outcome(harness, reply["input_id"]))["detail"]
    assert not any("perhaps" in text for text in await harness.output(task_id))


async def test_an_input_for_an_exited_agent_fails(harness: RunnerHarness) -> None:
    """The reason is in the input's outcome and in the task's log."""
    await harness.start()
    task_id = await harness.task("say:done")
    await harness.until_state(task_id, "complete")
    reply = await harness.worker.command("task.send", task_id, input="one more thing")
    assert reply["ok"]
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert (await outcome(harness, reply["input_id"]))["detail"] == "The agent is not running."
    await harness.until_output(task_id, "input delivery failed: The agent is not running.")


async def test_an_input_larger_than_a_pipe_reaches_an_agent_that_reads_late(harness: RunnerHarness) -> None:
    """An input of 256 KiB fits into the pipe, so it is delivered before the agent reads it."""
    await harness.start()
    task_id = await harness.task("await:go", "echo")
    await harness.until_state(task_id, "idle")
    reply = await harness.worker.command("task.send", task_id, input="x" * 262_000)
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "delivered")
    (harness.work(task_id) / "go").touch()
    await harness.until_output(task_id, "got xxx")
