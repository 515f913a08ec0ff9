"""Reports whose task is not there yet."""

from __future__ import annotations

import asyncio
import json
import uuid

from tests.harness.worker import Herd, build, said
from tests.worker.conftest import Herding


async def test_reports_wait_for_their_create(flock: Herd) -> None:
    """What came before the create is folded with it, in version 1; what it answers is not asked for."""
    task_id = uuid.uuid4()
    await flock.report(
        build(task_id, 1, "start", "succeeded", runner="r1"),
        said("agent.lifecycle", task_id, lifecycle="ready"),
        said("agent.heartbeat", task_id),
        said("app.status", task_id, state="working", message="Early"),
    )
    await flock.until_row("SELECT count(*) FROM parked WHERE task_id = $1", task_id, is_=4)
    await flock.create(task_id)
    await flock.until(lambda: flock.document(task_id))
    document = flock.document(task_id)
    assert flock.versions(task_id) == [1]
    assert (document["status"], document["current_state"]["message"]) == ("active", "Early")
    assert document["workspace_agent_health"] == {"healthy": True}
    assert await flock.database.fetchval("SELECT count(*) FROM parked") == 0
    assert await flock.database.fetchval("SELECT count(*) FROM leases") == 1
    assert await flock.database.fetchval("SELECT count(*) FROM work_requests") == 0
    await flock.until_metric(1, "taskherd_reports_total", type="app.status", outcome="parked")


async def test_no_report_is_lost_to_the_race_with_its_create(flock: Herd) -> None:
    """However creates and reports meet, every report ends in its task and none is left parked."""
    ids = [uuid.uuid4() for _ in range(60)]
    reports = [
        flock.report(
            build(task_id, 1, "start", "running", seq=1),
            said("app.status", task_id, build_number=1, state="idle", message="there", seq=1),
        )
        for task_id in ids
    ]
    await asyncio.gather(*(both for pair in zip(reports, map(flock.create, ids), strict=True) for both in pair))
    await flock.until(lambda: all(flock.state(each).get("message") == "there" for each in ids))
    assert await flock.database.fetchval("SELECT count(*) FROM parked") == 0
    assert {flock.document(each)["workspace_status"] for each in ids} == {"starting"}


async def test_too_many_and_too_old_are_buried(herding: Herding) -> None:
    """Over the bound at once, over the time later: each goes to the dead letters with its reason, none is lost."""
    async with herding(parked_most=5, parked_ttl=2) as flock:
        task_id = uuid.uuid4()
        told = [said("app.status", task_id, build_number=1, seq=n, state="idle", message=str(n)) for n in range(8)]
        await flock.report(*told[:4])
        await flock.report(*told[4:])
        await flock.until(lambda: len(flock.letters) == 3)
        assert flock.reasons() == ["parked_overflow"] * 3
        assert [json.loads(letter.body) for letter in flock.letters] == told[5:]
        await flock.until(lambda: len(flock.letters) == 8)
        assert flock.reasons()[3:] == ["parked_expired"] * 5
        left = [json.loads(letter.body) for letter in flock.letters[3:]]
        assert [(each["task_id"], each["seq"]) for each in left] == [(str(task_id), n) for n in range(5)]
        await flock.create(task_id)
        await flock.until(lambda: flock.document(task_id))
        assert flock.document(task_id)["current_state"] is None


async def test_a_parked_report_that_the_create_refuses(herding: Herding) -> None:
    """A report that conflicts with its create is not folded, harms nobody, and is buried when its time is up."""
    async with herding(parked_ttl=1) as flock:
        task_id = uuid.uuid4()
        wrong = build(task_id, 1, "delete", "succeeded", seq=9)
        await flock.report(wrong, build(task_id, 1, "start", "running", seq=1))
        await flock.until_row("SELECT count(*) FROM parked", is_=2)
        await flock.create(task_id)
        await flock.until(lambda: flock.document(task_id))
        assert flock.document(task_id)["workspace_status"] == "starting"
        await flock.until(lambda: flock.letters)
        assert json.loads(flock.letters[0].body) == wrong
        assert flock.reasons() == ["parked_expired"]
        await flock.until_row("SELECT count(*) FROM parked", is_=0)
