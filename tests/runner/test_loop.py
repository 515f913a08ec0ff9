from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness

pytestmark = pytest.mark.timeout(180)


async def test_agent_runs_from_prompt_to_completion(harness: RunnerHarness) -> None:
    """An agent is started; its lines become log entries and activity, silence means idle, exit status 0 complete."""
    await harness.start()
    task_id = await harness.task("say:hello", "sleep:1.5", "say:done", prompt="Say hello")
    await harness.until_state(task_id, "working")
    await harness.until_status(task_id, "active")
    await harness.until_state(task_id, "idle", "hello")
    await harness.until_state(task_id, "complete", "done")
    await harness.until_output(task_id, "done")
    assert await harness.inputs(task_id) == ["Say hello"]
    assert await harness.output(task_id) == ["hello", "done"]
    assert harness.worker.document(task_id)["workspace_agent_health"] == {"healthy": True}
    assert harness.worker.reasons() == []
