"""Partitions of reports: shared by all workers and in order for each task, while workers start and die."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import combinations
from pathlib import Path

import aio_pika
import aiormq
import pytest

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from tests.harness.chaos import WorkerProcess, until
from tests.harness.worker import SECRET, WorkerHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PARTITIONS = 12
TASKS = 24
ENTRIES = 90
LAUNCH = """
import sys
from taskherd.worker.app import Worker, run
from taskherd.observability import logs
from taskherd.settings import load
settings = load()
logs.configure("info", "json", secrets=settings.secrets)
run(Worker(settings, sys.argv[1]))
"""


class WorkerGroup:
    """Worker processes with names that the test chooses."""

    def __init__(self, harness: WorkerHarness, folder: Path) -> None:
        self.harness = harness
        self.folder = folder
        self.workers: dict[str, WorkerProcess] = {}

    async def start(self, name: str) -> None:
        """Start a worker and wait until it is ready."""
        database_url, amqp_url = self.harness.urls
        environment = {
            "TASKHERD_DATABASE_URL": database_url,
            "TASKHERD_AMQP_URL": amqp_url,
            "TASKHERD_AMQP_PREFIX": self.harness.prefix,
            "TASKHERD_SECRET_KEY": SECRET,
            "TASKHERD_OPS_PORT": "0",
            "TASKHERD_REPORT_PARTITIONS": str(PARTITIONS),
        }
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LAUNCH, name, env={**os.environ, **environment}, stdout=output, stderr=output
            )
        self.workers[name] = WorkerProcess(process, log)
        await self.workers[name].until_ready(30)

    async def kill(self, name: str) -> None:
        """Kill a worker with SIGKILL."""
        await self.workers.pop(name).kill()

    async def processed(self) -> Counter[str]:
        """Return the number of reports that each worker has processed."""
        metrics = [worker.metric("taskherd_reports_total") for worker in self.workers.values()]
        counts = await asyncio.gather(*metrics)
        return Counter(dict(zip(self.workers, map(int, counts), strict=True)))

    async def partition_counts(self, task_id: uuid.UUID) -> Counter[str]:
        """Count the partitions of each worker: publish a report to each partition and see which worker processes it."""
        before = await self.processed()
        for index in range(PARTITIONS):
            body = json.dumps({"type": "agent.heartbeat", "task_id": str(task_id), "build_number": 1}).encode()
            queue = TopologyNames(self.harness.prefix).partition(index)
            await self.harness.channel.default_exchange.publish(aio_pika.Message(body), queue, timeout=30)
        after = await until(self.processed, lambda counts: (counts - before).total() >= PARTITIONS)
        return after - before

    async def until_assigned(self, task_id: uuid.UUID) -> Counter[str]:
        """Wait until the partitions are assigned by priority, and return the number of partitions of each worker."""
        expected = Counter(winners(self.harness.prefix, tuple(self.workers)))
        return await until(lambda: self.partition_counts(task_id), lambda counts: counts == expected)


def winners(prefix: str, workers: Sequence[str]) -> list[str]:
    """Return the worker that should consume each partition."""
    queues = [TopologyNames(prefix).partition(index) for index in range(PARTITIONS)]
    return [max(workers, key=lambda worker: topology.consumer_priority(worker, queue)) for queue in queues]


def four_names(prefix: str) -> Sequence[str]:
    """Return four names such that both the first three and the last three workers get two partitions or more each."""
    for four in combinations([f"w{number}" for number in range(12)], 4):
        counts = [Counter(winners(prefix, three)) for three in (four[:3], four[1:])]
        if all(len(count) == 3 and min(count.values()) > 1 for count in counts):
            return four
    raise AssertionError


@pytest.fixture
async def workers(external: WorkerHarness, tmp_path: Path) -> AsyncIterator[WorkerGroup]:
    """Yield an empty group; its workers and partitions are removed after the test."""
    group = WorkerGroup(external, tmp_path)
    yield group
    for name in list(group.workers):
        await group.kill(name)
    names = TopologyNames(external.prefix)
    async with await aiormq.connect(external.urls[1]) as connection:
        channel = await connection.channel()
        for index in range(PARTITIONS):
            await channel.queue_delete(names.partition(index))
        await channel.exchange_delete(names.report_hash)


def log_report(task_id: uuid.UUID, number: int) -> bytes:
    """Return a report with one entry of a task's log."""
    entry = {"id": number, "type": "output", "content": f"line {number}", "time": "2026-01-01T00:00:00Z"}
    report = {"type": "task.log", "task_id": str(task_id), "build_number": 1, "seq": number, "entries": [entry]}
    return json.dumps(report).encode()


async def test_partitions_are_shared_and_lose_neither_order_nor_reports(workers: WorkerGroup) -> None:
    """Three workers share twelve partitions; under load, one is killed and another one joins.

    Each task's log is complete and in the order sent, and the remaining workers consume the partitions that their
    priorities assign.
    """
    names = four_names(workers.harness.prefix)
    await asyncio.gather(*(workers.start(name) for name in names[:3]))
    tasks = [await workers.harness.create() for _ in range(TASKS)]
    counts = await workers.until_assigned(tasks[0])
    assert set(counts) == set(names[:3])

    reports = await workers.harness.channel.get_exchange(TopologyNames(workers.harness.prefix).reports, ensure=False)
    joining = None
    for number in range(ENTRIES):
        if number == ENTRIES // 3:
            await workers.kill(names[0])
        if number == ENTRIES // 2:
            joining = asyncio.create_task(workers.start(names[3]))
        sends = [reports.publish(aio_pika.Message(log_report(task, number)), str(task), timeout=30) for task in tasks]
        await asyncio.gather(*sends)
    assert joining is not None
    await joining

    count_logs = "SELECT count(*) FROM task_logs"
    await until(lambda: workers.harness.database.fetchval(count_logs), lambda stored: stored == TASKS * ENTRIES)
    for task in tasks:
        rows = await workers.harness.database.fetch(
            "SELECT log_id, entry_id FROM task_logs WHERE task_id = $1 ORDER BY log_id", task
        )
        assert [(row["log_id"], row["entry_id"]) for row in rows] == [(number, number) for number in range(ENTRIES)]
    counts = await workers.until_assigned(tasks[0])
    assert set(counts) == set(names[1:])
    assert counts.total() == PARTITIONS
    assert workers.harness.reasons() == []
