"""Stalled, drained and lost agents through the worker: what the document says, and which starts it requests."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.harness.worker import WorkerHarness, build_report, make_report
from tests.worker.conftest import StartWorker


async def set_run(harness: WorkerHarness, **run: Any) -> None:
    """Give every template version this ``run``, as applying a directory would."""
    await harness.database.execute("UPDATE template_versions SET run = $1", json.dumps(run))
    await harness.database.execute("UPDATE directory_revision SET revision = revision + 1")


def starts(harness: WorkerHarness, task_id: uuid.UUID) -> set[int]:
    """Return the numbers of the starts that were requested."""
    return {request["build_number"] for request in harness.requests_of(task_id, "workspace.start")}


async def test_the_end_of_an_agent_is_in_the_document_until_the_next_start(harness: WorkerHarness) -> None:
    """It shows why, with a health; a resume, which a running agent's task refuses, starts the agent again."""
    task_id = await harness.make_active()
    refused = await harness.refused_command("task.resume", task_id)
    assert refused["message"] == "Task workspace is already running."
    await harness.report(
        make_report("agent.exit", task_id, why="exited", status=3, words="disk full"),
        make_report("app.status", task_id, state="failed", message="The agent exited with status 3."),
    )
    await harness.until(lambda: harness.document(task_id).get("agent_exit"))
    document = harness.document(task_id)
    ended = document["agent_exit"]
    assert (ended["why"], ended["status"], ended["signal"], ended["words"]) == ("exited", 3, None, "disk full")
    assert document["workspace_agent_health"] == {"healthy": False, "reason": "agent is not running"}
    assert (await harness.command("task.resume", task_id))["ok"]
    await harness.until(lambda: harness.document(task_id)["workspace_build_number"] == 2)
    document = harness.document(task_id)
    assert (document["agent_exit"], document["status"]) == (None, "pending")
    await harness.until(lambda: starts(harness, task_id) == {1, 2})
    assert harness.metric("taskherd_agent_events_total", type="started") == 1
    assert harness.metric("taskherd_agent_exits_total", why="exited") == 1


async def test_a_lost_agent_can_be_resumed(start_worker: StartWorker) -> None:
    """No pause is needed before."""
    async with start_worker(agent_lost_after=1) as harness:
        task_id = await harness.make_active()
        await harness.until(lambda: not harness.document(task_id)["workspace_agent_health"]["healthy"])
        assert (await harness.command("task.resume", task_id))["ok"]
        await harness.until(lambda: starts(harness, task_id) == {1, 2})


async def test_an_agent_that_is_only_alive_is_stalled_until_its_next_word(start_worker: StartWorker) -> None:
    """Heartbeats do not end the stall, a status does; a template's limit overrides the setting."""
    async with start_worker(stalled_after=3600) as harness:
        await set_run(harness, stalled_after="1s")
        task_id = await harness.make_active()
        await harness.report(make_report("app.status", task_id, state="working", message="Compiling"))
        await harness.until(lambda: harness.document(task_id).get("stalled_since"))
        event = harness.events_of(task_id)[-1]
        assert event["cause"] == {"kind": "sweep", "type": "agent.stalled"}
        assert event["changes"] == ["stalled_since"]
        since = event["task"]["stalled_since"]
        assert since == event["task"]["current_state"]["timestamp"]
        await harness.report(make_report("agent.heartbeat", task_id))
        await harness.report(make_report("app.status", task_id, state="working", message="Linking"))
        await harness.until(lambda: harness.state(task_id).get("message") == "Linking")
        assert harness.document(task_id)["stalled_since"] is None
        await harness.until(lambda: harness.document(task_id).get("stalled_since") not in (None, since))


async def test_a_lost_agent_is_started_again_if_its_template_asks_for_it(start_worker: StartWorker) -> None:
    """Once here, because ``most`` is 1; the cause of the start is the loss."""
    async with start_worker(agent_lost_after=1) as harness:
        await set_run(harness, on_loss={"action": "restart", "most": 1, "backoff": "500ms"})
        task_id = await harness.make_active()
        await harness.until(lambda: starts(harness, task_id) == {1, 2})
        requested = [each for each in harness.events_of(task_id) if each["task"]["workspace_build_number"] == 2]
        assert requested[0]["cause"] == {"kind": "sweep", "type": "agent.lost"}
        await harness.make_active(task_id, 2)
        await harness.until(
            lambda: (
                harness.document(task_id)["workspace_agent_health"]
                == {
                    "healthy": False,
                    "reason": "agent has lost connection",
                }
                and harness.document(task_id)["workspace_build_number"] == 2
            )
        )
        assert starts(harness, task_id) == {1, 2}


async def test_a_drained_task_is_started_again(harness: WorkerHarness) -> None:
    """The runner's own stop with ``restart`` is followed by the next start."""
    task_id = await harness.make_active()
    for job in ("running", "succeeded"):
        await harness.report(
            build_report(task_id, 2, "stop", job, restart=True, reason="The runner is being upgraded.", runner="r1")
        )
    await harness.until(lambda: 3 in starts(harness, task_id))
    requested = [each for each in harness.events_of(task_id) if each["task"]["workspace_build_number"] == 3]
    assert requested[0]["cause"] == {"kind": "sweep", "type": "runner.drained"}
    assert requested[0]["task"]["status"] == "pending"


async def test_a_stop_that_answers_a_pause_is_not_followed_by_a_start(harness: WorkerHarness) -> None:
    """Whoever paused meanwhile keeps the task paused."""
    task_id = await harness.make_active()
    await harness.command("task.pause", task_id)
    await harness.report(build_report(task_id, 2, "stop", "succeeded", restart=True))
    await harness.until(lambda: harness.document(task_id)["status"] == "paused")
    await harness.report(
        build_report(task_id, 2, "stop", "succeeded", restart=True, seq=2**52),
        make_report("app.status", task_id, build_number=1, state="idle", message="The end"),
    )
    await harness.until(lambda: harness.state(task_id).get("message") == "The end")
    assert harness.document(task_id)["status"] == "paused"
    assert starts(harness, task_id) == {1}
