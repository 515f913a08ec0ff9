"""A million tasks and leases in the real tables, beside 15,000 reports/s: the workers, sweeper and counts at work.

A slower machine takes ``--rate``: everything lasts longer then, so that each agent still reports before it is lost.
"""

from __future__ import annotations

import asyncio
import math
import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aio_pika
import psutil

from benchmarks.cases.growth import database_cpu
from benchmarks.cases.steady import drain, until_consumers
from benchmarks.cases.sustained import Reader
from benchmarks.harness import backlog
from benchmarks.harness.contenders import WORKER, wait_published
from benchmarks.harness.seed import OWNER, TASK
from benchmarks.harness.services import EVENTS_READER, TOPOLOGY_NAMES, connected, start_process
from benchmarks.harness.workload import Workload, task_id
from taskherd.store import task_totals
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_lists import Listed

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    import asyncpg

    from benchmarks.harness.run import Run

SILENT = 100
"""Agents that send nothing. They must be found lost, and no other agent."""

EVERY = 5.0
"""Seconds between two samples."""

DRAINS_WITHIN, COUNTS_WITHIN = 120.0, 300.0
"""Seconds until no report waits any more, and then until every change is counted."""

_SILENCE = "UPDATE leases SET last_heartbeat_at = now() - interval '1 day' WHERE task_id = ANY($1::uuid[])"
_REST = "UPDATE leases SET last_heartbeat_at = now() WHERE last_heartbeat_at > now() - interval '12 hours'"
_LOST = "SELECT task_id FROM task_index WHERE term = '' AND health = 'lost'"
_TOTAL = "SELECT sum(tasks)::bigint FROM task_totals WHERE owner_id = $1"
_TASKS = "SELECT count(*) FROM tasks WHERE deleted_at IS NULL AND owner_id = $1"
_PENDING = "SELECT count(*) FROM task_index_changes"


@dataclass(frozen=True, slots=True)
class Scale:
    """The number of tasks, of reports per second, of seconds until a silent agent is lost, and of seconds altogether.

    Reports come in arrays of 100, as runners send them, and two in five change the document. Each agent sends five
    every ``5 * tasks / rate`` seconds, which is less than ``lost_after``.
    """

    tasks: int
    rate: int
    lost_after: int
    seconds: int

    def at(self, rate: int) -> Scale:
        """Return the same at another rate."""
        factor = self.rate / rate
        return Scale(self.tasks, rate, math.ceil(self.lost_after * factor), math.ceil(self.seconds * factor))


FULL = Scale(1_000_000, rate=15_000, lost_after=480, seconds=600)
QUICK = Scale(20_000, rate=3_000, lost_after=60, seconds=90)


@dataclass(slots=True)
class Samples:
    """What was seen while reports came in: seconds for the totals, numbers of the rest."""

    totals: list[float] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)

    @property
    def latest(self) -> str:
        """The latest sample in words."""
        return (
            f"{self.waiting[-1]:,} arrays wait, the index lacks {self.pending[-1]:,} changes, "
            f"totals took {self.totals[-1] * 1e3:.0f} ms"
        )


async def measure(run: Run) -> str:
    """Return the figures, one to a line. The run fails if other agents are found lost than the silent ones."""
    scale = QUICK if run.options.quick else FULL
    if run.options.rate is not None:
        scale = scale.at(run.options.rate)
    services = run.services
    work = Workload(scale.tasks - SILENT, scale.rate * scale.seconds, arrays=True)
    run.log(f"{scale.tasks:,} tasks, {scale.rate:,} reports/s for {scale.seconds} s, lost after {scale.lost_after} s")
    await services.prepare_tasks(scale.tasks)
    silent = {TASK, *(task_id(index) for index in range(work.tasks, scale.tasks))}  # nothing is sent for the first task
    async with connected(services.database_url) as admin:
        await admin.execute(_SILENCE, list(silent))
        await admin.execute(_REST)
        await admin.execute("VACUUM (ANALYZE) leases")
        await admin.execute("CHECKPOINT")
        lines = await _under_load(run, admin, scale, work)
        lost = {row["task_id"] for row in await admin.fetch(_LOST)}
        counted, existing = await admin.fetchval(_TOTAL, OWNER), await admin.fetchval(_TASKS, OWNER)
    if lost != silent:
        run.fail(f"{len(lost - silent)} agents were found lost that were not, {len(silent - lost)} were not found")
    if counted != existing:
        run.fail(f"the totals count {counted:,} tasks of {existing:,}")
    lines += [
        f"- {len(lost & silent)} of {len(silent)} silent agents were found lost, and {len(lost - silent)} others",
        f"- the totals count {counted:,} of {existing:,} tasks",
    ]
    for line in lines:
        run.log(line)
    return "\n".join(lines)


async def _under_load(run: Run, admin: asyncpg.Connection, scale: Scale, work: Workload) -> list[str]:
    """Publish the reports at their rate, sample what must not grow, and return the figures."""
    services, rate = run.services, scale.rate // work.per_message
    reader, samples = Reader(scale.rate), Samples()
    server = psutil.Process(await admin.fetchval("SELECT pg_backend_pid()")).parent()
    assert server is not None
    process = start_process(services, WORKER.module, TASKHERD_AGENT_LOST_AFTER=f"{scale.lost_after}s")
    draining = asyncio.create_task(asyncio.to_thread(drain, process))
    pool = ReadPool(services.database_url, size=1, application_name="bench")
    try:
        async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            await until_consumers(channel, 1)
            queue = await channel.get_queue(EVENTS_READER)
            await queue.consume(reader.on_message, no_ack=True, timeout=10)
            before = (_cpu(process), database_cpu(server), await _wal(admin))
            began = time.monotonic()
            publishing = asyncio.create_task(
                backlog.publish_steadily(
                    services.amqp_url, TOPOLOGY_NAMES.reports, work.messages(), rate, reader.on_sent
                )
            )
            while not publishing.done():
                await asyncio.wait([publishing], timeout=EVERY)
                await _sample(samples, admin, pool, channel)
                run.log(f"after {time.monotonic() - began:.0f} s: {samples.latest}")
            await publishing
            percentiles = reader.percentiles()
            try:
                await _until_empty(channel)
            except TimeoutError:
                run.fail(
                    f"{await _waiting(channel)} arrays waited {DRAINS_WITHIN:g} s after the last one: a lower --rate"
                )
                raise
            seconds = time.monotonic() - began
            await wait_published(services)
            after = (_cpu(process), database_cpu(server), await _wal(admin))
            counted_after = await _until_counted(admin)
    finally:
        await pool.close()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
        await draining
    used = [now - then for now, then in zip(after, before, strict=True)]
    lines = _describe(work, seconds, samples, percentiles, used)
    return [*lines, f"- every change was counted {counted_after:.1f} s after the last event"]


async def _sample(
    samples: Samples, admin: asyncpg.Connection, pool: ReadPool, channel: aio_pika.abc.AbstractChannel
) -> None:
    began = time.monotonic()
    await task_totals.totals(pool, OWNER, Listed())
    samples.totals.append(time.monotonic() - began)
    samples.pending.append(await admin.fetchval(_PENDING))
    samples.waiting.append(await _waiting(channel))


def _describe(
    work: Workload, seconds: float, samples: Samples, percentiles: tuple[float, float], used: Sequence[float]
) -> list[str]:
    worker, database, wal = (value / work.reports for value in used)
    p50, p99 = (value * 1e3 for value in percentiles)
    median, highest = statistics.median(samples.totals) * 1e3, max(samples.totals) * 1e3
    rate = work.reports / seconds
    return [
        f"- {work.reports:,} reports in {seconds:.0f} s, {rate:,.0f}/s; at most {max(samples.waiting)} arrays waited",
        f"- from report to event: p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        f"- CPU per report: {worker * 1e6:.0f} µs of the worker, {database * 1e6:.0f} µs of the database",
        f"- WAL per report: {wal / 1024:.1f} KiB",
        f"- totals of all tasks: median {median:.0f} ms, at most {highest:.0f} ms",
        f"- changes that the index lacked: at most {max(samples.pending):,}",
    ]


async def _waiting(channel: aio_pika.abc.AbstractChannel) -> int:
    queue = await channel.declare_queue(TOPOLOGY_NAMES.reports, passive=True, timeout=10)
    return queue.declaration_result.message_count or 0


async def _until_empty(channel: aio_pika.abc.AbstractChannel) -> None:
    async with asyncio.timeout(DRAINS_WITHIN):
        while await _waiting(channel):  # noqa: ASYNC110 - of the broker, which sends no event
            await asyncio.sleep(0.05)


async def _until_counted(admin: asyncpg.Connection) -> float:
    """Wait until the index and the totals lack nothing; return the seconds that it took."""
    began = time.monotonic()
    async with asyncio.timeout(COUNTS_WITHIN):
        while await admin.fetchval(_PENDING):  # noqa: ASYNC110 - of the database, which sends no event
            await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _wal(admin: asyncpg.Connection) -> int:
    return int(await admin.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"))


def _cpu(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system
