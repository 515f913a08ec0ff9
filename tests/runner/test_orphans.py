from __future__ import annotations

import json
import uuid

import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_what_no_live_task_owns_is_cleaned_up(own: RunnerHarness) -> None:
    """A task that was taken away while the runner was not there leaves neither process nor directory behind."""
    first = await own.start()
    kept = await own.task("say:up", "sleep")
    task_id = await own.task("say:up", "sleep")
    await own.until_output(task_id, "up")
    await own.until_output(kept, "up")
    agent, other = own.agent(task_id)["agent"], own.agent(kept)["agent"]
    await first.kill()
    stranger = uuid.uuid4()
    (own.root / str(task_id)).rename(own.root / str(stranger))
    journal = own.root / str(stranger) / "state/journal.json"
    said = json.loads(journal.read_text())
    journal.write_text(json.dumps({**said, "task_id": str(stranger)}))
    await own.start()
    await eventually(lambda: not (own.root / str(stranger)).exists())
    await eventually(lambda: not is_alive(agent))
    assert is_alive(other)
    await own.until_status(kept, "active")
    assert own.worker.reasons() == []
