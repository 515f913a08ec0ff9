"""Reports whose task does not exist yet."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.store import parked_reports
from taskherd.store.engine import IDLE_IN_TRANSACTION, transaction
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tasks import StoredTask
from taskherd.worker.maintenance import MAX_EXPIRED
from tests.harness.tasks import make_task
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import ALICE, WorkerHarness, build_report, make_report, running_worker
from tests.worker.conftest import PARKED, StartWorker, noted_statements

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
MOMENT = timedelta.resolution
TOO_LATE = "The task was not created in time."
REJECTED = "The create of the task rejected the report."
OUT_OF_RANGE = "The build number is more than 1,000 above the highest one that the worker requested."
MIB = 1024 * 1024


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


async def test_a_parked_report_of_a_damaged_task_expires(harness: WorkerHarness) -> None:
    """A task's stored state is damaged: reports of others expire all the same."""
    damaged, missing = uuid.uuid4(), uuid.uuid4()
    await harness.report(build_report(damaged, 1, "delete", "succeeded", seq=9))
    await harness.report(build_report(damaged, 1, "start", "running", seq=1))
    await harness.report(build_report(missing, 1, "start", "running", seq=1))
    await harness.until_row("SELECT count(*) FROM parked", is_=3)
    await harness.create(damaged)
    await harness.until_row("SELECT count(*) FROM parked", is_=2)
    await harness.database.execute("UPDATE tasks SET state = '{}' WHERE id = $1", damaged)
    assert await harness.expire_parked() == 2
    await harness.until(lambda: len(harness.dead_letters) == 2)
    details = {json.loads(each.body)["task_id"]: each.headers["x-taskherd-detail"] for each in harness.dead_letters}
    assert details == {
        str(damaged): "The state of the task is damaged.",
        str(missing): "The task was not created in time.",
    }


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


def numbered(*numbers: int) -> dict[uuid.UUID, str]:
    """Return a report with each number, of a task of its own."""
    return {uuid.uuid4(): f'{{"n":{number}}}' for number in numbers}


async def park(
    harness: WorkerHarness, reports: Mapping[uuid.UUID, str], age: timedelta = PARKED + MOMENT
) -> list[uuid.UUID]:
    """Store reports of tasks that were parked so long ago, and return the tasks' ids."""
    rows = [parked_reports.ReportToPark(task_id, NOW - age, report) for task_id, report in reports.items()]
    async with transaction(harness.worker._engine) as connection:
        assert await parked_reports.park(connection, rows, 1) == []
    return list(reports)


async def still_parked(harness: WorkerHarness) -> set[uuid.UUID]:
    """Return the tasks of which reports are parked."""
    return {row["task_id"] for row in await harness.database.fetch("SELECT task_id FROM parked")}


async def counted_letters(harness: WorkerHarness) -> list[tuple[datetime, str, int]]:
    """Have the worker write how many letters it counted in which hour and for which reason, and return that."""
    await harness.worker._context.rates.write_once(harness.worker._engine)
    rows = await harness.database.fetch("SELECT hour, reason, letters FROM dead_letter_rates ORDER BY hour, reason")
    return [tuple(row) for row in rows]


async def test_reports_that_expire_are_dead_letters(resting: WorkerHarness) -> None:
    """Each says of which task, why and when, and is counted; while there is none, a single statement finds that out."""
    (young,) = await park(resting, numbered(0), age=PARKED)
    with noted_statements(resting) as noted:
        assert await resting.worker._maintenance.expire_parked_once(NOW) == 0
    assert len(noted) == 1
    tasks = await park(resting, numbered(1, 2))
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 2
    assert await still_parked(resting) == {young}
    await resting.until(lambda: len(resting.dead_letters) >= 2)
    names = TopologyNames(resting.prefix)
    letters = [(each.exchange, each.routing_key, each.body, each.headers) for each in resting.dead_letters]
    assert letters == [
        (
            names.dead,
            str(task_id),
            f'{{"n":{number}}}'.encode(),
            {
                "x-taskherd-reason": "parked_expired",
                "x-taskherd-detail": TOO_LATE,
                "x-taskherd-exchange": names.reports,
                "x-taskherd-routing-key": str(task_id),
                "x-taskherd-queue": names.reports,
                "x-taskherd-time": "2026-03-05T12:00:00.000000Z",
            },
        )
        for number, task_id in enumerate(tasks, start=1)
    ]
    assert resting.metric("taskherd_dead_lettered_total", reason="parked_expired") == 2
    assert await counted_letters(resting) == [(NOW, "parked_expired", 2)]


async def test_reports_stay_locked_until_their_dead_letters_are_confirmed(
    resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the queue before they are deleted, and no other worker finds one of them meanwhile."""
    delete = parked_reports.delete
    tasks = await park(resting, numbered(3, 4))
    found: list[object] = []

    async def look_and_delete(connection: AsyncConnection, ids: Sequence[int]) -> None:
        await resting.until(lambda: len(resting.dead_letters) == len(tasks))
        found.append(await resting.database.fetch("SELECT id FROM parked FOR UPDATE SKIP LOCKED"))
        found.append(await still_parked(resting))
        await delete(connection, ids)

    monkeypatch.setattr(parked_reports, "delete", look_and_delete)
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 2
    assert found == [[], set(tasks)]
    assert await still_parked(resting) == set()


async def test_what_a_create_has_rejected_says_why(resting: WorkerHarness) -> None:
    """If that can still be told: a build number far too high is the sender's mistake, however long it was parked."""
    tasks = [uuid.uuid4() for _ in range(3)]
    beats = [
        make_report("agent.heartbeat", task_id, build_number=number, seq=1)
        for task_id, number in zip(tasks, (1_002, 1_001), strict=False)
    ]
    reports = [*map(json.dumps, beats), '{"type":"of an older release"}']
    await park(resting, dict(zip(tasks, reports, strict=True)))
    rows = [StoredTask(make_task(each), status="pending", document="{}", due_at=None) for each in tasks]
    async with transaction(resting.worker._engine) as connection:
        assert (await insert_tasks(connection, rows)).tasks == set(tasks)
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 3
    await resting.until(lambda: len(resting.dead_letters) >= 3)
    assert {
        each.routing_key: (each.headers["x-taskherd-reason"], each.headers["x-taskherd-detail"])
        for each in resting.dead_letters
    } == {
        str(tasks[0]): ("build_out_of_range", OUT_OF_RANGE),
        str(tasks[1]): ("parked_expired", REJECTED),
        str(tasks[2]): ("parked_expired", REJECTED),
    }
    assert resting.metric("taskherd_dead_lettered_total", reason="build_out_of_range") == 1
    assert resting.metric("taskherd_dead_lettered_total", reason="parked_expired") == 2
    assert await counted_letters(resting) == [(NOW, "build_out_of_range", 1), (NOW, "parked_expired", 2)]


async def refusing_queue(harness: WorkerHarness, routing_key: str) -> AbstractQueue:
    """Return a full queue that refuses the dead letters with a routing key."""
    queue = await harness.channel.declare_queue(
        exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await harness.channel.default_exchange.publish(aio_pika.Message(b"fills it"), queue.name, timeout=30)
    await queue.bind(f"{harness.prefix}.dead", routing_key)
    return queue


async def test_a_report_whose_dead_letter_is_refused_stays_parked(resting: WorkerHarness) -> None:
    """The others are deleted and counted, the failure is told, and it expires once the broker takes it."""
    tasks = await park(resting, numbered(5, 6, 7))
    queue = await refusing_queue(resting, str(tasks[1]))
    with pytest.raises(Unavailable, match="the broker refused the message"):
        await resting.worker._maintenance.expire_parked_once(NOW)
    assert await still_parked(resting) == {tasks[1]}
    assert resting.metric("taskherd_dead_lettered_total", reason="parked_expired") == 2
    await queue.delete(if_unused=False, if_empty=False)
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 1
    assert await still_parked(resting) == set()
    assert await counted_letters(resting) == [(NOW, "parked_expired", 3)]


@pytest.mark.parametrize(("size", "count"), [(MIB, 4), (MIB + 1, 3), (5 * MIB, 1)])
async def test_reports_that_expire_together_have_four_mebibytes(resting: WorkerHarness, size: int, count: int) -> None:
    """Or are one that is larger; the others stay for the next time."""
    tasks = await park(resting, {uuid.uuid4(): f'"{str(number) * (size - 2)}"' for number in range(5)})
    assert await resting.worker._maintenance.expire_parked_once(NOW) == count
    assert await still_parked(resting) == set(tasks[count:])


async def test_no_more_reports_expire_together_than_may(resting: WorkerHarness) -> None:
    """The one that was parked last waits for the next time, which is at once."""
    tasks = await park(resting, numbered(*range(201)))
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 200
    assert await still_parked(resting) == set(tasks[200:])
    assert await resting.worker._maintenance.expire_parked_once(NOW) == 1
