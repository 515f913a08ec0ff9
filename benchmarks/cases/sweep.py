"""Sweeps of ten million leases, and probes of 256 partitions: what must not grow with an installation."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from benchmarks.harness.services import BenchmarkServices, connected, with_database
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.direct_replies import publisher_with_replies
from taskherd.broker.publisher import Publisher
from taskherd.broker.reply_queues import DIRECT
from taskherd.broker.subscription import Source
from taskherd.broker.unconfirmed import UnconfirmedPublisher
from taskherd.clock import Clock
from taskherd.domain.lease import HeartbeatSummary
from taskherd.observability.metrics import Metrics
from taskherd.store import leases
from taskherd.store.engine import open_engine, transaction
from taskherd.worker import probe as probes
from taskherd.worker.lease_scan import RANGE_BLOCKS, LeaseScan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg
    from aiormq.abc import AbstractChannel
    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.harness.run import Run

LEASES = 10_000_000
QUICK_LEASES = 1_000_000
NAME = "bench_sweep"
BATCHES = 20
"""Batches of heartbeats, with and without an index on their times."""
BATCH = 1_000
PARTITIONS = 256
ROUNDS = 5

_FILL = """
INSERT INTO leases (task_id, build_number, agent_id, seq, observed_at, last_heartbeat_at)
SELECT md5('lease' || g)::uuid, 1, md5('agent' || g)::uuid, 1, now(),
       now() - CASE WHEN g % 10000 = 0 THEN interval '3 hours' WHEN 2 * g <= $1::bigint THEN interval '1 hour'
                    ELSE interval '0' END
FROM generate_series(1, $1::bigint) AS g
"""
"""One in 10,000 is silent for three hours; half, in one block like agents started together, for one hour."""

FEW_SILENT, HALF_SILENT = timedelta(hours=2), timedelta(minutes=30)
SAMPLES = 50
"""Number of sweeps while half of the agents are silent."""

_COUNT = "SELECT count(*), count(*) FILTER (WHERE last_heartbeat_at < $1) FROM leases"


async def measure(run: Run) -> str:
    """Return the figures, one to a line."""
    count = QUICK_LEASES if run.options.quick else LEASES
    await run.services.copy(await run.services.template(1_000), NAME)
    url = with_database(run.services.admin_url, NAME)
    try:
        async with connected(url) as admin:
            await _fill(admin, count)
        await _restart(run.services)
        engine = open_engine(url, size=1, application_name="bench", command_timeout=600)
        try:
            lines = await _sweeps(engine, count)
            await _restart(run.services)
            async with connected(url) as admin:
                lines += await _counts(admin)
                lines += [*await _explain(admin), *await _heartbeats(engine, admin, count)]
        finally:
            await engine.dispose()
    finally:
        await run.services.drop(NAME)
    lines += await _probes(run.services)
    for line in lines:
        run.log(line)
    return "\n".join(lines)


async def _fill(admin: asyncpg.Connection, count: int) -> None:
    await admin.execute("TRUNCATE leases")
    await admin.execute("ALTER TABLE leases DROP CONSTRAINT leases_pkey")
    await admin.execute(_FILL, count, timeout=1200)
    await admin.execute("ALTER TABLE leases ADD PRIMARY KEY (task_id)", timeout=1200)
    await admin.execute("VACUUM (ANALYZE, FREEZE) leases", timeout=1200)
    await admin.execute("CHECKPOINT", timeout=600)


async def _restart(services: BenchmarkServices) -> None:
    """Empty the server's own buffers, if the benchmark started it; the operating system keeps its own."""
    if services.node is not None:
        await asyncio.to_thread(services.node.restart)


async def _sweeps(engine: AsyncEngine, count: int) -> list[str]:
    """Read all leases, sweep by sweep, until the position is back at the start; then see half of them silent."""
    scan = LeaseScan()
    seconds, shares, read = [], [], 0
    while read < count:
        began = time.monotonic()
        sample = await scan.read(engine, datetime.now(UTC), FEW_SILENT)
        seconds.append(time.monotonic() - began)
        read += sample.connected
        scan.continue_at(sample.ranges[-1].next_position)
    for _ in range(SAMPLES):
        sample = await scan.read(engine, datetime.now(UTC), HALF_SILENT)
        shares.append(100 * sample.lost / sample.connected)
        scan.continue_at(sample.ranges[-1].next_position)
    return [
        f"- {count:,} leases: {len(seconds)} sweeps read all of them in {sum(seconds):.1f} s",
        f"- the slowest of these sweeps took {max(seconds):.2f} s",
        f"- half of the agents, in one block, are silent: sweeps saw {min(shares):.1f} to {max(shares):.1f} %",
    ]


async def _counts(admin: asyncpg.Connection) -> list[str]:
    """Count all leases in one statement, as sweeps did before, with empty and with filled buffers."""
    lines = []
    await admin.execute("SET max_parallel_workers_per_gather = 0")
    for title in ("empty", "filled"):
        began = time.monotonic()
        await admin.fetchrow(_COUNT, datetime.now(UTC) - timedelta(minutes=30), timeout=600)
        lines.append(f"- one statement over all leases, {title} buffers: {time.monotonic() - began:.2f} s")
    return lines


async def _explain(admin: asyncpg.Connection) -> list[str]:
    """Return the plan of a statement of 256 ranges."""
    now = datetime.now(UTC)
    statement = leases.SCAN.text
    for number, name in enumerate(("starts", "blocks", "before", "until"), start=1):
        statement = statement.replace(f":{name}", f"${number}")
    statement = statement.replace("r.start + $2", "r.start + $2::bigint")
    rows = await admin.fetch(
        f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {statement}",
        [RANGE_BLOCKS * 40 * number for number in range(256)],
        RANGE_BLOCKS,
        now - timedelta(minutes=30),
        now + timedelta(minutes=1),
    )
    return ["- the plan of one statement:", "", "```", *(row[0] for row in rows), "```", ""]


async def _heartbeats(engine: AsyncEngine, admin: asyncpg.Connection, count: int) -> list[str]:
    """Renew leases without and with an index on the heartbeats' times, which would make silent ones a lookup."""
    lines = []
    for title in ("without", "with"):
        if title == "with":
            await admin.execute("CREATE INDEX leases_heartbeat_idx ON leases (last_heartbeat_at)", timeout=1200)
        await admin.execute("CHECKPOINT", timeout=600)
        before = await admin.fetchval("SELECT pg_current_wal_lsn()")
        seconds = []
        for batch in range(BATCHES):
            summaries = await _random_heartbeats(admin, count, batch)
            began = time.monotonic()
            async with transaction(engine) as connection:
                assert len(await leases.renew(connection, summaries)) == len(summaries)
            seconds.append(time.monotonic() - began)
        wal = await admin.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", before)
        lines.append(
            f"- renewing a lease {title} an index on its time: {sum(seconds) / BATCHES / BATCH * 1e6:.0f} µs,"
            f" {int(wal) / BATCHES / BATCH / 1024:.1f} KiB of WAL"
        )
    return lines


async def _random_heartbeats(admin: asyncpg.Connection, count: int, batch: int) -> list[HeartbeatSummary]:
    numbers = random.Random(batch).sample(range(1, count + 1), BATCH)
    rows = await admin.fetch(
        "SELECT md5('lease' || g)::uuid AS task, md5('agent' || g)::uuid AS agent FROM unnest($1::int[]) AS g"
        " ORDER BY 1",
        numbers,
    )
    now = datetime.now(UTC)
    return [
        HeartbeatSummary(UUID(int=row["task"].int), 1, UUID(int=row["agent"].int), time.time_ns() // 1_000, now, now)
        for row in rows
    ]


async def _probes(services: BenchmarkServices) -> list[str]:
    """Probe 256 quorum queues, all at once and one after the other."""
    lines = []
    async with _partitions(services) as (probe, publisher, queues):
        together, apart = [], []
        for _ in range(ROUNDS):
            began = time.monotonic()
            assert await probe.probe_once(queues, 60)
            together.append(time.monotonic() - began)
            began = time.monotonic()
            for queue in queues:
                await publisher.publish("", queue, probes.BODY, reply_to=DIRECT, correlation_id="other")
            apart.append(time.monotonic() - began)
        for title, seconds in (("at once", together), ("one after the other, without waiting for replies", apart)):
            lines.append(f"- probes of {PARTITIONS} quorum queues, {title}: {sorted(seconds)[ROUNDS // 2]:.2f} s")
    return lines


@asynccontextmanager
async def _partitions(services: BenchmarkServices) -> AsyncIterator[tuple[probes.Probe, Publisher, list[str]]]:
    publishing = SupervisedConnection(services.amqp_url, "bench probes")
    consuming = SupervisedConnection(services.amqp_url, "bench partitions")
    queues = [f"bench.partition.{number}" for number in range(PARTITIONS)]

    async def declare(channel: AbstractChannel) -> Sequence[Source]:
        for queue in queues:
            await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        return [Source(queue) for queue in queues]

    async def ignore() -> None:
        """Ignore a probe that is missing."""

    consumer = Consumer(consuming, declare, prefetch=PARTITIONS * 4)
    publisher = publisher_with_replies(Publisher(publishing), lambda _: None)
    probe = probes.Probe(Publisher(publishing), UnconfirmedPublisher(publishing), Metrics(), Clock().now, ignore)

    async def answer() -> None:
        while deliveries := await consumer.next_batch(PARTITIONS, 0):
            for delivery in deliveries:
                probe.reply(delivery)
            await consumer.ack(deliveries)

    for connection in (publishing, consuming):
        connection.start()
    consumer.start()
    answering = asyncio.create_task(answer())
    try:
        async with asyncio.timeout(300):
            while not consumer.consuming:  # noqa: ASYNC110 - subscribing sends no notification
                await asyncio.sleep(0.1)
        yield probe, publisher, queues
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await consumer.close()
        channel = await consuming.channel()
        for queue in queues:
            await channel.queue_delete(queue)
        await consuming.close()
        await publishing.close()
