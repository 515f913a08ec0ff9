"""A worker under a steady stream for an hour: what of it and of its database grows, and what stays flat."""

from __future__ import annotations

import asyncio
import re
import signal
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika
import psutil

from benchmarks.harness import backlog, table_sizes
from benchmarks.harness.contenders import WORKER
from benchmarks.harness.services import EVENTS_READER, NAMES, BenchmarkServices, children, connected
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Sequence

    from aio_pika.abc import AbstractIncomingMessage

EVERY = 15.0
TASKS = 10_000
SETTLED = 1 / 6
"""The share of the time after which all that fills up once is full: ten minutes of an hour."""

FLAT_MIB = 8.0
"""Resident memory may drift by so many MiB an hour: the last digits of an allocator at work, not a leak."""

LONG = 5.0
"""Seconds after which a session that is idle in a transaction was forgotten there."""

_SESSIONS = """
SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%' AND state_change < now() - make_interval(secs => $1))
FROM pg_stat_activity WHERE datname = current_database()
"""

_STEP = re.compile(rb'"message":"step (\d+):')


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one time, in seconds since the beginning."""

    at: float
    resident: int
    descriptors: int
    threads: int
    forgotten: int
    waiting: int
    cpu: float
    reported: int
    told: int
    p99: float
    tables: dict[str, table_sizes.TableSize]


class Reader:
    """Reads every event, and notes how long after its report it came."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.began = 0.0
        self.sent = 0
        self.told = 0
        self._took: list[float] = []

    def departed(self, sent: int) -> None:
        """So many reports have gone out, evenly."""
        self.began = self.began or time.monotonic()
        self.sent = sent

    async def arrived(self, message: AbstractIncomingMessage) -> None:
        """An array of events has come."""
        now = time.monotonic() - self.began
        steps = _STEP.findall(message.body)
        self.told += len(steps)
        self._took += [now - int(step) / self._rate for step in steps]

    def p99(self) -> float:
        """Seconds from a report's turn to its event, at the 99th percentile since the last question."""
        took, self._took = self._took, []
        return statistics.quantiles(took, n=100)[98] if len(took) > 1 else 0.0


async def measure(stage: BenchmarkServices, minutes: float, rate: int, say: Callable[[str], None]) -> tuple[str, bool]:
    """Stream for so many minutes; the table, and whether memory, descriptors and transactions stayed flat."""
    work = Workload(TASKS, int(rate * minutes * 60))
    say(f"{rate:,} reports/s for {minutes:g} min: {work.described}")
    await stage.set_up(work)
    process = children(stage, WORKER.module)
    reader = Reader(rate)
    drained = asyncio.create_task(asyncio.to_thread(_drain, process))
    try:
        async with await aio_pika.connect(stage.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(EVENTS_READER)
            await queue.consume(reader.arrived, no_ack=True, timeout=10)
            publishing = asyncio.create_task(
                backlog.publish_steadily(stage.amqp_url, NAMES.reports, work.messages(), rate, reader.departed)
            )
            try:
                samples = await _sampled(stage, process, reader, publishing, say)
            finally:
                publishing.cancel()
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
        await drained
    return _table(samples), _flat(samples, say)


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Read what the meter says, so that its pipe never fills."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


async def _sampled(
    stage: BenchmarkServices,
    process: subprocess.Popen[bytes],
    reader: Reader,
    publishing: asyncio.Task[None],
    say: Callable[[str], None],
) -> list[Sample]:
    samples: list[Sample] = []
    seen = psutil.Process(process.pid)
    while not publishing.done():
        await asyncio.wait([publishing], timeout=EVERY)
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended with {process.returncode}")
        async with connected(stage.database_url) as connection:
            forgotten = await connection.fetchval(_SESSIONS, LONG)
            waiting = await connection.fetchval("SELECT count(*) FROM outbox")
            tables = await table_sizes.read(connection)
        with seen.oneshot():
            usage, memory, threads = seen.cpu_times(), seen.memory_info().rss, seen.num_threads()
        sample = Sample(
            time.monotonic() - reader.began,
            memory,
            seen.num_fds(),
            threads,
            forgotten,
            waiting,
            usage.user + usage.system,
            reader.sent,
            reader.told,
            reader.p99(),
            tables,
        )
        samples.append(sample)
        say(_line(sample))
    await publishing
    return samples


def _line(sample: Sample) -> str:
    tasks = sample.tables["tasks"]
    return (
        f"{sample.at:5.0f} s: {sample.resident / 2**20:.1f} MiB, {sample.descriptors} fds, {sample.threads} threads, "
        f"{sample.forgotten} forgotten, outbox {sample.waiting}, {sample.reported} sent, {sample.told} told, "
        f"p99 {sample.p99 * 1e3:.0f} ms, "
        f"tasks {tasks.table / 2**20:.1f} MiB, {tasks.dead} dead, HOT {tasks.hot_share:.1%}"
    )


def _table(samples: Sequence[Sample]) -> str:
    last = samples[-1]
    early = next(sample for sample in samples if sample.at >= last.at * SETTLED)
    rest = [sample for sample in samples if sample.at >= early.at]
    hours = max(last.at - early.at, 1.0) / 3600
    first, end = f"at {early.at / 60:.0f} min", f"at {last.at / 60:.0f} min"
    lines = [f"| worker | {first} | {end} | slope an hour | highest |", "|---|---:|---:|---:|---:|"]
    for name, values, scale in (
        ("resident memory, MiB", [sample.resident for sample in rest], 2**20),
        ("file descriptors", [sample.descriptors for sample in rest], 1),
        ("threads", [sample.threads for sample in rest], 1),
        (f"sessions idle in a transaction for {LONG:g} s", [sample.forgotten for sample in rest], 1),
        ("outbox, events", [sample.waiting for sample in rest], 1),
        ("report to event, p99 of 15 s, ms", [sample.p99 * 1e3 for sample in rest], 1),
    ):
        slope = _slope([sample.at for sample in rest], values) * 3600 / scale
        cells = [f"{value / scale:,.1f}" for value in (values[0], values[-1], slope, max(values))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cpu = (last.cpu - early.cpu) / max(last.reported - early.reported, 1) * 1e6
    said = f"{last.reported:,} reports, {last.told:,} events told; {cpu:.0f} µs of the worker's CPU a report"
    return "\n".join([*lines, "", said, "", table_sizes.table(early.tables, last.tables, hours, first, end)])


def _flat(samples: Sequence[Sample], say: Callable[[str], None]) -> bool:
    rest = [sample for sample in samples if sample.at >= samples[-1].at * SETTLED]
    slope = _slope([sample.at for sample in rest], [sample.resident for sample in rest]) * 3600 / 2**20
    faults = []
    if slope > FLAT_MIB:
        faults.append(f"resident memory grows by {slope:.1f} MiB an hour")
    if _later(sample.descriptors for sample in rest) > 0:
        faults.append("file descriptors grow")
    if any(sample.forgotten for sample in samples):
        faults.append("a session stayed idle in a transaction")
    for fault in faults:
        say(f"not flat: {fault}")
    return not faults


def _later(values: Iterable[int]) -> int:
    """By how much the highest of the second half exceeds that of the first."""
    known = list(values)
    half = len(known) // 2
    return max(known[half:]) - max(known[:half], default=known[-1])


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    return statistics.linear_regression(times, values).slope if len(times) > 1 else 0.0
