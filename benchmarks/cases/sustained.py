"""A worker under a steady stream of reports: whether it and its database grow."""

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
from benchmarks.harness.services import EVENTS_READER, TOPOLOGY_NAMES, connected, start_process
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Sequence

    from aio_pika.abc import AbstractIncomingMessage

    from benchmarks.harness.run import Run

RATE = 1_000
"""Reports per second, unless the command line says another rate."""

EVERY = 15.0
"""Seconds between two samples."""

TASKS = 10_000
SETTLED = 1 / 6
"""Share of the run after which every buffer and cache is full: ten minutes of an hour."""

FLAT_MIB = 8.0
"""MiB per hour by which resident memory may grow: the noise of an allocator, not a leak."""

LONG = 5.0
"""Seconds after which a session that is idle in a transaction counts as forgotten."""

_SESSIONS = """
SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%' AND state_change < now() - make_interval(secs => $1))
FROM pg_stat_activity WHERE datname = current_database()
"""

_STEP = re.compile(rb'"message":"step (\d+):')


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, taken ``at`` seconds after the start."""

    at: float
    resident: int
    descriptors: int
    threads: int
    forgotten: int
    waiting: int
    cpu: float
    reports: int
    events: int
    p99: float
    tables: dict[str, table_sizes.TableSize]


class Reader:
    """A reader of every event, which records the delay since its report."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.began = 0.0
        self.sent = 0
        self.events = 0
        self._delays: list[float] = []

    def on_sent(self, sent: int) -> None:
        """Record the number of reports published so far, at an even rate."""
        self.began = self.began or time.monotonic()
        self.sent = sent

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Record the delays of an array of events."""
        now = time.monotonic() - self.began
        steps = _STEP.findall(message.body)
        self.events += len(steps)
        self._delays += [now - int(step) / self._rate for step in steps]

    def percentiles(self) -> tuple[float, float]:
        """Return p50 and p99 of the seconds from a report's due time to its event since the last call."""
        delays, self._delays = self._delays, []
        cuts = statistics.quantiles(delays, n=100) if len(delays) > 1 else [0.0] * 99
        return cuts[49], cuts[98]

    def p99(self) -> float:
        """Return the 99th percentile of the same."""
        return self.percentiles()[1]


async def measure(run: Run) -> str:
    """Return the table; the run fails if memory, file descriptors or idle transactions grow."""
    services, minutes, rate = run.services, run.options.minutes, run.options.rate or RATE
    work = Workload(TASKS, int(rate * minutes * 60))
    run.log(f"{rate:,} reports/s for {minutes:g} min: {work.description}")
    await services.prepare(work)
    process = start_process(services, WORKER.module)
    reader = Reader(rate)
    drained = asyncio.create_task(asyncio.to_thread(_drain, process))
    try:
        async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(EVENTS_READER)
            await queue.consume(reader.on_message, no_ack=True, timeout=10)
            publishing = asyncio.create_task(
                backlog.publish_steadily(
                    services.amqp_url, TOPOLOGY_NAMES.reports, work.messages(), rate, reader.on_sent
                )
            )
            try:
                samples = await _sample(run, process, reader, publishing)
            finally:
                publishing.cancel()
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
        await drained
    for fault in _growth(samples):
        run.fail(f"not flat: {fault}")
    title = f"{minutes:g} minutes at {rate:,} reports/s"
    return f"{title}.\n\n{_table(samples)}"


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Read the meter's output, so that its pipe never fills."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


async def _sample(
    run: Run, process: subprocess.Popen[bytes], reader: Reader, publishing: asyncio.Task[None]
) -> list[Sample]:
    samples: list[Sample] = []
    worker = psutil.Process(process.pid)
    while not publishing.done():
        await asyncio.wait([publishing], timeout=EVERY)
        if process.poll() is not None:
            raise RuntimeError(f"the worker exited with status {process.returncode}")
        async with connected(run.services.database_url) as connection:
            forgotten = await connection.fetchval(_SESSIONS, LONG)
            waiting = await connection.fetchval("SELECT count(*) FROM outbox")
            tables = await table_sizes.read(connection)
        with worker.oneshot():
            usage, memory, threads = worker.cpu_times(), worker.memory_info().rss, worker.num_threads()
        sample = Sample(
            time.monotonic() - reader.began,
            memory,
            worker.num_fds(),
            threads,
            forgotten,
            waiting,
            usage.user + usage.system,
            reader.sent,
            reader.events,
            reader.p99(),
            tables,
        )
        samples.append(sample)
        run.log(_line(sample))
    await publishing
    return samples


def _line(sample: Sample) -> str:
    tasks = sample.tables["tasks"]
    return (
        f"{sample.at:5.0f} s: {sample.resident / 2**20:.1f} MiB, {sample.descriptors} fds, {sample.threads} threads, "
        f"{sample.forgotten} sessions idle in a transaction, outbox {sample.waiting}, "
        f"{sample.reports} reports, {sample.events} events, "
        f"p99 {sample.p99 * 1e3:.0f} ms, "
        f"tasks {tasks.table / 2**20:.1f} MiB, {tasks.dead} dead, HOT {tasks.hot_share:.1%}"
    )


def _table(samples: Sequence[Sample]) -> str:
    last = samples[-1]
    early = next(sample for sample in samples if sample.at >= last.at * SETTLED)
    settled = [sample for sample in samples if sample.at >= early.at]
    hours = max(last.at - early.at, 1.0) / 3600
    first, end = f"at {early.at / 60:.0f} min", f"at {last.at / 60:.0f} min"
    lines = [f"| worker | {first} | {end} | growth per hour | highest |", "|---|---:|---:|---:|---:|"]
    for name, values, scale in (
        ("resident memory, MiB", [sample.resident for sample in settled], 2**20),
        ("file descriptors", [sample.descriptors for sample in settled], 1),
        ("threads", [sample.threads for sample in settled], 1),
        (f"sessions idle in a transaction for {LONG:g} s", [sample.forgotten for sample in settled], 1),
        ("outbox, events", [sample.waiting for sample in settled], 1),
        ("report to event, p99 of 15 s, ms", [sample.p99 * 1e3 for sample in settled], 1),
    ):
        slope = _slope([sample.at for sample in settled], values) * 3600 / scale
        cells = [f"{value / scale:,.1f}" for value in (values[0], values[-1], slope, max(values))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cpu = (last.cpu - early.cpu) / max(last.reports - early.reports, 1) * 1e6
    summary = f"{last.reports:,} reports, {last.events:,} events; {cpu:.0f} µs of the worker's CPU per report"
    return "\n".join([*lines, "", summary, "", table_sizes.table(early.tables, last.tables, hours, first, end)])


def _growth(samples: Sequence[Sample]) -> list[str]:
    """Return what grows that must stay flat."""
    settled = [sample for sample in samples if sample.at >= samples[-1].at * SETTLED]
    slope = _slope([sample.at for sample in settled], [sample.resident for sample in settled]) * 3600 / 2**20
    faults = []
    if slope > FLAT_MIB:
        faults.append(f"resident memory grows by {slope:.1f} MiB per hour")
    if _increase(sample.descriptors for sample in settled) > 0:
        faults.append("file descriptors grow")
    if any(sample.forgotten for sample in samples):
        faults.append("a session stayed idle in a transaction")
    return faults


def _increase(values: Iterable[int]) -> int:
    """Return the difference between the maxima of the second and the first half."""
    every = list(values)
    half = len(every) // 2
    return max(every[half:]) - max(every[:half], default=every[-1])


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    return statistics.linear_regression(times, values).slope if len(times) > 1 else 0.0
