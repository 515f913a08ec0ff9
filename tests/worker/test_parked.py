"""Reports whose task does not exist yet."""

from __future__ import annotations

import asyncio
import json
import uuid

from taskherd.store.engine import IDLE_IN_TRANSACTION
from taskherd.worker.maintenance import MAX_EXPIRED
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import ALICE, WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import StartWorker


async def test_parked_reports_are_folded_with_the_create(harness: WorkerHarness) -> None:
    """Reports from before the create are folded into version 1; a build that they answer is not requested."""
    task_id = uuid.uuid4()
    await harness.report(
        build_report(task_id, 1, "start", "succeeded", runner="r1"),
        make_report("agent.lifecycle", task_id, lifecycle="ready"),
        make_report("agent.heartbeat", task_id),
        make_report("app.status", task_id, state="working", message="Early"),
    )
    await harness.until_row("SELECT count(*) FROM parked WHERE task_id = $1", task_id, is_=4)
    await harness.create(task_id)
    await harness.until(lambda: harness.document(task_id))
    document = harness.document(task_id)
    assert set(harness.versions(task_id)) == {1}
    cause = harness.events_of(task_id)[0]["cause"]
    assert (cause["kind"], cause["type"], cause["actor_id"]) == ("command", "task.create", str(ALICE))
    assert (document["status"], document["current_state"]["message"]) == ("active", "Early")
    assert document["workspace_agent_health"] == {"healthy": True}
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0
    assert await harness.database.fetchval("SELECT count(*) FROM leases") == 1
    assert await harness.database.fetchval("SELECT count(*) FROM work_requests") == 0
    await harness.until_metric(1, "taskherd_reports_total", type="app.status", outcome="parked")


async def test_no_report_is_lost_to_the_race_with_its_create(harness: WorkerHarness) -> None:
    """In a race of creates and reports, every report ends in its task and none stays parked."""
    ids = [uuid.uuid4() for _ in range(60)]
    reports = [
        harness.report(
            build_report(task_id, 1, "start", "running", seq=1),
            make_report("app.status", task_id, build_number=1, state="idle", message=f"In {task_id}", seq=1),
        )
        for task_id in ids
    ]
    await asyncio.gather(*(both for pair in zip(reports, map(harness.create, ids), strict=True) for both in pair))
    await harness.until(lambda: all(harness.state(each).get("message") == f"In {each}" for each in ids))
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0
    assert {harness.document(each)["workspace_status"] for each in ids} == {"starting"}


async def test_too_many_and_too_old_parked_reports_are_dead_lettered(start_worker: StartWorker) -> None:
    """Reports over the limit at once, the others after parked_ttl: each becomes a dead letter with its reason."""
    async with start_worker(parked_most=5, parked_ttl=2) as harness:
        task_id = uuid.uuid4()
        reports = [
            make_report("app.status", task_id, build_number=1, seq=n, state="idle", message=str(n)) for n in range(8)
        ]
        await harness.report(*reports[:4])
        await harness.report(*reports[4:])
        await harness.until(lambda: len(harness.dead_letters) >= 3)
        assert harness.reasons()[:3] == ["parked_overflow"] * 3
        assert [json.loads(letter.body) for letter in harness.dead_letters[:3]] == reports[5:]
        await harness.until(lambda: len(harness.dead_letters) == 8)
        assert harness.reasons()[3:] == ["parked_expired"] * 5
        expired = [json.loads(letter.body) for letter in harness.dead_letters[3:]]
        assert [(each["task_id"], each["seq"]) for each in expired] == [(str(task_id), n) for n in range(5)]
        await harness.create(task_id)
        await harness.until(lambda: harness.document(task_id))
        assert harness.document(task_id)["current_state"] is None


async def test_a_parked_report_in_conflict_with_its_create_expires(harness: WorkerHarness) -> None:
    """It is not folded, does not affect other reports, and is dead-lettered after parked_ttl."""
    task_id = uuid.uuid4()
    conflict = build_report(task_id, 1, "delete", "succeeded", seq=9)
    await harness.report(conflict, build_report(task_id, 1, "start", "running", seq=1))
    await harness.until_row("SELECT count(*) FROM parked", is_=2)
    await harness.create(task_id)
    await harness.until(lambda: harness.document(task_id))
    assert harness.document(task_id)["workspace_status"] == "starting"
    assert await harness.expire_parked() == 1
    await harness.until(lambda: harness.dead_letters)
    assert json.loads(harness.dead_letters[0].body) == conflict
    assert harness.reasons() == ["parked_expired"]
    assert harness.dead_letters[0].headers["x-taskherd-detail"] == "The create of the task rejected the report."
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0


async def test_a_parked_report_with_a_build_number_far_too_high_expires(harness: WorkerHarness) -> None:
    """It is judged when its task is created, and does not affect it; after parked_ttl its dead letter says why."""
    task_id = uuid.uuid4()
    stray = make_report("app.status", task_id, build_number=2**31 - 1, seq=1, state="failed", message="stray")
    await harness.report(stray, make_report("app.status", task_id, build_number=1, seq=1, state="idle", message="x"))
    await harness.until_row("SELECT count(*) FROM parked", is_=2)
    await harness.create(task_id)
    await harness.until(lambda: harness.document(task_id))
    assert harness.document(task_id)["current_state"]["message"] == "x"
    assert await harness.expire_parked() == 1
    await harness.until(lambda: harness.dead_letters)
    assert [json.loads(letter.body) for letter in harness.dead_letters] == [stray]
    assert harness.reasons() == ["build_out_of_range"]
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0


async def test_parked_reports_expire_although_confirms_are_slow(external: WorkerHarness, amqp_url: str) -> None:
    """Each is dead-lettered once, together, although their confirms, one by one, would outlast a transaction."""
    proxy = await TcpProxy.before(amqp_url)
    external.urls = (external.urls[0], through(amqp_url, proxy))
    try:
        async with running_worker(external):
            task_id = uuid.uuid4()
            reports = [
                make_report("app.status", task_id, build_number=1, seq=seq, state="idle", message=f"report {seq}")
                for seq in range(MAX_EXPIRED)
            ]
            await external.report(*reports)
            await external.until_row("SELECT count(*) FROM parked", is_=len(reports))
            proxy.delay = 1.2 * IDLE_IN_TRANSACTION / len(reports)
            assert await external.expire_parked() == len(reports)
            proxy.delay = 0
            assert await external.expire_parked() == 0
            await external.until(lambda: len(external.dead_letters) >= len(reports))
            assert sorted(json.loads(letter.body)["seq"] for letter in external.dead_letters) == list(
                range(MAX_EXPIRED)
            )
    finally:
        await proxy.stop()
