"""Workers under a steady rate of reports, far below their limit: CPU per report, latency, and transactions."""

from __future__ import annotations

import asyncio
import signal
import statistics
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import aio_pika
import psutil

from benchmarks.cases.compare import THIS_CHECKOUT, checkout_environment
from benchmarks.cases.sustained import Reader
from benchmarks.harness import backlog
from benchmarks.harness.contenders import WORKER
from benchmarks.harness.services import EVENTS_READER, TOPOLOGY_NAMES, connected, start_process
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

LOADS = ((1, 1_000), (4, 600), (1, 500))
"""Numbers of workers and reports per second of all of them."""

TICK = 0.001
"""Seconds between two writes: a report arrives by itself, not with ten others."""

WARM_UP, SECONDS, QUICK_SECONDS = 4.0, 20.0, 6.0
TASKS = 10_000

_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True)
class Steady:
    """The workers' CPU in µs per report, milliseconds from report to event, and transactions per 100 reports."""

    cpu: float
    p50: float
    p99: float
    commits: float


async def measure(run: Run) -> str:
    """Return the table: medians of rounds in which the loads, and with ``--checkout`` both checkouts, take turns."""
    trees = [THIS_CHECKOUT, *([run.options.checkout] if run.options.checkout else [])]
    results: dict[tuple[int, int, Path], list[Steady]] = {(*load, tree): [] for load in LOADS for tree in trees}
    for number in range(run.rounds):
        for (workers, rate, tree), measured in results.items():
            one = await _measure(run, workers, rate, checkout_environment(tree))
            measured.append(one)
            run.log(f"round {number + 1}: {_load(workers, rate)}, {_name(tree)}: {_cells([one])}")
    lines = [
        "| workers | reports/s | checkout | CPU, µs per report | p50, ms | p99, ms | transactions per 100 reports |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for (workers, rate, tree), measured in results.items():
        lines.append(f"| {workers} | {rate:,} | {_name(tree)} | {_cells(measured)} |")
    return "\n".join(lines)


def _load(workers: int, rate: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''} at {rate:,}/s"


def _name(tree: Path) -> str:
    return "this one" if tree == THIS_CHECKOUT else "other"


def _cells(measured: Sequence[Steady]) -> str:
    medians = (statistics.median(getattr(one, field.name) for one in measured) for field in fields(Steady))
    return " | ".join(f"{value:,.1f}" for value in medians)


async def _measure(run: Run, workers: int, rate: int, environment: Mapping[str, str]) -> Steady:
    """Measure between the end of the warm-up and the last report; half of the reports are heartbeats."""
    services, seconds = run.services, QUICK_SECONDS if run.options.quick else SECONDS
    work = Workload(TASKS, int(rate * (WARM_UP + seconds)))
    await services.prepare(work)
    processes = [start_process(services, WORKER.module, **environment) for _ in range(workers)]
    draining = [asyncio.create_task(asyncio.to_thread(drain, process)) for process in processes]
    try:
        async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            await until_consumers(channel, workers)
            reader = Reader(rate)
            queue = await channel.get_queue(EVENTS_READER)
            await queue.consume(reader.on_message, no_ack=True, timeout=10)
            publishing = asyncio.create_task(
                backlog.publish_steadily(
                    services.amqp_url, TOPOLOGY_NAMES.reports, work.messages(), rate, reader.on_sent, tick=TICK
                )
            )
            await asyncio.wait([publishing], timeout=WARM_UP)
            reader.p99()
            began, sent, commits = _cpu(processes), reader.sent, await _commits(services)
            await publishing
            used, reports = _cpu(processes) - began, reader.sent - sent
            commits = await _commits(services) - commits
            p50, p99 = reader.percentiles()
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            await asyncio.to_thread(process.wait, 40)
        await asyncio.gather(*draining)
    return Steady(used / reports * 1e6, p50 * 1e3, p99 * 1e3, commits / reports * 100)


async def until_consumers(channel: aio_pika.abc.AbstractChannel, count: int) -> None:
    """Wait until all workers consume."""
    async with asyncio.timeout(30):
        while await _consumers(channel) < count:  # noqa: ASYNC110 - of other processes, which send no event
            await asyncio.sleep(0.05)


async def _consumers(channel: aio_pika.abc.AbstractChannel) -> int:
    queue = await channel.declare_queue(TOPOLOGY_NAMES.reports, passive=True, timeout=10)
    return queue.declaration_result.consumer_count or 0


def drain(process: subprocess.Popen[bytes]) -> None:
    """Read the meter's output, so that its pipe never fills."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


def _cpu(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    times = [psutil.Process(process.pid).cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


async def _commits(services: BenchmarkServices) -> int:
    async with connected(services.database_url) as connection:
        return int(await connection.fetchval(_COMMITS))
