"""A worker whose messages a queue rejects, because a policy limits its length, goes on with everything else."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest
from aio_pika.exceptions import DeliveryError

from taskherd import retry
from taskherd.broker.topology import TopologyNames, declare_work_queue
from taskherd.dev.services import Services
from taskherd.worker import dead_letter_sender
from taskherd.worker.concurrency import MAX_CONCURRENT_BATCHES
from tests.harness.worker import TIMEOUT, WorkerHarness, make_command, make_report
from tests.worker.conftest import StartWorker

pytestmark = [pytest.mark.timeout(240)]  # rabbitmqctl starts slowly on a busy machine

LOST = {"healthy": False, "reason": "agent has lost connection"}
FILLER = "filler"
FULL = {"max-length": 1, "overflow": "reject-publish"}


async def fill(harness: WorkerHarness, queue: str) -> None:
    """Publish to a queue until it rejects a message."""
    filler = aio_pika.Message(b"{}", headers={"x-taskherd-reason": FILLER})
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                await harness.channel.default_exchange.publish(filler, queue, timeout=30)
            except DeliveryError:
                return


@asynccontextmanager
async def full(harness: WorkerHarness, services: Services, name: str) -> AsyncIterator[None]:
    """Let a queue reject messages, by a policy, until the end of the block."""
    rabbit, queue = services.rabbit, f"{harness.prefix}.{name}"
    assert rabbit is not None
    policy = ("--apply-to", "queues", queue, f"^{queue}$", json.dumps(FULL))
    await asyncio.to_thread(rabbit.ctl, "set_policy", *policy)
    try:
        await fill(harness, queue)
        yield
    finally:
        await asyncio.to_thread(rabbit.ctl, "clear_policy", queue)


async def until_unacked(services: Services, queue: str, at_least: int) -> None:
    """Wait until the consumers of a queue have that many messages that they did not acknowledge."""
    rabbit = services.rabbit
    assert rabbit is not None
    columns = ("--no-table-headers", "name", "messages_unacknowledged")
    async with asyncio.timeout(2 * TIMEOUT):
        while True:
            listed = await asyncio.to_thread(rabbit.ctl, "list_queues", *columns)
            if int(dict(line.split() for line in listed.splitlines())[queue]) >= at_least:
                return


async def consume_dead_letters(harness: WorkerHarness) -> None:
    """Consume the dead letters again."""
    dead = await harness.channel.get_queue(f"{harness.prefix}.dead", ensure=False)
    await dead.consume(harness._on_dead_letter)


def reasons(harness: WorkerHarness) -> list[str]:
    """Return the reasons of the worker's dead letters, sorted."""
    return sorted(reason for reason in harness.reasons() if reason != FILLER)


async def test_a_work_queue_that_rejects_requests_delays_nothing_else(
    start_worker: StartWorker, services: Services
) -> None:
    """Agents are still found lost, events that nobody confirmed are published again, and the build times out."""
    after = retry.OUTAGE.maximum + 2  # seconds, in which an interruption that repeats would begin again
    hasty = {"request_backoff_first": 0.1, "request_backoff_most": 0.2}
    async with start_worker(**hasty, agent_lost_after=after, request_ttl=2 * after) as harness:
        underlay = await harness.channel.get_underlay_channel()
        await declare_work_queue(underlay, TopologyNames(harness.prefix), "default")
        silent = await harness.make_active()
        async with full(harness, services, "work.default"):
            events = await harness.channel.declare_queue(
                exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
            )
            await fill(harness, events.name)
            await harness.report(make_report("agent.heartbeat", silent))
            await events.bind(f"{harness.prefix}.events", "#")
            started = await harness.create()
            await harness.until_row("SELECT count(*) > 0 FROM outbox WHERE task_id = $1", started)
            await events.delete(if_unused=False, if_empty=False)
            await harness.until_row("SELECT count(*) FROM outbox WHERE task_id = $1", started, is_=0)
            assert await harness.database.fetchval("SELECT count(*) FROM work_requests WHERE task_id = $1", started)
            await harness.until(lambda: harness.document(silent)["workspace_agent_health"] == LOST)
            await harness.until(lambda: harness.document(started).get("status") == "error")
            assert harness.state(started)["message"] == "No runner picked up the workspace start in time."
        assert harness.worker.probe.drained_since is not None


async def test_a_dead_letter_queue_that_rejects_them_stops_nothing(
    start_worker: StartWorker, services: Services
) -> None:
    """Valid reports, commands and claims go on. An invalid one waits, unacked, and becomes one dead letter later."""
    async with start_worker() as harness:
        await harness.stop_dead_letters()
        async with full(harness, services, "dead"):
            for exchange in ("reports", "claims"):
                target = await harness.channel.get_exchange(f"{harness.prefix}.{exchange}", ensure=False)
                for _ in range(MAX_CONCURRENT_BATCHES + 1):
                    await target.publish(aio_pika.Message(f"not a message of {exchange}".encode()), "any", timeout=30)
                    await harness.until_delivered(exchange)
            refused = make_command("task.pause", uuid.uuid4())
            await harness.post_command(refused)
            assert not (await harness.send(b"not a command"))["ok"]
            task_id = await harness.make_active()
            await harness.report(make_report("app.status", task_id, state="working", message="Compiling"))
            await harness.until(lambda: harness.state(task_id).get("message") == "Compiling")
            claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "r1"}
            assert "granted" in await harness.ask(claim)
            assert (await harness.command("task.pause", task_id))["ok"]
            await harness.until_metric(1, "taskherd_drained")
            assert harness.metric("taskherd_dead_lettered_total") == 0
            await until_unacked(services, f"{harness.prefix}.reports", MAX_CONCURRENT_BATCHES + 1)
        await consume_dead_letters(harness)
        expected = sorted(["not_json"] * (2 * (MAX_CONCURRENT_BATCHES + 1) + 1) + ["command_refused"])
        await harness.until(lambda: reasons(harness) == expected)
        await harness.until_metric(len(expected), "taskherd_dead_lettered_total")
        for queue in ("reports", "claims", "commands"):
            await harness.until_delivered(queue)
    assert reasons(harness) == expected


async def test_a_consumer_waits_while_too_many_dead_letters_wait(
    start_worker: StartWorker, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than the maximum wait in memory; when the queue takes them again, the consumer goes on."""
    monkeypatch.setattr(dead_letter_sender, "MAX_WAITING", 1)
    async with start_worker(probe_timeout=1) as harness:
        await harness.until_metric(1, "taskherd_drained")
        await harness.stop_dead_letters()
        async with full(harness, services, "dead"):
            count = MAX_CONCURRENT_BATCHES + 2
            for _ in range(count):
                await harness.report(raw=b"not JSON")
                await harness.until_delivered("reports")
            await harness.until_metric(0, "taskherd_drained")
            assert len(harness.worker._report_consumer._dead_letters._waiting) == 1
        await consume_dead_letters(harness)
        await harness.until(lambda: reasons(harness) == ["not_json"] * count)
        await harness.until_metric(1, "taskherd_drained")
