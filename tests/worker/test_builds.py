"""Builds: requests are repeated until answered, builds time out, provisioners start builds, deletes are retried."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from taskherd.messages.agent_tokens import agent_token
from taskherd.worker import work_requests
from tests.harness.tasks import prompt_of
from tests.harness.worker import ALICE, SECRET, VERSION, WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import StartWorker

HASTY = {"request_backoff_first": 0.1, "request_backoff_most": 0.3}


async def test_a_request_is_repeated_until_answered(start_worker: StartWorker) -> None:
    """The same request is sent again with a rising attempt, until any report about its build arrives."""
    async with start_worker(**HASTY) as harness:
        task_id = await harness.create()
        await harness.until(lambda: len(harness.requests_of(task_id)) >= 4)
        requests = harness.requests_of(task_id)
        assert [each["attempt"] for each in requests] == list(range(1, len(requests) + 1))
        assert [{**each, "attempt": 1} for each in requests] == [requests[0]] * len(requests)
        first = requests[0]
        assert (first["type"], first["build_number"], first["prompt"]) == ("workspace.start", 1, prompt_of(task_id))
        assert first["owner"] == {"id": str(ALICE), "username": "alice"}
        assert first["build_id"] == str(uuid.uuid5(task_id, "1"))
        assert (first["template_version_id"], first["run"], first["preset"]) == (str(VERSION), {}, None)
        assert first["agent_token"] == agent_token(SECRET, task_id, 1)
        assert harness.routes(task_id) == {"workspace.start.default"}
        await harness.report(build_report(task_id, 1, "start", "pending"))
        await harness.until_row("SELECT count(*) FROM work_requests", is_=0)
        count = len(harness.requests_of(task_id))
        other = await harness.create()
        await harness.until(lambda: len(harness.requests_of(other)) >= 4)
        assert len(harness.requests_of(task_id)) <= count + 1


async def test_the_first_request_of_a_task_is_like_the_repeated_ones(start_worker: StartWorker) -> None:
    """It is made from what its create has read, with the preset and the instructions for the runner."""
    async with start_worker(**HASTY) as harness:
        preset = uuid.uuid4()
        await harness.database.execute(
            "INSERT INTO presets (id, template_version_id, name, is_default, parameters) VALUES ($1, $2, $3, true, $4)",
            preset,
            VERSION,
            "Large",
            json.dumps({"cpu": [2, "cores"]}),
        )
        await harness.database.execute("""UPDATE template_versions SET run = '{"pool": "gpu", "command": ["x"]}'""")
        task_id = await harness.create(template_version_preset_id=str(preset))
        await harness.until(lambda: len(harness.requests_of(task_id)) >= 2)
        first, second = harness.requests_of(task_id)[:2]
        assert second == {**first, "attempt": 2}
        assert first["preset"] == {"id": str(preset), "name": "Large", "parameters": {"cpu": [2, "cores"]}}
        assert first["run"] == {"pool": "gpu", "command": ["x"]}
        assert harness.routes(task_id) == {"workspace.start.gpu"}


async def test_a_request_that_is_lost_after_its_commit_is_sent_when_it_is_due(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt is counted when the task is committed; if the broker takes none, the second one arrives."""
    send = work_requests.send
    lost: list[Any] = []

    async def lose_first(context: Any, requests: Any, *rest: Any) -> None:
        if not lost:
            lost.extend(requests)
            return
        await send(context, requests, *rest)

    monkeypatch.setattr(work_requests, "send", lose_first)
    async with start_worker(**HASTY) as harness:
        task_id = await harness.create()
        await harness.until(lambda: harness.requests_of(task_id))
        assert [row.attempt for row, _ in lost] == [1]
        assert harness.requests_of(task_id)[0]["attempt"] == 2


async def test_an_unanswered_start_also_goes_to_the_pool(start_worker: StartWorker) -> None:
    """Requests go to the task's runner. A start that it does not answer also goes to its pool, a stop does not."""
    async with start_worker(**HASTY, runner_answer_timeout=0.5) as harness:
        await harness.database.execute("""UPDATE template_versions SET run = '{"pool": "gpu"}'""")
        task_id = await harness.create()
        await harness.until(lambda: harness.routes(task_id) == {"workspace.start.gpu"})
        await harness.make_active(task_id)
        assert (await harness.command("task.pause", task_id))["ok"]
        await harness.until(
            lambda: any(each["attempt"] >= 5 for each in harness.requests_of(task_id, "workspace.stop"))
        )
        assert {key for key in harness.routes(task_id) if "stop" in key} == {"workspace.stop.r1"}
        await harness.report(build_report(task_id, 2, "stop", "succeeded"))
        await harness.until(lambda: harness.document(task_id).get("status") == "paused")
        harness.requests.clear()
        harness.targets.clear()
        assert (await harness.command("task.resume", task_id))["ok"]
        await harness.until(lambda: harness.routes(task_id) == {"workspace.start.r1", "workspace.start.gpu"})
        assert harness.targets[0] == "workspace.start.r1"
        assert {each["attempt"] for each in harness.requests_of(task_id) if each["attempt"] == 1} == {1}


async def test_an_unanswered_start_times_out_until_a_report_arrives(start_worker: StartWorker) -> None:
    """Without an answer within request_ttl the build fails with an error that says so, until a report arrives."""
    async with start_worker(**HASTY, request_ttl=1) as harness:
        task_id = await harness.create()
        await harness.until(lambda: harness.document(task_id).get("status") == "error")
        event = harness.events_of(task_id)[-1]
        assert event["cause"] == {"kind": "sweep", "type": "build.given_up"}
        assert event["changes"] == ["current_state", "status", "workspace_status"]
        state = event["task"]["current_state"]
        assert (state["state"], state["message"]) == ("failed", "No runner picked up the workspace start in time.")
        assert await harness.database.fetchval("SELECT count(*) FROM work_requests") == 0
        await harness.until_metric(1, "taskherd_requests_given_up_total", type="workspace.start")
        await harness.report(build_report(task_id, 1, "start", "running"))
        await harness.until(lambda: harness.document(task_id).get("status") == "initializing")
        assert harness.document(task_id)["workspace_status"] == "starting"


async def test_a_build_without_reports_times_out(start_worker: StartWorker) -> None:
    """A running build without a report for build_timeout fails; a resume starts the next build."""
    async with start_worker(build_timeout=1) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 1, "start", "running"))
        await harness.until(lambda: harness.document(task_id).get("status") == "error")
        message = harness.document(task_id)["current_state"]["message"]
        assert message == "No report about the workspace start arrived in time."
        reply = await harness.command("task.resume", task_id)
        assert (reply["task"]["status"], reply["task"]["workspace_build_number"]) == ("pending", 2)


async def test_a_provisioner_may_start_the_next_build(start_worker: StartWorker) -> None:
    """A report about the next build number is accepted, ends the previous request, and numbering continues from it."""
    async with start_worker(**HASTY) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 2, "stop", "succeeded"))
        await harness.until(lambda: harness.document(task_id).get("status") == "paused")
        await harness.until_row("SELECT count(*) FROM work_requests", is_=0)
        reply = await harness.command("task.resume", task_id)
        assert reply["task"]["workspace_build_number"] == 3
        await harness.until(lambda: any(each["build_number"] == 3 for each in harness.requests_of(task_id)))
        assert harness.dead_letters == []


async def test_a_build_with_another_transition_is_dead_lettered(harness: WorkerHarness) -> None:
    """A report with another transition than the requested one is dead-lettered unchanged; other reports are folded."""
    task_id = await harness.create()
    conflict = build_report(task_id, 1, "stop", "succeeded", extra="kept")
    await harness.report(conflict)
    await harness.report(build_report(task_id, 1, "start", "running"), conflict)
    await harness.report(raw=json.dumps([conflict]).encode())
    await harness.until(lambda: len(harness.dead_letters) == 3)
    assert harness.reasons() == ["build_conflict"] * 3
    assert [json.loads(letter.body) for letter in harness.dead_letters] == [conflict] * 3
    indexes = [letter.headers.get("x-taskherd-index") for letter in harness.dead_letters]
    assert indexes == [None, 1, 0]
    await harness.until(lambda: harness.document(task_id).get("status") == "initializing")
    await harness.until_metric(3, "taskherd_reports_total", type="workspace.build", outcome="conflict")


async def test_a_build_number_far_above_the_requested_ones_is_dead_lettered(harness: WorkerHarness) -> None:
    """A stray report with the greatest build number neither hides the task's own reports nor uses up its numbers."""
    task_id = await harness.make_active()
    stray: dict[str, Any] = {"build_number": 2**31 - 1}
    entry = {"id": 0, "type": "output", "content": "x", "time": "2026-03-01T12:00:00Z"}
    strays = [
        build_report(task_id, 2**31 - 1, "start", "succeeded", runner="r9", agent_id=str(uuid.uuid4())),
        make_report("agent.lifecycle", task_id, lifecycle="off", **stray),
        make_report("agent.heartbeat", task_id, **stray),
        make_report("agent.disconnected", task_id, **stray),
        make_report("agent.exit", task_id, why="exited", status=0, **stray),
        make_report("app.health", task_id, health="unhealthy", **stray),
        make_report("app.status", task_id, state="failed", message="stray", **stray),
        make_report("task.log", task_id, entries=[entry], **stray),
        make_report("task.input", task_id, input_id=str(uuid.uuid4()), outcome="failed", **stray),
    ]
    await harness.report(*strays)
    await harness.report(strays[2])
    await harness.until(lambda: len(harness.dead_letters) == len(strays) + 1)
    assert set(harness.reasons()) == {"build_out_of_range"}
    assert [json.loads(letter.body) for letter in harness.dead_letters] == [*strays, strays[2]]
    await harness.report(make_report("app.status", task_id, build_number=1, state="working", message="Still seen"))
    await harness.until(lambda: harness.state(task_id).get("message") == "Still seen")
    assert harness.document(task_id)["status"] == "active"
    assert (await harness.command("task.pause", task_id))["task"]["workspace_build_number"] == 2


async def test_a_delete_waits_for_the_active_build(harness: WorkerHarness) -> None:
    """The task is deleted at once. Its delete build is requested when the active build has ended."""
    task_id = await harness.create(name="doomed")
    await harness.report(build_report(task_id, 1, "start", "running", runner="r1"))
    await harness.until(lambda: harness.document(task_id).get("status") == "initializing")
    assert (await harness.command("task.delete", task_id))["ok"]
    await harness.until(lambda: harness.events_of(task_id)[-1]["cause"]["type"] == "task.delete")
    deleted = harness.events_of(task_id)[-1]
    last = harness.events[-1]
    assert last["type"] == "dev.taskherd.task.deleted.v1"
    assert deleted["task"]["workspace_build_number"] == 1
    assert harness.requests_of(task_id, "workspace.delete") == []
    assert await harness.database.fetchval("SELECT count(*) FROM work_requests") == 0
    await harness.report(build_report(task_id, 1, "start", "succeeded"))
    await harness.until(lambda: harness.requests_of(task_id, "workspace.delete"))
    assert harness.requests_of(task_id, "workspace.delete")[0]["build_number"] == 2
    assert "workspace.delete.r1" in harness.routes(task_id)
    await harness.report(
        build_report(task_id, 2, "delete", "succeeded"), make_report("app.status", task_id, state="idle")
    )
    await harness.until_row("SELECT count(*) FROM work_requests", is_=0)
    await harness.until_row("SELECT due_at IS NULL AND state #>> '{deletion,2}' = 'true' FROM tasks")
    await harness.until_metric(1, "taskherd_reports_total", type="app.status", outcome="tombstone")
    assert await harness.database.fetchval("SELECT max(version) FROM task_events") == deleted["version"]
    assert harness.events_of(task_id)[-1] == deleted


async def test_a_failed_delete_is_requested_again(start_worker: StartWorker) -> None:
    """A delete that failed or timed out is requested again with the next build number, and counted."""
    async with start_worker(**HASTY, delete_backoff_most=1, request_ttl=1) as harness:
        task_id = await harness.make_active()
        assert (await harness.command("task.delete", task_id))["ok"]
        await harness.until(lambda: harness.requests_of(task_id, "workspace.delete"))
        await harness.report(build_report(task_id, 2, "delete", "failed", error="The volume is busy"))
        await harness.until(lambda: any(each["build_number"] == 3 for each in harness.requests_of(task_id)))
        await harness.until(lambda: any(each["build_number"] == 4 for each in harness.requests_of(task_id)))
        await harness.until_metric(2, "taskherd_deletes_retried_total")
        await harness.until_metric(1, "taskherd_requests_given_up_total", type="workspace.delete")
        await harness.report(build_report(task_id, 4, "delete", "succeeded"))
        await harness.until_row("SELECT count(*) FROM task_deadlines", is_=0)
        assert [event["type"].split(".")[-2] for event in harness.events if event["subject"] == str(task_id)][-1:] == [
            "deleted"
        ]


async def test_deadlines_survive_a_restart(external: WorkerHarness) -> None:
    """The next worker repeats the requests of the previous one, and times them out in its own drained time."""
    async with running_worker(external, **HASTY):
        task_id = await external.create()
        await external.until(lambda: external.requests_of(task_id))
    attempt = external.requests_of(task_id)[-1]["attempt"]
    await external.database.execute("UPDATE tasks SET state = CAST(replace(state::text, '\"202', '\"201') AS json)")
    await external.database.execute("UPDATE task_deadlines SET due_at = now()")
    async with running_worker(external, **HASTY, request_ttl=2) as worker:
        await external.until(lambda: external.requests_of(task_id)[-1]["attempt"] > attempt)
        await external.until(lambda: external.document(task_id).get("status") == "error")
        timed_out_at = await external.database.fetchval("SELECT max(occurred_at) FROM task_events")
        assert worker.probe.drained_since is not None
        assert (timed_out_at - worker.probe.drained_since).total_seconds() > 2
