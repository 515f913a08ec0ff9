from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness

pytestmark = pytest.mark.timeout(180)


async def test_agent_runs_from_prompt_to_completion(harness: RunnerHarness) -> None:
    """An agent is started; its lines become log entries and activity, silence means idle, exit status 0 complete."""
    await harness.start()
    task_id = await harness.task("say:hello", "await:go", "say:done", prompt="Say hello", idle_after=2)
    await harness.until_state(task_id, "idle", "hello")
    states = [each["task"]["current_state"] or {} for each in harness.worker.events_of(task_id)]
    working = {each["message"] for each in states if each.get("state") == "working"}
    assert working & {"The agent has started.", "hello"}  # both, unless they were committed together
    await harness.until_status(task_id, "active")
    (harness.work(task_id) / "go").touch()
    await harness.until_state(task_id, "complete", "done")
    await harness.until_output(task_id, "done")
    assert await harness.inputs(task_id) == ["Say hello"]
    assert await harness.output(task_id) == ["hello", "done"]
    assert harness.worker.document(task_id)["workspace_agent_health"] == {"healthy": True}
    assert harness.worker.reasons() == []
