from __future__ import annotations

import asyncio
import json
import os
import uuid
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.worker.work_queues import EVERY, WorkQueues
from tests.harness import fork_server
from tests.harness.worker import SECRET, WorkerHarness, build_report, external_harness, running_worker

CLAIMED_BY = "SELECT runner FROM build_claims WHERE task_id = $1 AND build_number = $2"


def claim(task_id: uuid.UUID, runner: str, number: int = 1) -> dict[str, Any]:
    """Return a claim."""
    return {"type": "build.claim", "task_id": str(task_id), "build_number": number, "runner": runner}


async def test_the_first_claim_wins_and_is_repeated(harness: WorkerHarness) -> None:
    """The same runner gets the same answer again; another one learns who has the build."""
    task_id = await harness.create()
    for _ in range(2):
        assert await harness.ask(claim(task_id, "r1")) == {"granted": True}
    assert await harness.ask(claim(task_id, "r2")) == {"granted": False, "by": "r1"}
    assert await harness.database.fetchval(CLAIMED_BY, task_id, 1) == "r1"
    for outcome, count in (("granted", 1), ("repeated", 1), ("taken", 1)):
        await harness.until_metric(count, "taskherd_claims_total", type="build.claim", outcome=outcome)
    assert harness.reasons() == []


async def test_only_the_latest_start_can_be_claimed(harness: WorkerHarness) -> None:
    """Claims of unknown and deleted tasks, of superseded, future and stop builds are gone, also repeated ones."""
    task_id = await harness.make_active()
    gone = {"granted": False, "gone": True}
    assert await harness.ask(claim(task_id, "r1")) == {"granted": True}
    assert await harness.ask(claim(task_id, "r1", 2)) == gone
    assert (await harness.command("task.pause", task_id))["ok"]
    assert await harness.ask(claim(task_id, "r1")) == gone
    assert await harness.ask(claim(task_id, "r1", 2)) == gone
    await harness.report(build_report(task_id, 2, "stop", "succeeded"))
    await harness.until(lambda: harness.document(task_id).get("status") == "paused")
    assert (await harness.command("task.resume", task_id))["ok"]
    assert await harness.ask(claim(task_id, "r2", 3)) == {"granted": True}
    assert await harness.ask(claim(task_id, "r1", 3)) == {"granted": False, "by": "r2"}
    assert (await harness.command("task.delete", task_id))["ok"]
    assert await harness.ask(claim(task_id, "r2", 3)) == gone
    assert await harness.ask(claim(uuid.uuid4(), "r1")) == gone


async def test_a_reported_build_belongs_to_the_runner_that_reported_it(harness: WorkerHarness) -> None:
    """A build that was begun without an answer to its claim is granted to no other runner."""
    task_id = await harness.make_active()
    assert await harness.ask(claim(task_id, "r2")) == {"granted": False, "by": "r1"}
    assert await harness.ask(claim(task_id, "r1")) == {"granted": True}


async def test_of_two_runners_at_once_one_wins(harness: WorkerHarness) -> None:
    """Of concurrent claims for many builds by two runners, with two workers, each build has exactly one winner."""
    tasks = [await harness.create() for _ in range(20)]
    first = harness.worker
    async with running_worker(harness):
        answers = await asyncio.gather(
            *(harness.ask(claim(task, name)) for task in tasks for name in ("r1", "r2", "r3"))
        )
    harness.worker = first
    for task, *decisions in zip(tasks, answers[::3], answers[1::3], answers[2::3], strict=True):
        winner = await harness.database.fetchval(CLAIMED_BY, task, 1)
        assert sorted(decision["granted"] for decision in decisions) == [False, False, True]
        assert {decision["by"] for decision in decisions if not decision["granted"]} == {winner}


async def test_a_claim_waits_for_no_other(harness: WorkerHarness) -> None:
    """Each is decided as soon as it comes: many, one after the other, take no longer than their transactions."""
    task_id = await harness.create()
    async with asyncio.timeout(18):
        for _ in range(20):
            assert await harness.ask(claim(task_id, "r1")) == {"granted": True}


async def test_invalid_messages_are_answered_and_dead_lettered(harness: WorkerHarness) -> None:
    """They do not hold up the others."""
    task_id = await harness.create()
    for body in (b"nonsense", {"type": "build.steal"}, {**claim(task_id, "R 1")}, {**claim(task_id, "r1", 0)}):
        reply = await harness.ask(body)
        assert reply["error"]["status"] == 400
    assert await harness.ask(claim(task_id, "r1")) == {"granted": True}
    await harness.until(lambda: harness.reasons() == ["not_json", "unknown_type", "invalid", "invalid"])


async def test_ownership(harness: WorkerHarness) -> None:
    """A task is gone, or belongs to the runner that claimed or reported its latest start, or to anyone if none did.

    One of which there is no record counts as gone, and is named, since it was not deleted.
    """
    mine, theirs, new, deleted = [await harness.create() for _ in range(4)]
    await harness.ask(claim(mine, "r1"))
    await harness.ask(claim(theirs, "r2"))
    assert (await harness.command("task.delete", deleted))["ok"]
    ids = [str(task) for task in (mine, theirs, new, deleted, uuid.uuid4())]
    owned = dict(zip(ids, ["owned", "elsewhere", "owned", "gone", "gone"], strict=True))
    reply = await harness.ask({"type": "task.owned", "task_ids": ids, "runner": "r1"})
    assert reply == {"tasks": owned, "unknown": ids[-1:]}
    assert await harness.ask({"type": "task.owned", "task_ids": ids[:1], "runner": "r1"}) == {
        "tasks": {ids[0]: "owned"}
    }
    too_many = {"type": "task.owned", "task_ids": [str(uuid.uuid4())] * 1001, "runner": "r1"}
    assert (await harness.ask(too_many))["ok"] is False


async def test_a_damaged_task_keeps_no_question_from_being_answered(external: WorkerHarness) -> None:
    """A task's stored state is damaged: an answer leaves it out, so that its runner keeps it, and the worker lives."""
    async with running_worker(external):
        damaged, other = await external.create(), await external.create()
        await external.ask(claim(other, "r2"))
    await external.database.execute("UPDATE tasks SET state = '{}' WHERE id = $1", damaged)
    ids = [str(damaged), str(other)]
    sent = [
        await external.post({"type": "task.owned", "task_ids": asked, "runner": "r1"}, exchange="claims")
        for asked in (ids, ids[1:])
    ]
    async with running_worker(external):
        replies = [await asyncio.wait_for(reply, 60) for reply in sent]
        assert await external.ask(claim(other, "r1")) == {"granted": False, "by": "r2"}
    assert replies == [{"tasks": {str(other): "elsewhere"}}] * 2
    assert external.reasons() == []


async def test_hello_declares_both_queues_once_named_apart(harness: WorkerHarness) -> None:
    """The queues exist when the reply arrives, also after someone deleted them; a runner named as a pool is refused."""
    hello = {"type": "runner.hello", "runner": "r9", "pool": "gpu"}
    for _ in range(2):
        assert await harness.ask(hello) == {"ok": True}
        for name in ("work.r9", "work.gpu"):
            assert await harness.queue_counts(name) == (0, 0)
            await harness.channel.queue_delete(f"{harness.prefix}.{name}", timeout=30)
    for runner, pool in (("gpu", "other"), ("r8", "r9"), ("same", "same"), ("default", "gpu")):
        reply = await harness.ask({"type": "runner.hello", "runner": runner, "pool": pool})
        assert "is the name of a" in reply["error"]["message"]
    assert await harness.database.fetchval("SELECT count(*) FROM runner_hellos") == 1


async def test_a_claim_that_the_database_rejects_costs_only_itself(external: WorkerHarness) -> None:
    """Of claims that are decided together, it is refused and dead-lettered, and all others are answered."""
    async with running_worker(external):
        tasks = [await external.create(input=f"Task {number}") for number in range(5)]
    await external.database.execute("ALTER TABLE build_claims ADD CHECK (runner <> 'rejected')")
    runners = ["r0", "r1", "rejected", "r3", "r4"]
    sent = [
        await external.post(claim(task, runner), exchange="claims") for task, runner in zip(tasks, runners, strict=True)
    ]
    async with running_worker(external):
        replies = [await asyncio.wait_for(reply, 60) for reply in sent]
        await external.until(lambda: external.reasons() == ["data_error"])
    assert [reply.get("granted") for reply in replies] == [True, True, None, True, True]
    assert replies[2]["error"]["message"] == "Command could not be read."
    for task, runner in zip(tasks, runners, strict=True):
        claimed = await external.database.fetchval(CLAIMED_BY, task, 1)
        assert claimed == (None if runner == "rejected" else runner)


async def test_a_refused_hello_that_nobody_waits_for_is_dead_lettered(harness: WorkerHarness) -> None:
    """It is kept with the reason, and holds up no hello beside it."""
    refused = {"type": "runner.hello", "runner": "same", "pool": "same"}
    await harness.post_command(refused, exchange="claims")
    assert await harness.ask({"type": "runner.hello", "runner": "r9", "pool": "gpu"}) == {"ok": True}
    await harness.until(lambda: harness.dead_letters)
    [letter] = harness.dead_letters
    assert (harness.reasons(), json.loads(letter.body)) == (["command_refused"], refused)


@pytest.mark.timeout(120)
async def test_a_claim_survives_its_worker(database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """A worker killed between commit and reply leaves the claim in the queue; the next one gives the same answer."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        async with running_worker(harness):
            task_id = await harness.create()
        answer = asyncio.create_task(harness.ask(claim(task_id, "r1")))
        settings = {
            "database_url": database_url,
            "amqp_url": amqp_url,
            "amqp_prefix": amqp_prefix,
            "secret_key": SECRET,
            "ops_port": "0",
            "failpoint": "post_claim:kill",
        }
        environment = {**os.environ, **{f"TASKHERD_{name.upper()}": value for name, value in settings.items()}}
        process = await fork_server.start("worker", environment)
        assert await asyncio.wait_for(process.wait(), 60) == -9
        assert await harness.database.fetchval(CLAIMED_BY, task_id, 1) == "r1"
        assert not answer.done()
        async with running_worker(harness):
            assert await answer == {"granted": True}
            assert await harness.ask(claim(task_id, "r2")) == {"granted": False, "by": "r1"}


async def test_waiting_claims_are_decided_together(database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """200 claims that wait take a few transactions, and do not wait behind commands or reports."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        async with running_worker(harness):
            tasks = [await harness.create() for _ in range(200)]
        exchange = await harness.channel.get_exchange(f"{harness.prefix}.claims", ensure=False)
        for task in tasks:
            await exchange.publish(aio_pika.Message(json.dumps(claim(task, "r1")).encode()), "build.claim", timeout=30)
        blocked = await harness.block_writes("build_claims")
        async with running_worker(harness):
            await harness.until_delivered("claims")
            await blocked.rollback()
            count = "SELECT count(*) FROM build_claims WHERE runner = 'r1'"
            await harness.until_row(count, is_=200)
            transactions = "SELECT count(DISTINCT xmin::text) FROM build_claims"
            assert await harness.database.fetchval(transactions) <= 20


async def test_queues_of_the_directory_exist_without_a_hello(
    database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """A worker declares the queues of all pools and listed runners; a listed runner can be in no other pool."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        await harness.database.execute('UPDATE template_versions SET run = \'{"pool": "gpu"}\'')
        await harness.database.execute("INSERT INTO runners (name, pool) VALUES ('r1', 'gpu')")
        async with running_worker(harness):
            reply = await harness.ask({"type": "runner.hello", "runner": "r1", "pool": "other"})
            assert "belongs to pool gpu" in reply["error"]["message"]
            assert await harness.ask({"type": "runner.hello", "runner": "r2", "pool": "gpu"}) == {"ok": True}
            await harness.worker._work_queues.declare_missing_once()
            for name in ("gpu", "r1", "r2"):
                assert await harness.queue_counts(f"work.{name}") == (0, 0)
                await harness.channel.queue_delete(f"{harness.prefix}.work.{name}", timeout=30)


async def test_a_queue_that_cannot_be_declared_delays_no_other(
    database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """If somebody declared the queue of one runner with other arguments, those of others are declared all the same."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        await harness.database.execute('UPDATE template_versions SET run = \'{"pool": "last"}\'')
        await harness.database.execute("INSERT INTO runners (name, pool) VALUES ('first', 'last')")
        await harness.channel.declare_queue(f"{harness.prefix}.work.first", durable=True, timeout=30)
        async with running_worker(harness):
            await harness.until_metric(1, "taskherd_drained")
            with pytest.raises(Misconfigured, match=r"work\.first"):
                await harness.worker._work_queues.declare_missing_once()
            for name in ("first", "last"):
                assert await harness.queue_counts(f"work.{name}") == (0, 0)
                await harness.channel.queue_delete(f"{harness.prefix}.work.{name}", timeout=30)


def work_queues_of(harness: WorkerHarness) -> WorkQueues:
    """Return an object that has declared nothing yet, with the connections of the worker."""
    worker = harness.worker
    ensure = partial(worker._topology.ensure, worker._names.claims)
    return WorkQueues(worker._context, worker._connections.consume, worker._connections.declare, ensure)


async def test_work_queues_bring_their_exchange_along(harness: WorkerHarness) -> None:
    """The first worker of an installation declares both at once, in any order, and has nothing to complain about."""
    await harness.until_metric(1, "taskherd_drained")
    await harness.channel.exchange_delete(f"{harness.prefix}.work", timeout=30)
    await work_queues_of(harness).declare_missing_once()
    await harness.channel.get_exchange(f"{harness.prefix}.work", ensure=True)


async def test_work_queues_are_declared_soon_after_a_failure(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure, as while RabbitMQ is away, a worker tries again within seconds."""
    work_queues = work_queues_of(harness)
    failures = [Unavailable("no connection"), Retry("a conflict"), Misconfigured("queue", "has other arguments")]
    declared = asyncio.Event()

    async def declare_missing_once() -> None:
        if failures:
            raise failures.pop()
        declared.set()

    monkeypatch.setattr(work_queues, "declare_missing_once", declare_missing_once)
    running = asyncio.create_task(work_queues.run())
    try:
        async with asyncio.timeout(EVERY / 2):
            await declared.wait()
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert not failures


async def test_an_idle_runner_is_forgotten(harness: WorkerHarness) -> None:
    """After a week without a hello its queue is deleted unless consumed, and its pool's if no one names it."""
    for runner, pool in (("idle", "old"), ("busy", "new")):
        assert await harness.ask({"type": "runner.hello", "runner": runner, "pool": pool}) == {"ok": True}
    queue = await harness.channel.get_queue(f"{harness.prefix}.work.busy", ensure=False)
    received: asyncio.Queue[object] = asyncio.Queue()
    await queue.consume(received.put)
    await harness.database.execute("UPDATE runner_hellos SET hello_at = now() - interval '8 days'")
    work_queues = harness.worker._work_queues
    await work_queues.forget_idle_once(datetime.now(UTC))
    names = await harness.database.fetch("SELECT name FROM runner_hellos WHERE hello_at > now() - interval '1 hour'")
    assert [row["name"] for row in names] == ["busy"]
    assert await harness.database.fetchval("SELECT count(*) FROM runner_hellos") == 1
    for name in ("idle", "old"):
        async with await aio_pika.connect(harness.urls[1], timeout=30) as connection:
            channel = await connection.channel()
            with pytest.raises(ChannelNotFoundEntity):
                await channel.declare_queue(f"{harness.prefix}.work.{name}", passive=True, timeout=30)
    for name in ("busy", "new"):
        await harness.channel.queue_delete(f"{harness.prefix}.work.{name}", timeout=30)
