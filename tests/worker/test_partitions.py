"""Reports spread over partitions: shared by all workers, in order for each task, whoever comes and goes."""

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
import uvloop
from taskherd.worker.app import Worker
from taskherd.observability import logs
from taskherd.settings import load
settings = load()
logs.configure("info", "json", secrets=settings.secrets)
uvloop.run(Worker(settings, sys.argv[1]).run())
"""


class Crew:
    """Worker processes under names of the test's choice."""

    def __init__(self, own: WorkerHarness, folder: Path) -> None:
        self.own = own
        self.folder = folder
        self.workers: dict[str, WorkerProcess] = {}

    async def start(self, name: str) -> None:
        """Start a worker and wait until it is ready."""
        database_url, amqp_url = self.own.urls
        given = {
            "TASKHERD_DATABASE_URL": database_url,
            "TASKHERD_AMQP_URL": amqp_url,
            "TASKHERD_AMQP_PREFIX": self.own.prefix,
            "TASKHERD_SECRET_KEY": SECRET,
            "TASKHERD_OPS_PORT": "0",
            "TASKHERD_REPORT_PARTITIONS": str(PARTITIONS),
        }
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LAUNCH, name, env={**os.environ, **given}, stdout=output, stderr=output
            )
        self.workers[name] = WorkerProcess(process, log)
        await self.workers[name].ready(30)

    async def kill(self, name: str) -> None:
        """Kill -9."""
        await self.workers.pop(name).kill()

    async def taken(self) -> Counter[str]:
        """How many reports each worker has taken."""
        metrics = [worker.metric("taskherd_reports_total") for worker in self.workers.values()]
        counts = await asyncio.gather(*metrics)
        return Counter(dict(zip(self.workers, map(int, counts), strict=True)))

    async def holders(self, task_id: uuid.UUID) -> Counter[str]:
        """How many partitions each worker holds: a report is put into each, and who took it is seen."""
        before = await self.taken()
        for index in range(PARTITIONS):
            body = json.dumps({"type": "agent.heartbeat", "task_id": str(task_id), "build_number": 1}).encode()
            queue = TopologyNames(self.own.prefix).partition(index)
            await self.own.channel.default_exchange.publish(aio_pika.Message(body), queue, timeout=5)
        after = await until(self.taken, lambda counts: (counts - before).total() >= PARTITIONS)
        return after - before

    async def shared_by(self, task_id: uuid.UUID) -> Counter[str]:
        """Wait until the partitions are held as the priorities say, and return how many each worker holds."""
        expected = Counter(winners(self.own.prefix, tuple(self.workers)))
        return await until(lambda: self.holders(task_id), lambda held: held == expected)


def winners(prefix: str, workers: Sequence[str]) -> list[str]:
    """Who should hold each partition."""
    queues = [TopologyNames(prefix).partition(index) for index in range(PARTITIONS)]
    return [max(workers, key=lambda worker: topology.priority(worker, queue)) for queue in queues]


def four_names(prefix: str) -> Sequence[str]:
    """Names under which the first three workers, and all but the first, hold two partitions or more each."""
    for four in combinations([f"w{number}" for number in range(12)], 4):
        counts = [Counter(winners(prefix, three)) for three in (four[:3], four[1:])]
        if all(len(count) == 3 and min(count.values()) > 1 for count in counts):
            return four
    raise AssertionError


@pytest.fixture
async def crew(alone: WorkerHarness, tmp_path: Path) -> AsyncIterator[Crew]:
    """Nobody yet; whoever is started does not outlive the test, nor do the partitions."""
    own = Crew(alone, tmp_path)
    yield own
    for name in list(own.workers):
        await own.kill(name)
    names = TopologyNames(alone.prefix)
    async with await aiormq.connect(alone.urls[1]) as connection:
        channel = await connection.channel()
        for index in range(PARTITIONS):
            await channel.queue_delete(names.partition(index))
        await channel.exchange_delete(names.report_hash)


def entry(task_id: uuid.UUID, number: int) -> bytes:
    """A report with one entry of a task's log."""
    said = {"id": number, "type": "output", "content": f"line {number}", "time": "2026-01-01T00:00:00Z"}
    report = {"type": "task.log", "task_id": str(task_id), "build_number": 1, "seq": number, "entries": [said]}
    return json.dumps(report).encode()


async def test_partitions_are_shared_and_lose_neither_order_nor_reports(crew: Crew) -> None:
    """Three workers share twelve partitions; one is killed and one comes, under load.

    Each task's log is whole and in the order in which it was sent, and every worker that is left holds as many
    partitions as its priorities say.
    """
    names = four_names(crew.own.prefix)
    await asyncio.gather(*(crew.start(name) for name in names[:3]))
    tasks = [await crew.own.create() for _ in range(TASKS)]
    held = await crew.shared_by(tasks[0])
    assert set(held) == set(names[:3])

    reports = await crew.own.channel.get_exchange(TopologyNames(crew.own.prefix).reports, ensure=False)
    joining = None
    for number in range(ENTRIES):
        if number == ENTRIES // 3:
            await crew.kill(names[0])
        if number == ENTRIES // 2:
            joining = asyncio.create_task(crew.start(names[3]))
        sends = [reports.publish(aio_pika.Message(entry(task, number)), str(task), timeout=10) for task in tasks]
        await asyncio.gather(*sends)
    assert joining is not None
    await joining

    count = "SELECT count(*) FROM task_logs"
    await until(lambda: crew.own.database.fetchval(count), lambda stored: stored == TASKS * ENTRIES)
    for task in tasks:
        rows = await crew.own.database.fetch(
            "SELECT log_id, entry_id FROM task_logs WHERE task_id = $1 ORDER BY log_id", task
        )
        assert [(row["log_id"], row["entry_id"]) for row in rows] == [(number, number) for number in range(ENTRIES)]
    held = await crew.shared_by(tasks[0])
    assert set(held) == set(names[1:])
    assert held.total() == PARTITIONS
    assert crew.own.reasons() == []
