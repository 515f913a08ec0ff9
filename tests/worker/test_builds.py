"""Builds: asked for until answered, told by others of their own accord, given up, and the way a delete goes."""

from __future__ import annotations

import json
import uuid

from taskherd.messages.agent_tokens import agent_token
from tests.harness.worker import ALICE, SECRET, VERSION, WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import StartWorker

HASTY = {"request_backoff_first": 0.1, "request_backoff_most": 0.3}


async def test_a_request_is_repeated_until_answered(start_worker: StartWorker) -> None:
    """The same request comes again with a rising attempt, until any report of its build; then no more."""
    async with start_worker(**HASTY) as harness:
        task_id = await harness.create()
        await harness.until(lambda: len(harness.requests_of(task_id)) >= 4)
        asked = harness.requests_of(task_id)
        assert [each["attempt"] for each in asked] == list(range(1, len(asked) + 1))
        assert [{**each, "attempt": 1} for each in asked] == [asked[0]] * len(asked)
        first = asked[0]
        assert (first["type"], first["build_number"], first["prompt"]) == ("workspace.start", 1, "Fix the flaky test")
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


async def test_a_silent_runner_gives_way_to_its_pool(start_worker: StartWorker) -> None:
    """Stop and start go to the runner of the task; a start that it does not answer goes to its pool too, a stop not."""
    async with start_worker(**HASTY, runner_answer_timeout=0.5) as harness:
        await harness.database.execute("""UPDATE template_versions SET run = '{"pool": "gpu"}'""")
        task_id = await harness.create()
        await harness.until(lambda: harness.routes(task_id) == {"workspace.start.gpu"})
        await harness.active(task_id)
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


async def test_an_unanswered_start_is_given_up_and_revived(start_worker: StartWorker) -> None:
    """Nobody answers within request_ttl: the build counts as failed, with an error that says so, until a report."""
    async with start_worker(**HASTY, request_ttl=1) as harness:
        task_id = await harness.create()
        await harness.until(lambda: harness.document(task_id).get("status") == "error")
        told = harness.events_of(task_id)[-1]
        assert told["cause"] == {"kind": "sweep", "type": "build.given_up"}
        assert told["changes"] == ["current_state", "status", "workspace_status"]
        state = told["task"]["current_state"]
        assert (state["state"], state["message"]) == ("failed", "No runner took up the workspace start in time.")
        assert await harness.database.fetchval("SELECT count(*) FROM work_requests") == 0
        await harness.until_metric(1, "taskherd_requests_given_up_total", type="workspace.start")
        await harness.report(build_report(task_id, 1, "start", "running"))
        await harness.until(lambda: harness.document(task_id).get("status") == "initializing")
        assert harness.document(task_id)["workspace_status"] == "starting"


async def test_a_build_that_falls_silent_is_given_up(start_worker: StartWorker) -> None:
    """A running build of which nothing is heard for build_timeout counts as failed; a resume begins the next one."""
    async with start_worker(build_timeout=1) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 1, "start", "running"))
        await harness.until(lambda: harness.document(task_id).get("status") == "error")
        message = harness.document(task_id)["current_state"]["message"]
        assert message == "Nothing was heard of the workspace start for too long."
        reply = await harness.command("task.resume", task_id)
        assert (reply["task"]["status"], reply["task"]["workspace_build_number"]) == ("pending", 2)


async def test_a_provisioner_goes_on_by_itself(start_worker: StartWorker) -> None:
    """The next number of a provisioner's own accord is taken, ends the asking for the last, and the worker goes on."""
    async with start_worker(**HASTY) as harness:
        task_id = await harness.create()
        await harness.report(build_report(task_id, 2, "stop", "succeeded"))
        await harness.until(lambda: harness.document(task_id).get("status") == "paused")
        await harness.until_row("SELECT count(*) FROM work_requests", is_=0)
        reply = await harness.command("task.resume", task_id)
        assert reply["task"]["workspace_build_number"] == 3
        await harness.until(lambda: any(each["build_number"] == 3 for each in harness.requests_of(task_id)))
        assert harness.dead_letters == []


async def test_a_build_that_contradicts_is_buried(harness: WorkerHarness) -> None:
    """A report of another transition than the one asked for is dead-lettered as it came; the rest is folded."""
    task_id = await harness.create()
    wrong = build_report(task_id, 1, "stop", "succeeded", extra="kept")
    await harness.report(wrong)
    await harness.report(build_report(task_id, 1, "start", "running"), wrong)
    await harness.report(raw=json.dumps([wrong]).encode())
    await harness.until(lambda: len(harness.dead_letters) == 3)
    assert harness.reasons() == ["build_conflict"] * 3
    assert [json.loads(letter.body) for letter in harness.dead_letters] == [wrong] * 3
    indexes = [letter.headers.get("x-taskherd-index") for letter in harness.dead_letters]
    assert indexes == [None, 1, 0]
    await harness.until(lambda: harness.document(task_id).get("status") == "initializing")
    await harness.until_metric(3, "taskherd_reports_total", type="workspace.build", outcome="conflict")


async def test_a_delete_waits_for_the_active_build(harness: WorkerHarness) -> None:
    """The task is gone at once; its delete is asked for when the active build has ended, done when that succeeds."""
    task_id = await harness.create(name="gone")
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


async def test_a_failed_delete_is_asked_for_again(start_worker: StartWorker) -> None:
    """A delete that failed, or that nobody took up, comes again under the next number, and is counted."""
    async with start_worker(**HASTY, delete_backoff_most=1, request_ttl=1) as harness:
        task_id = await harness.active()
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


async def test_deadlines_outlive_the_worker(alone: WorkerHarness) -> None:
    """What was asked for before the worker ended is asked for by the next one, and given up by its own listening."""
    async with running_worker(alone, **HASTY):
        task_id = await alone.create()
        await alone.until(lambda: alone.requests_of(task_id))
    attempt = alone.requests_of(task_id)[-1]["attempt"]
    await alone.database.execute("UPDATE tasks SET state = CAST(replace(state::text, '\"202', '\"201') AS json)")
    await alone.database.execute("UPDATE task_deadlines SET due_at = now()")
    async with running_worker(alone, **HASTY, request_ttl=2) as worker:
        await alone.until(lambda: alone.requests_of(task_id)[-1]["attempt"] > attempt)
        await alone.until(lambda: alone.document(task_id).get("status") == "error")
        given_up = await alone.database.fetchval("SELECT max(occurred_at) FROM task_events")
        assert worker.probe.drained_since is not None
        assert (given_up - worker.probe.drained_since).total_seconds() > 2
