"""The fleet: what people may know of pools, runners, workers, queues, dead letters and rates."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest

from taskherd.api.fleet import snapshots
from tests.api.conftest import StartApi
from tests.harness.api import OTHER, ApiHarness, running_api
from tests.harness.worker import ALICE, ORGANIZATION, TIMEOUT, make_report

RATES = "SELECT sum(created) = $1 AND sum(completed) = $2 AND sum(failed) = $3 FROM task_rates WHERE owner_id = $4"


async def test_members_see_their_pools_and_an_admin_of_all_organizations_everything(
    start_api: StartApi,
) -> None:
    """A tenant sees its pools, and of tasks its own; workers, shared queues and dead letters are for the operator."""
    async with start_api() as harness:
        await harness.worker.database.execute(
            f"""INSERT INTO runners (name, pool) VALUES ('r1', 'default'), ('secret-runner', 'secret-pool');
            UPDATE template_versions SET run = '{{"pool": "other-pool"}}' WHERE template_id <> (
                SELECT id FROM templates WHERE organization_id = '{ORGANIZATION}');
            INSERT INTO dead_letter_rates (hour, reason, letters) VALUES
            (date_trunc('hour', now()), 'fault', 3), (date_trunc('hour', now()), 'of tomorrow', 1),
            (date_trunc('hour', now()) - interval '24 hours', 'invalid', 9)"""
        )
        task_id = uuid.UUID((await harness.create(name="fleet-one"))["id"])
        waiting = await harness.create(harness.bob, name="fleet-two")
        claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
        assert (await harness.worker.ask(claim))["granted"]
        await harness.worker.make_active(task_id)
        fleet = (await harness.alice.get("/fleet")).json()
        assert (fleet["sees_all"], fleet["workers"], fleet["queues"], fleet["dead_letters"]) == (
            False,
            None,
            None,
            None,
        )
        (pool,) = fleet["pools"]
        assert (pool["name"], pool["templates"], pool["agents"], pool["waiting"]) == ("default", ["claude"], 1, 0)
        (runner,) = pool["runners"]
        assert (runner["name"], runner["agents"], runner["lost"], runner["listed"]) == ("r1", 1, 0, True)
        assert runner["last_heard_at"] is not None
        assert pool["queue"]["name"].endswith(".work.default")
        bobs = (await harness.bob.get("/fleet")).json()
        assert [(each["name"], each["owner_name"], each["pool"]) for each in bobs["waiting"]] == [
            ("fleet-two", "bob", "default")
        ]
        assert bobs["pools"][0]["runners"][0]["agents"] == 0
        assert bobs["pools"][0]["waiting_since"] == bobs["waiting"][0]["since"]
        mallorys = (await harness.mallory.get("/fleet")).json()
        assert [each["name"] for each in mallorys["pools"]] == ["other-pool"]
        assert (mallorys["waiting"], mallorys["sees_all"]) == ([], False)
        await harness.worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        carols = (await harness.carol.get("/fleet")).json()
        assert carols["sees_all"] is True
        assert {each["name"] for each in carols["pools"]} >= {"default", "secret-pool"}
        assert [each["id"] for each in carols["waiting"]] == [waiting["id"]]
        (worker,) = carols["workers"]
        assert worker["drained_since"] is not None or worker["seen_at"]
        assert [each["name"].rpartition(".")[2] for each in carols["queues"]] == ["reports", "commands", "claims"]
        assert carols["dead_letters"]["messages"] == 0
        reasons = [(each["reason"], each["last_day"]) for each in carols["dead_letters"]["reasons"]]
        assert reasons == [("fault", 3), ("of tomorrow", 1)]
        assert [each["meaning"] is None for each in carols["dead_letters"]["reasons"]] == [False, True]


async def test_tenants_do_not_learn_how_much_others_have_queued(start_api: StartApi) -> None:
    """Who shares a pool with another tenant sees that its runners are connected, and not what waits for them."""
    async with start_api() as harness:
        await harness.worker.database.execute("""UPDATE template_versions SET run = '{"pool": "default"}'""")
        assert (await harness.worker.ask({"type": "runner.hello", "runner": "r1", "pool": "default"}))["ok"]
        for number in range(3):
            task = await harness.create(name=f"secret-{number}")
            await harness.worker.until(lambda task=task: harness.worker.requests_of(uuid.UUID(task["id"])))  # type: ignore[misc]
        for client in (harness.mallory, harness.bob, harness.alice):
            (pool,) = (await client.get("/fleet")).json()["pools"]
            assert pool["queue"]["consumers"] == 0
            assert pool["queue"]["name"].endswith(".work.default")
            assert [each["queue"]["messages"] for each in (pool, *pool["runners"])] == [None, None]
        await harness.worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        (pool,) = (await harness.carol.get("/fleet")).json()["pools"]
        assert [each["queue"]["messages"] for each in (pool, *pool["runners"])] == [3, 0]


async def test_a_fleet_is_shown_without_the_broker(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the broker knows is missing then; it is asked about 150 queues at most, those of runners last."""
    asked: list[list[str]] = []

    async def no_answer(_: snapshots.QueueDepths, queues: Iterable[str]) -> None:
        asked.append([each.rpartition(".")[2] for each in queues])

    monkeypatch.setattr(snapshots.QueueDepths, "read", no_answer)
    async with start_api() as harness:
        await harness.worker.database.execute(
            f"""INSERT INTO runners (name, pool) SELECT 'r' || number, 'default' FROM generate_series(1, 200) AS number;
            UPDATE organizations SET active = false WHERE id = '{OTHER}'"""
        )
        asked.clear()
        fleet = (await harness.carol.get("/fleet")).json()
    assert (fleet["broker"], fleet["queues"]) == (False, [])
    assert (fleet["dead_letters"]["messages"], fleet["dead_letters"]["oldest_at"]) == (None, None)
    (pool,) = fleet["pools"]
    assert (len(pool["runners"]), pool["queue"], pool["runners"][0]["queue"]) == (200, None, None)
    (queues,) = (each for each in asked if "default" in each)
    assert (len(queues), queues[:5]) == (150, ["reports", "commands", "claims", "dead", "default"])
    assert queues[5:] == [each["name"] for each in pool["runners"]][:145]


async def test_a_queue_that_fills_tells_since_when(start_api: StartApi) -> None:
    """No message waits for longer than the queue has not been empty; an API that started later cannot tell."""
    async with start_api(worker=False) as harness:
        worker = harness.worker
        await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")

        async def commands(path: str = "/fleet") -> dict[str, Any]:
            fleet = (await harness.carol.get(path)).json()
            found: dict[str, Any] = next(each for each in fleet["queues"] if each["name"].endswith(".commands"))
            return found

        began_at = datetime.now(UTC)
        assert ((await commands())["messages"], (await commands())["waiting_since"]) == (0, None)
        exchange = await worker.channel.get_exchange(f"{worker.prefix}.commands", ensure=False)
        await exchange.publish(aio_pika.Message(b"{}"), "any", timeout=30)
        async with asyncio.timeout(TIMEOUT):
            while not (found := await commands())["messages"]:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.2)  # the broker's number may be a moment old, and the answer two seconds
        assert began_at <= datetime.fromisoformat(found["waiting_since"]) <= datetime.now(UTC)
        async with running_api(*worker.urls, worker.prefix) as later:
            assert (await commands(f"http://127.0.0.1:{later.port}/api/v2/fleet"))["waiting_since"] is None


async def test_deleted_tasks_do_not_wait_and_lost_ones_are_counted_where_they_are(start_api: StartApi) -> None:
    """A deletion is listed, but not counted among the tasks that wait; each runner has the number of its lost tasks."""
    async with start_api() as harness:
        worker = harness.worker
        await worker.database.execute(
            "INSERT INTO runners (name, pool, active) VALUES"
            " ('r1', 'default', true), ('r2', 'default', true), ('retired', 'default', false)"
        )
        await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        await harness.create(name="fleet-gone", display_name="To be gone")
        assert (await harness.alice.delete("/tasks/me/fleet-gone")).status_code == 202
        task_id = uuid.UUID((await harness.create(name="fleet-lost"))["id"])
        claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
        assert (await worker.ask(claim))["granted"]
        await worker.make_active(task_id)
        await worker.report(make_report("agent.disconnected", task_id, build_number=1))
        lost = "SELECT health FROM task_index WHERE task_id = $1 AND term = 'runner:r1'"
        await worker.until_row(lost, task_id, is_="lost")
        fleet = (await harness.carol.get("/fleet")).json()
        assert [(each["display_name"], each["deleted"]) for each in fleet["waiting"]] == [("To be gone", True)]
        (pool,) = fleet["pools"]
        assert (pool["waiting"], pool["waiting_since"]) == (0, None)
        assert {each["name"]: each["lost"] for each in pool["runners"]} == {"r1": 1, "r2": 0}
        assert all(
            each["lost"] == 0 for pool in (await harness.bob.get("/fleet")).json()["pools"] for each in pool["runners"]
        )


async def test_rates_count_each_task_once_in_its_hour(api_harness: ApiHarness) -> None:
    """Creates, completions and failures are counted when they are committed, also if their reports are repeated."""
    worker = api_harness.worker
    completed = uuid.UUID((await api_harness.active(name="rate-completed"))["id"])
    failed = uuid.UUID((await api_harness.active(name="rate-failed"))["id"])
    for _ in range(2):
        await worker.report(make_report("app.status", completed, state="complete", message="Done", seq=10))
        await worker.report(make_report("agent.exit", failed, why="exited", status=3, seq=10))
    await worker.report({"type": "no.such.type"})
    await worker.until(lambda: worker.dead_letters)
    await worker.until_row(RATES, 2, 1, 1, ALICE)
    await worker.until_row("SELECT sum(letters) FROM dead_letter_rates", is_=1)
    fleet = (await api_harness.alice.get("/fleet")).json()
    hours = [datetime.fromisoformat(hour["hour"]) for hour in fleet["rates"]]
    last = datetime.fromisoformat(fleet["now"]).replace(minute=0, second=0, microsecond=0)
    assert hours == [last - timedelta(hours=ago) for ago in range(23, -1, -1)]
    assert {name: sum(hour[name] for hour in fleet["rates"]) for name in ("created", "completed", "failed")} == {
        "created": 2, "completed": 1, "failed": 1,
    }  # fmt: skip
    assert sum(hour["created"] for hour in (await api_harness.bob.get("/fleet")).json()["rates"]) == 0
    assert sum(hour["created"] for hour in (await api_harness.carol.get("/fleet")).json()["rates"]) == 2
    assert sum(hour["created"] for hour in (await api_harness.mallory.get("/fleet")).json()["rates"]) == 0


async def test_many_readers_at_once_cost_one_read() -> None:
    """Requests that come while a snapshot is made wait for it; one that failed is made again."""
    made, clock = [], [100.0]
    kept = snapshots.FleetSnapshots(lambda: clock[0])
    user = uuid.uuid4()

    async def make() -> dict[str, int]:
        made.append(1)
        await asyncio.sleep(0)
        if len(made) == 1:
            raise ValueError
        return {"number": len(made)}

    first = await asyncio.gather(*(kept.get(user, make) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(each, ValueError) for each in first)
    assert await asyncio.gather(*(kept.get(user, make) for _ in range(10))) == [{"number": 2}] * 10
    clock[0] += snapshots.MAX_AGE + 1
    assert await kept.get(user, make) == {"number": 3}
    assert await kept.get(uuid.uuid4(), make) == {"number": 4}
