from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually_async

pytestmark = pytest.mark.timeout(180)


async def outcome(own: RunnerHarness, input_id: str) -> dict[str, Any]:
    """What became of an input, as the worker keeps it."""
    row = await own.worker.database.fetchrow("SELECT * FROM inputs WHERE input_id = $1", uuid.UUID(input_id))
    return dict(row) if row else {}


async def test_inputs_reach_the_agent_in_order(own: RunnerHarness) -> None:
    """What was sent while the agent was busy comes to it later, in order, once."""
    await own.start()
    task_id = await own.task("echo")
    await own.until_state(task_id, "idle")
    for number in range(3):
        assert (await own.worker.command("task.send", task_id, input=f"input {number}"))["ok"]
    await own.until_output(task_id, "got input 2")
    said = "\n".join(await own.output(task_id)).splitlines()
    assert [line for line in said if line.startswith("got")] == ["got input 0", "got input 1", "got input 2"]
    assert await own.inputs(task_id) == ["Do it", "input 0", "input 1", "input 2"]


async def test_an_input_that_was_perhaps_taken_is_not_given_again(own: RunnerHarness) -> None:
    """Where the runner died while it gave an input to the agent, the outcome is failed, and says that it is unknown."""
    first = await own.start()
    task_id = await own.task("echo")
    await own.until_state(task_id, "idle")
    await first.kill()
    reply = await own.worker.command("task.send", task_id, input="perhaps")
    journal = own.state(task_id) / "journal.json"
    said = json.loads(journal.read_text())
    journal.write_text(json.dumps({**said, "inputs": {reply["input_id"]: "delivering"}}))
    await own.start()
    await eventually_async(lambda: outcome(own, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert "unknown" in (await outcome(own, reply["input_id"]))["detail"]
    assert not any("perhaps" in text for text in await own.output(task_id))


async def test_an_input_for_an_agent_that_has_ended_has_failed(own: RunnerHarness) -> None:
    """It is said where people look: in the outcome and in the conversation."""
    await own.start()
    task_id = await own.task("say:done")
    await own.until_state(task_id, "complete")
    reply = await own.worker.command("task.send", task_id, input="one more thing")
    assert reply["ok"]
    await eventually_async(lambda: outcome(own, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert (await outcome(own, reply["input_id"]))["detail"] == "The agent is not running."
    await own.until_output(task_id, "an input was not delivered: The agent is not running.")


async def test_an_input_larger_than_a_pipe_reaches_an_agent_that_reads_late(own: RunnerHarness) -> None:
    """256 KiB fit, whenever the agent comes to read them."""
    await own.start()
    task_id = await own.task("await:go", "echo")
    await own.until_state(task_id, "idle")
    reply = await own.worker.command("task.send", task_id, input="x" * 262_000)
    await eventually_async(lambda: outcome(own, reply["input_id"]), lambda row: row.get("state") == "delivered")
    (own.work(task_id) / "go").touch()
    await own.until_output(task_id, "got xxx")
