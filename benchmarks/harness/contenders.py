"""One measurement: a contender empties a queue that was full before it started, and we note when it is through."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from benchmarks.harness.services import children, connected

if TYPE_CHECKING:
    from benchmarks.harness.services import BenchmarkServices
    from benchmarks.harness.workload import Workload

TIMEOUT = 120.0
"""Seconds without any progress after which a contender has failed."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who competes. ``part``: stop after the first of so many parts of the work, since all would take too long."""

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
    """What a contender did between its first and its last ack or confirm: ``rate`` in reports/s, ``cpu`` in µs each."""

    rate: float
    cpu: float
    events: int
    resident: int


async def measure(stage: BenchmarkServices, contender: Contender, work: Workload, **extra: str) -> Measured:
    """Set the stage and let a contender at it. The time before its first ack is not counted, for anybody."""
    await stage.set_up(work)
    await stage.wait(work)
    process = children(stage, contender.module, **extra)
    try:
        return await watched(stage, contender, work, process)
    finally:
        process.send_signal(signal.SIGTERM if contender.is_worker else signal.SIGKILL)
        await asyncio.to_thread(process.wait, 40)


async def watched(
    stage: BenchmarkServices, contender: Contender, work: Workload, process: subprocess.Popen[bytes]
) -> Measured:
    """Wait until the contender is through, and say what it did."""
    told: list[list[float]] = []
    reading = asyncio.create_task(asyncio.to_thread(follow, process, told))
    most = work.reports // contender.part
    per_count = 1 if contender.is_worker else work.per_message
    before, since = 0, time.monotonic()
    while not told or told[-1][1] * per_count < most:
        if len(told) != before:
            before, since = len(told), time.monotonic()
        if process.poll() is not None or time.monotonic() - since > TIMEOUT:
            message = f"{contender.name} stopped at {told[-1][1] if told else 0} of {most}"
            raise RuntimeError(message)
        await asyncio.sleep(0.02)
    resident = psutil.Process(process.pid).memory_info().rss
    if contender.is_worker:
        await wait_published(stage)
        await asyncio.sleep(0.05)
    result = _result(list(told), per_count, resident)
    reading.cancel()
    return result


def follow(process: subprocess.Popen[bytes], told: list[list[float]]) -> None:
    """Read what a contender's meter says, as it says it."""
    assert process.stdout is not None
    for line in process.stdout:
        told.append(json.loads(line))  # noqa: PERF401 - others read along


async def wait_published(stage: BenchmarkServices) -> None:
    """Wait until no event is left in the outbox: then all that was committed is confirmed too."""
    async with connected(stage.database_url) as connection, asyncio.timeout(TIMEOUT):
        while await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"):  # noqa: ASYNC110 - of the database, which sends no event
            await asyncio.sleep(0.01)


def _result(told: list[list[float]], per_count: int, resident: int) -> Measured:
    first = next(line for line in told if line[1] > 0)
    last = told[-1]
    reports = (last[1] - first[1]) * per_count
    return Measured(
        rate=reports / (last[0] - first[0]),
        cpu=(last[3] - first[3]) / reports * 1e6,
        events=int(last[2]),
        resident=resident,
    )
