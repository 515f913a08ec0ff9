"""A worker whose messages a queue rejects, because a policy limits its length, goes on with everything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.exceptions import DeliveryError

from taskherd import retry
from taskherd.broker.topology import TopologyNames, declare_work_queue
from taskherd.dev.services import Services
from tests.harness.worker import TIMEOUT, WorkerHarness, make_report
from tests.worker.conftest import StartWorker

LOST = {"healthy": False, "reason": "agent has lost connection"}
FULL = {"max-length": 1, "overflow": "reject-publish"}


async def fill(harness: WorkerHarness, queue: str) -> None:
    """Publish to a queue until it rejects a message."""
    filler = aio_pika.Message(b"{}", headers={"x-taskherd-reason": "filler"})
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                await harness.channel.default_exchange.publish(filler, queue, timeout=5)
            except DeliveryError:
                return


@asynccontextmanager
async def full(harness: WorkerHarness, services: Services, name: str) -> AsyncIterator[None]:
    """Let a queue reject messages, by a policy, until the end of the block; then it is empty."""
    rabbit, queue = services.rabbit, f"{harness.prefix}.{name}"
    assert rabbit is not None
    policy = ("--apply-to", "queues", queue, f"^{queue}$", json.dumps(FULL))
    await asyncio.to_thread(rabbit.ctl, "set_policy", *policy, within=TIMEOUT)
    try:
        await fill(harness, queue)
        yield
    finally:
        await asyncio.to_thread(rabbit.ctl, "clear_policy", queue, within=TIMEOUT)
        await (await harness.channel.get_queue(queue, ensure=False)).purge(timeout=5)


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
