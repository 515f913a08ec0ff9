"""One measurement: a contender consumes a queue that was full before it started, and is timed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from benchmarks.harness.services import connected, start_process

if TYPE_CHECKING:
    from benchmarks.harness.services import BenchmarkServices
    from benchmarks.harness.workload import Workload

MEASURE_TIMEOUT = 120.0
"""Seconds without progress after which a contender has failed."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A program to measure; slow ones consume only one ``part``-th of the work."""

    name: str
    module: str
    is_worker: bool = False
    part: int = 1


ACK_500 = Contender("aio-pika, acks 500 at a time, by callbacks with a prefetch of 4,000", "benchmarks.peers.ack_500")
ACK_EACH = Contender("aio-pika, acks each, by callbacks with a prefetch of 100", "benchmarks.peers.ack_each")
ITERATOR = Contender("aio-pika, acks each, by an iterator with a prefetch of 10", "benchmarks.peers.ack_iterator")
FASTSTREAM = Contender("FastStream + SQLAlchemy, the same job", "benchmarks.peers.faststream_handler", part=20)
WORKER = Contender("taskherd worker", "benchmarks.harness.worker_process", is_worker=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """The result between first and last ack or confirm: ``rate`` in reports/s, ``cpu`` in µs per report."""

    rate: float
    cpu: float
    events: int
    resident: int


async def measure_contender(
    services: BenchmarkServices, contender: Contender, work: Workload, **environment: str
) -> Measured:
    """Prepare database and queue, run a contender and measure it. The time before its first ack is not counted."""
    await services.prepare(work)
    await services.fill_queue(work)
    process = start_process(services, contender.module, **environment)
    try:
        return await measure_process(services, contender, work, process)
    finally:
        process.send_signal(signal.SIGTERM if contender.is_worker else signal.SIGKILL)
        await asyncio.to_thread(process.wait, 40)


async def measure_process(
    services: BenchmarkServices, contender: Contender, work: Workload, process: subprocess.Popen[bytes]
) -> Measured:
    """Wait until the contender has consumed its part of the work, and return the result."""
    samples: list[list[float]] = []
    reading = asyncio.create_task(asyncio.to_thread(collect_samples, process, samples))
    total = work.reports // contender.part
    per_count = 1 if contender.is_worker else work.per_message
    before, since = 0, time.monotonic()
    while not samples or samples[-1][1] * per_count < total:
        if len(samples) != before:
            before, since = len(samples), time.monotonic()
        if process.poll() is not None or time.monotonic() - since > MEASURE_TIMEOUT:
            message = f"{contender.name} stopped at {samples[-1][1] if samples else 0} of {total}"
            raise RuntimeError(message)
        await asyncio.sleep(0.02)
    resident = psutil.Process(process.pid).memory_info().rss
    if contender.is_worker:
        await wait_published(services)
        await asyncio.sleep(0.05)
    result = _result(list(samples), per_count, resident)
    reading.cancel()
    return result


def collect_samples(process: subprocess.Popen[bytes], samples: list[list[float]]) -> None:
    """Append each line of a contender's meter until the process exits."""
    assert process.stdout is not None
    for line in process.stdout:
        samples.append(json.loads(line))  # noqa: PERF401 - another thread reads the list


async def wait_published(services: BenchmarkServices) -> None:
    """Wait until the outbox is empty, so that every committed event is confirmed."""
    async with connected(services.database_url) as connection, asyncio.timeout(MEASURE_TIMEOUT):
        while await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"):  # noqa: ASYNC110 - of the database, which sends no event
            await asyncio.sleep(0.01)


def _result(samples: list[list[float]], per_count: int, resident: int) -> Measured:
    first = next(line for line in samples if line[1] > 0)
    last = samples[-1]
    reports = (last[1] - first[1]) * per_count
    return Measured(
        rate=reports / (last[0] - first[0]),
        cpu=(last[-1] - first[-1]) / reports * 1e6,
        events=int(last[2]),
        resident=resident,
    )
