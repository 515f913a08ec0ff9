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
from tests.chaos.workload import ChaosWorkload
from tests.harness.chaos import ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(1200)]
MAX_LENGTH = 20
"""Maximum length of the reader's queue; the broker drops the oldest messages, each of which holds many events."""

PAGE = 500
RESUME = """
SELECT f.position, f.task_id, f.version, e.document::text AS document
FROM task_feed AS f JOIN task_events AS e ON e.task_id = f.task_id AND e.version = f.version
WHERE f.position > $1 ORDER BY f.position LIMIT $2
"""
MAX_GROWTH = 60 * 1024 * 1024
"""Maximum growth in bytes of the worker's memory while events are not consumed; its buffers are full long before."""


@dataclass(slots=True)
class EventReader:
    """A reader of events with its own bounded queue, which resumes from the history by position."""

    channel: AbstractChannel
    database: asyncpg.Connection
    queue: str
    position: int = 0
    versions: dict[UUID, list[int]] = field(default_factory=dict)
    documents: dict[UUID, str] = field(default_factory=dict)

    async def read_page(self) -> int:
        """Read the next page of the history and return its number of events."""
        rows = await self.database.fetch(RESUME, self.position, PAGE)
        for row in rows:
            task_id = UUID(int=row["task_id"].int)
            self.position = row["position"]
            self.versions.setdefault(task_id, []).append(row["version"])
            self.documents[task_id] = row["document"]
        return len(rows)

    async def follow(self) -> None:
        """Follow the history while it is written, by rising positions."""
        while True:
            if not await self.read_page():
                await asyncio.sleep(0.01)

    async def queue_length(self) -> int:
        """Return the number of messages in its queue."""
        queue = await self.channel.declare_queue(self.queue, passive=True, timeout=10)
        return queue.declaration_result.message_count or 0

    async def consume_queue(self) -> dict[UUID, int]:
        """Consume its queue and return the highest version of each task."""
        queue = await self.channel.get_queue(self.queue, ensure=False)
        highest: dict[UUID, int] = {}
        while (message := await queue.get(no_ack=True, fail=False, timeout=10)) is not None:
            for event in json.loads(message.body):
                task_id = UUID(event["subject"])
                highest[task_id] = max(highest.get(task_id, 0), event["data"]["version"])
        return highest


@asynccontextmanager
async def event_reader(harness: ChaosHarness) -> AsyncIterator[EventReader]:
    """Create a reader whose queue gets all events and is not consumed."""
    database = await asyncpg.connect(harness.ledger.database_url, timeout=5, command_timeout=20)
    try:
        async with await aio_pika.connect(harness.ledger.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            bounded: FieldTable = {"x-max-length": MAX_LENGTH, "x-overflow": "drop-head"}
            queue = await channel.declare_queue(exclusive=True, arguments=bounded)
            await queue.bind(harness.names.events, "#")
            yield EventReader(channel, database, queue.name)
    finally:
        await database.close(timeout=5)


async def send_creates_first(harness: ChaosHarness, work: ChaosWorkload) -> None:
    """Send the creates, and the reports when the tasks exist, so that they lead to events and are not parked."""
    creates = [message for message in work.messages if message.exchange == harness.names.commands]
    await harness.send(creates)
    await until(harness.ledger.rows, lambda rows: len(rows.tasks) == len(creates), 120)
    await harness.send([message for message in work.messages if message.exchange != harness.names.commands], within=300)


@pytest.mark.parametrize(("tasks", "statuses"), [(48, 12), pytest.param(400, 60, marks=FULL_SIZE)])
async def test_a_stopped_reader_delays_nothing_and_misses_nothing(
    harness: ChaosHarness, figures: Figures, tasks: int, statuses: int
) -> None:
    """A reader does not consume its bounded queue: the worker continues, and the reader gets all from the history."""
    work = workload.build(harness.names, Random(tasks), tasks=tasks, statuses=statuses)
    harness.add_to_ledger(work)
    worker = await harness.start(prefetch="120", batch_most="30")
    await worker.until_ready(60)
    before = await worker.metric("process_resident_memory_bytes")
    async with event_reader(harness) as reader:
        await send_creates_first(harness, work)
        await until(harness.ledger.rows, lambda rows: set(work.to_delete) <= rows.tasks.keys(), 120)
        await harness.delete_existing(work)
        await harness.until_settled(within=200)
        assert await reader.queue_length() == MAX_LENGTH
        growth = await worker.metric("process_resident_memory_bytes") - before
        assert growth < MAX_GROWTH
        queued = await reader.consume_queue()
        while await reader.read_page() == PAGE:
            continue
        rows = await harness.ledger.rows()
        assert reader.versions == {task_id: [*range(1, row.version + 1)] for task_id, row in rows.tasks.items()}
        assert all(version <= rows.tasks[task_id].version for task_id, version in queued.items())
        events = len(rows.events)
        assert events > 3 * MAX_LENGTH
    await harness.finish(work, worker)
    note = f"{events:,} events, queue limit {MAX_LENGTH}; the worker's memory grew by {growth / 2**20:.0f} MiB"
    await figures.record_run(harness, "an event subscriber stops consuming", faults=1, note=note)


@pytest.mark.parametrize(("tasks", "statuses"), [(48, 12), pytest.param(400, 60, marks=FULL_SIZE)])
async def test_a_reader_that_follows_the_history_misses_nothing(
    harness: ChaosHarness, figures: Figures, tasks: int, statuses: int
) -> None:
    """Two workers write the history while a reader follows: no change appears at a position that it has passed."""
    work = workload.build(harness.names, Random(tasks + 1), tasks=tasks, statuses=statuses)
    harness.add_to_ledger(work)
    workers = [await harness.start(prefetch="120", batch_most="60") for _ in range(2)]
    async with event_reader(harness) as reader:
        following = asyncio.create_task(reader.follow())
        try:
            await send_creates_first(harness, work)
            await until(harness.ledger.rows, lambda rows: set(work.to_delete) <= rows.tasks.keys(), 120)
            await harness.delete_existing(work)
            await harness.until_settled(within=200)
            rows = await harness.ledger.rows()
            complete = {task_id: [*range(1, row.version + 1)] for task_id, row in rows.tasks.items()}

            async def is_complete() -> bool:
                return following.done() or reader.versions == complete

            await until(is_complete, bool)
            assert not following.done()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        final = {task_id: json.loads(document) for task_id, document in reader.documents.items()}
        documents = {task_id: row.document for task_id, row in rows.tasks.items() if row.deleted_at is None}
        assert documents.items() <= final.items()
    await harness.stop_worker(workers[1])
    await harness.finish(work, workers[0])
    await figures.record_run(
        harness, "a reader follows the history of two workers", faults=1, note=f"{len(rows.events):,} events"
    )
