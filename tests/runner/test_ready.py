from __future__ import annotations

import pytest

from tests.harness.runner import RunnerHarness

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("kind", ["stdio", "self"])
async def test_an_agent_is_connected_when_it_is_ready(harness: RunnerHarness, kind: str) -> None:
    """The first heartbeat comes with ``ready``: no version of the task is active and not yet connected."""
    await harness.start(runner_heartbeat_every="10s")
    task_id = await harness.task("say:up", "sleep", agent=kind)
    await harness.until_status(task_id, "active")
    await harness.until(lambda: harness.worker.document(task_id)["workspace_agent_health"] == {"healthy": True})
    documents = [event["task"] for event in harness.worker.events_of(task_id)]
    assert [
        each for each in documents if each["status"] == "active" and not each["workspace_agent_health"]["healthy"]
    ] == []
    assert [
        each
        for each in documents
        if each["workspace_agent_lifecycle"] == "ready" and not each["workspace_agent_health"]["healthy"]
    ] == []
