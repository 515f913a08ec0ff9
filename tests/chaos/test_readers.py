from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel
from pamqp.common import FieldTable

from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.chaos.workload import Workload
from tests.harness.chaos import ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OFTEN = [pytest.mark.chaos, pytest.mark.timeout(1200)]
BOUND = 40
"""Messages that the reader's own queue holds; the oldest give way."""

PAGE = 500
RESUME = """
SELECT f.position, f.task_id, f.version, e.document::text AS document
FROM task_feed AS f JOIN task_events AS e ON e.task_id = f.task_id AND e.version = f.version
WHERE f.position > $1 ORDER BY f.position LIMIT $2
"""
GROWTH = 60 * 1024 * 1024
"""Bytes by which a worker may grow while nobody reads what it says; its buffers are full long before."""


@dataclass(slots=True)
class EventReader:
    """A reader of events, with a bounded queue of its own, that resumes from the history by position."""

    channel: AbstractChannel
    database: asyncpg.Connection
    queue: str
    position: int = 0
    seen: dict[UUID, list[int]] = field(default_factory=dict)
    documents: dict[UUID, str] = field(default_factory=dict)

    async def page(self) -> int:
        """Read on in the history from the last position; how many there were."""
        rows = await self.database.fetch(RESUME, self.position, PAGE)
        for row in rows:
            task_id = UUID(int=row["task_id"].int)
            self.position = row["position"]
            self.seen.setdefault(task_id, []).append(row["version"])
            self.documents[task_id] = row["document"]
        return len(rows)

    async def follow(self) -> None:
        """Read the history again and again while it is written, never going back."""
        while True:
            if not await self.page():
                await asyncio.sleep(0.01)

    async def waiting(self) -> int:
        """How many messages its queue holds."""
        queue = await self.channel.declare_queue(self.queue, passive=True, timeout=10)
        return queue.declaration_result.message_count or 0

    async def kept(self) -> dict[UUID, int]:
        """The highest version of each task among what is left in its queue."""
        queue = await self.channel.get_queue(self.queue, ensure=False)
        highest: dict[UUID, int] = {}
        while (message := await queue.get(no_ack=True, fail=False, timeout=10)) is not None:
            for event in json.loads(message.body):
                task_id = UUID(event["subject"])
                highest[task_id] = max(highest.get(task_id, 0), event["data"]["version"])
        return highest


@asynccontextmanager
async def reading(stage: ChaosHarness) -> AsyncIterator[EventReader]:
    """A reader that is bound to all events, and takes none by itself."""
    database = await asyncpg.connect(stage.ledger.database_url, timeout=5, command_timeout=20)
    try:
        async with await aio_pika.connect(stage.ledger.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            bounded: FieldTable = {"x-max-length": BOUND, "x-overflow": "drop-head"}
            queue = await channel.declare_queue(exclusive=True, arguments=bounded)
            await queue.bind(stage.names.events, "#")
            yield EventReader(channel, database, queue.name)
    finally:
        await database.close(timeout=5)


async def told(stage: ChaosHarness, work: Workload) -> None:
    """Send the creates, and when the tasks exist all the rest, so that most of it is told of and not parked."""
    creates = [one for one in work.messages if one.exchange == stage.names.commands]
    await stage.send(creates)
    await until(stage.ledger.rows, lambda rows: len(rows.tasks) == len(creates), 120)
    await stage.send([one for one in work.messages if one.exchange != stage.names.commands], within=300)


@pytest.mark.parametrize(("tasks", "statuses"), [(48, 12), pytest.param(400, 60, marks=OFTEN)])
async def test_a_reader_that_stands_still_holds_up_nobody_and_misses_nothing(
    stage: ChaosHarness, figures: Figures, tasks: int, statuses: int
) -> None:
    """Nobody takes from a reader's bounded queue: the worker goes on, and the reader has all of it from the history."""
    work = workload.build(stage.names, Random(tasks), tasks=tasks, statuses=statuses)
    stage.enter(work)
    worker = await stage.start(prefetch="120", batch_most="30")
    await worker.ready(60)
    before = await worker.metric("process_resident_memory_bytes")
    async with reading(stage) as reader:
        await told(stage, work)
        await until(stage.ledger.rows, lambda rows: set(work.doomed) <= rows.tasks.keys(), 120)
        await stage.delete_existing(work)
        await stage.settled(within=200)
        assert await reader.waiting() == BOUND
        grown = await worker.metric("process_resident_memory_bytes") - before
        assert grown < GROWTH
        left = await reader.kept()
        while await reader.page() == PAGE:
            continue
        rows = await stage.ledger.rows()
        assert reader.seen == {task_id: [*range(1, row.version + 1)] for task_id, row in rows.tasks.items()}
        assert all(version <= rows.tasks[task_id].version for task_id, version in left.items())
        events = len(rows.events)
        assert events > 3 * BOUND
    await stage.finished(work, worker)
    note = f"{events:,} events, {BOUND} messages kept; the worker grew by {grown / 2**20:.0f} MiB"
    await figures.of(stage, "a reader of events stands still", faults=1, note=note)


@pytest.mark.parametrize(("tasks", "statuses"), [(48, 12), pytest.param(400, 60, marks=OFTEN)])
async def test_a_reader_that_follows_the_history_is_never_overtaken(
    stage: ChaosHarness, figures: Figures, tasks: int, statuses: int
) -> None:
    """Two workers write the history while a reader follows by position: nothing appears behind what it has read."""
    work = workload.build(stage.names, Random(tasks + 1), tasks=tasks, statuses=statuses)
    stage.enter(work)
    workers = [await stage.start(prefetch="120", batch_most="60") for _ in range(2)]
    async with reading(stage) as reader:
        following = asyncio.create_task(reader.follow())
        try:
            await told(stage, work)
            await until(stage.ledger.rows, lambda rows: set(work.doomed) <= rows.tasks.keys(), 120)
            await stage.delete_existing(work)
            await stage.settled(within=200)
            rows = await stage.ledger.rows()
            whole = {task_id: [*range(1, row.version + 1)] for task_id, row in rows.tasks.items()}

            async def read() -> bool:
                return following.done() or reader.seen == whole

            await until(read, bool)
            assert not following.done()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        final = {task_id: json.loads(document) for task_id, document in reader.documents.items()}
        living = {task_id: row.document for task_id, row in rows.tasks.items() if row.deleted_at is None}
        assert living.items() <= final.items()
    await stage.stop_worker(workers[1])
    await stage.finished(work, workers[0])
    await figures.of(
        stage, "a reader follows the history of two workers", faults=1, note=f"{len(rows.events):,} events"
    )
