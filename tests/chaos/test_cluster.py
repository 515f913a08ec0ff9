"""A hung node of RabbitMQ's cluster: what is on the other nodes goes on within seconds."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
import pytest
from aio_pika.exceptions import AMQPError

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.worker.app import Worker
from tests.chaos.figures import Figures
from tests.harness.api import USERS, running_api, token_for
from tests.harness.cluster import Cluster, load_balancer, running_cluster
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import VERSION, WorkerHarness, external_harness, make_report, running_worker

HANGS = 70.0
"""Seconds for which the node hangs; RabbitMQ declares it down after 45 to 75 s (``net_ticktime``)."""
ELECTED_WITHIN = 20.0
"""Seconds in which the queues whose leader was on the hung node must have another one, on a busy machine."""
GOES_ON_WITHIN = 10.0
"""Maximum number of seconds that anything may take from then on."""
RECONNECTED_WITHIN = 60.0
"""Seconds in which processes on the hung node must be at work on another one."""
PATIENCE = 90.0


class Probes:
    """Measures how long a report, a command and an event take, again and again."""

    def __init__(self, harness: WorkerHarness, client: httpx.AsyncClient, stream: SseClient) -> None:
        self._harness = harness
        self._client = client
        self._stream = stream
        self._started_at = time.monotonic()
        self.taken: dict[str, list[tuple[float, float]]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_at

    @property
    def longest(self) -> dict[str, float]:
        """The longest time that each action took, in seconds."""
        return {what: max(seconds for _, seconds in taken) for what, taken in self.taken.items()}

    async def once(self) -> None:
        """Create a task over HTTP and report on it, and wait for the events of both."""
        task = await self._measure("command", self._create)
        await self._measure("stream", lambda: self._is_streamed(task))
        report = make_report("app.status", uuid.UUID(task), state="working", message=f"Report {uuid.uuid4()}")

        async def is_told() -> None:
            await self._report(report)
            async with asyncio.timeout(PATIENCE):
                while self._harness.state(uuid.UUID(task)).get("message") != report["message"]:
                    self._harness.received.clear()
                    await self._harness.received.wait()

        await self._measure("report to event", is_told)

    async def _report(self, report: dict[str, Any]) -> None:
        """Publish a report until the broker confirms it; the same report twice changes nothing."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await self._harness.report(report)
                except (TimeoutError, AMQPError):
                    continue
                return

    async def _create(self) -> str:
        body = {"template_version_id": str(VERSION), "input": f"Go on, number {uuid.uuid4()}"}
        deadline = time.monotonic() + PATIENCE
        while True:
            response = await self._client.post("/tasks/me", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
            if response.status_code == 201 or time.monotonic() > deadline:
                return str(response.raise_for_status().json()["id"])

    async def _is_streamed(self, task: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while task not in (event.task["id"] for event in self._stream.events):
                self._stream.received.clear()
                await self._stream.received.wait()

    async def _measure(self, what: str, action: Callable[[], Awaitable[str | None]]) -> str:
        began, at = time.monotonic(), self.elapsed
        result = await action()
        self.taken.setdefault(what, []).append((at, time.monotonic() - began))
        return result or ""


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_a_hung_node_holds_up_nothing_on_the_others(
    database_url: str, amqp_prefix: str, tmp_path: Path, figures: Figures
) -> None:
    """While a node hangs that led all queues, a worker and an API on the others go on; those on it move over."""
    loop = asyncio.get_running_loop()
    with running_cluster(tmp_path) as cluster:
        async with AsyncExitStack() as stack:
            await _declare_on(cluster, 2, TopologyNames(amqp_prefix))
            harness = await stack.enter_async_context(external_harness(database_url, cluster.url(1), amqp_prefix))
            await harness.database.execute(USERS)
            balancer, moving_url = await stack.enter_async_context(load_balancer(cluster.url(2)))
            harness.urls = (database_url, cluster.url(0))
            await stack.enter_async_context(running_worker(harness))
            api = await stack.enter_async_context(running_api(database_url, cluster.url(0), amqp_prefix))
            moving_api = await stack.enter_async_context(running_api(database_url, moving_url, amqp_prefix))
            headers = {"Coder-Session-Token": await token_for(database_url, "alice")}
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v2", headers=headers, timeout=PATIENCE)
                )
                for port in (api.port, moving_api.port)
            ]
            stream = await stack.enter_async_context(sse_client(clients[0], "/tasks/watch"))
            await stream.ready()
            before = Probes(harness, clients[0], stream)
            for _ in range(5):
                await before.once()
            cluster.nodes[2].freeze()
            balancer.target = urlsplit(cluster.url(1)).port or 0
            during, moved = Probes(harness, clients[0], stream), Probes(harness, clients[1], stream)
            moving = loop.create_task(moved.once())
            harness.urls = (database_url, cluster.url(1))
            late_worker = await stack.enter_async_context(running_worker(harness))
            consuming = loop.create_task(_consuming(late_worker))
            while during.elapsed < HANGS:
                await during.once()
                await asyncio.sleep(0.5)
            cluster.nodes[2].unfreeze()
            await moving
            consuming_after = await consuming
    late = {
        what: [(at, seconds) for at, seconds in taken if at + seconds > ELECTED_WITHIN and seconds > GOES_ON_WITHIN]
        for what, taken in during.taken.items()
    }
    assert not any(late.values()), late
    assert consuming_after < ELECTED_WITHIN
    assert moved.longest["command"] < RECONNECTED_WITHIN
    median = {what: statistics.median(seconds for _, seconds in taken) for what, taken in during.taken.items()}
    note = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in median.items())
    note += f" (medians); new leaders within {during.longest['command']:.0f} s, a new worker {consuming_after:.0f} s"
    sent = sum(len(probes.taken["command"]) for probes in (before, during, moved))
    told = [(event["subject"], event["data"]["version"]) for event in harness.events]
    repeated = len(told) - len(set(told))
    row = "one of three RabbitMQ nodes hangs for 70 s"
    figures.record(row, faults=1, sent=2 * sent, lost=0, duplicated=repeated, note=note)


async def _declare_on(cluster: Cluster, index: int, names: TopologyNames) -> None:
    """Declare all on one node, which then leads all queues."""
    async with await aio_pika.connect(cluster.url(index), timeout=10) as connection:
        channel = await (await connection.channel()).get_underlay_channel()
        await topology.declare(channel, names)
        await topology.declare_work_queue(channel, names, "default")


async def _consuming(worker: Worker) -> float:
    """Wait until a worker consumes, and return the number of seconds that it took."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while not worker._reports.consuming:  # noqa: ASYNC110 - a worker sends no notification
            await asyncio.sleep(0.1)
    return time.monotonic() - began
