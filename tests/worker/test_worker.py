"""The worker end to end: from a message in a queue to a row, an event, a request and a reply."""

from __future__ import annotations

import uuid

from tests.harness.worker import ALICE, VERSION, WorkerHarness, running_worker


async def test_a_create_publishes_an_event_and_a_work_request(harness: WorkerHarness) -> None:
    """The reply and the event of version 1 have the document, and the start is requested from the default pool."""
    task_id = uuid.uuid4()
    reply = await harness.command(
        "task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input="Fix the build"
    )
    assert reply["ok"] is True
    assert reply["version"] == 1
    assert reply["task"]["status"] == "pending"
    await harness.until(lambda: harness.document(task_id) and harness.requests)
    assert harness.document(task_id) == reply["task"]
    request = harness.requests[0]
    assert (request["type"], request["task_id"], request["build_number"]) == ("workspace.start", str(task_id), 1)


async def test_reports_make_a_task_active_and_its_agent_healthy(harness: WorkerHarness) -> None:
    """A build, a lifecycle and a heartbeat make a task active and its agent healthy; an app status is its state."""
    task_id = await harness.make_active()
    await harness.report({"type": "app.status", "task_id": str(task_id), "state": "working", "message": "Reading"})
    await harness.until(lambda: harness.state(task_id).get("message") == "Reading")
    document = harness.document(task_id)
    assert document["workspace_agent_health"] == {"healthy": True}
    assert document["workspace_agent_lifecycle"] == "ready"
    versions = harness.versions(task_id)
    assert versions == sorted(set(versions))


async def test_deliveries_in_flight_are_those_in_progress_and_those_that_wait(external: WorkerHarness) -> None:
    """The gauge counts what the worker has taken and not finished: a batch that waits for a lock, and those behind."""
    async with running_worker(external, probe_every=60):
        task_id = await external.make_active()
        report = {"type": "app.status", "task_id": str(task_id), "state": "working"}
        async with external.database.transaction():
            await external.database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task_id)
            await external.report({**report, "message": "first"})
            await external.until_metric(1, "taskherd_in_flight_deliveries")
            await external.report({**report, "message": "second"})
            await external.report({**report, "message": "third"})
            await external.until_metric(3, "taskherd_in_flight_deliveries")
        await external.until_metric(0, "taskherd_in_flight_deliveries")
        await external.until(lambda: external.state(task_id).get("message") == "third")
