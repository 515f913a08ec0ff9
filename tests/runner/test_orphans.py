from __future__ import annotations

import json
import uuid

import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_files_and_agent_of_an_unknown_task_are_removed(harness: RunnerHarness) -> None:
    """A task that was deleted while the runner was down leaves neither process nor directory behind."""
    first = await harness.start()
    kept = await harness.task("say:up", "sleep")
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
    await harness.until_output(kept, "up")
    agent, other = harness.agent(task_id)["agent"], harness.agent(kept)["agent"]
    await first.kill()
    unknown = uuid.uuid4()
    (harness.root / str(task_id)).rename(harness.root / str(unknown))
    journal = harness.root / str(unknown) / "state/journal.json"
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "task_id": str(unknown)}))
    await harness.start()
    await eventually(lambda: not (harness.root / str(unknown)).exists())
    await eventually(lambda: not is_alive(agent))
    assert is_alive(other)
    await harness.until_status(kept, "active")
    assert harness.worker.reasons() == []
