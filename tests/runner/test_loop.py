from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness

pytestmark = pytest.mark.timeout(180)


async def test_a_prompt_becomes_work_that_anyone_can_follow(own: RunnerHarness) -> None:
    """A task is started, its lines are its log and its activity, silence is idleness, and exit 0 is the end of it."""
    await own.start()
    task_id = await own.task("say:hello", "sleep:1.5", "say:done", prompt="Say hello")
    await own.until_state(task_id, "working")
    await own.until_status(task_id, "active")
    await own.until_state(task_id, "idle", "hello")
    await own.until_state(task_id, "complete", "done")
    await own.until_output(task_id, "done")
    assert await own.inputs(task_id) == ["Say hello"]
    assert await own.output(task_id) == ["hello", "done"]
    assert own.worker.document(task_id)["workspace_agent_health"] == {"healthy": True}
    assert own.worker.reasons() == []
