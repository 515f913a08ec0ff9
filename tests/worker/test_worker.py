"""The worker end to end: from a message in a queue to a row, an event, a request and a reply."""

from __future__ import annotations

import uuid

from tests.harness.worker import ALICE, VERSION, Herd


async def test_a_created_task_is_told_and_asked_for(flock: Herd) -> None:
    """A create is replied to with the document, told in an event of version 1, and asked of the default pool."""
    task_id = uuid.uuid4()
    reply = await flock.command(
        "task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input="Fix the build"
    )
    assert reply["ok"] is True
    assert reply["version"] == 1
    assert reply["task"]["status"] == "pending"
    await flock.until(lambda: flock.document(task_id) and flock.requests)
    assert flock.document(task_id) == reply["task"]
    request = flock.requests[0]
    assert (request["type"], request["task_id"], request["build_number"]) == ("workspace.start", str(task_id), 1)


async def test_reports_make_a_task_active_and_its_agent_healthy(flock: Herd) -> None:
    """A build, a lifecycle and a heartbeat take a task to active with a healthy agent; an app status is its state."""
    task_id = await flock.active()
    await flock.report({"type": "app.status", "task_id": str(task_id), "state": "working", "message": "Reading"})
    await flock.until(lambda: flock.state(task_id).get("message") == "Reading")
    document = flock.document(task_id)
    assert document["workspace_agent_health"] == {"healthy": True}
    assert document["workspace_agent_lifecycle"] == "ready"
    versions = flock.versions(task_id)
    assert versions == sorted(set(versions))
