"""Two and three workers on one queue, compared with one: reports per second, and per second of CPU."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import MEASURE_TIMEOUT, WORKER, collect_samples, wait_published
from benchmarks.harness.services import BenchmarkServices, start_process
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from benchmarks.harness.run import Run

NUMBERS = (1, 2, 3)
TASKS = 10_000
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Team:
    """The result of several workers: reports per second, reports per second of their CPU, and each worker's share."""

    rate: float
    per_cpu: float
    shares: tuple[float, ...]


async def measure(run: Run) -> str:
    """Return the table: medians of rounds in which one, two and three workers take turns."""
    work = Workload(TASKS, run.options.reports)
    run.log(work.description)
    results: dict[int, list[Team]] = {number: [] for number in NUMBERS}
    for turn in range(ROUNDS):
        for number, teams in results.items():
            team = await _measure_team(run.services, number, work)
            teams.append(team)
            shares = ", ".join(f"{share:.0%}" for share in team.shares)
            run.log(
                f"round {turn + 1}: {number} workers ({shares}): {team.rate:,.0f} reports/s, "
                f"{team.per_cpu:,.0f} per second of CPU"
            )
    alone = statistics.median(team.per_cpu for team in results[1])
    lines = ["| workers | reports/s | reports per second of their CPU | compared with one |", "|---:|---:|---:|---:|"]
    for number, teams in results.items():
        rate, per_cpu = (statistics.median(getattr(team, name) for team in teams) for name in ("rate", "per_cpu"))
        lines.append(f"| {number} | {rate:,.0f} | {per_cpu:,.0f} | {per_cpu / alone:.2f} |")
    return "\n".join(lines)


async def _measure_team(services: BenchmarkServices, number: int, work: Workload) -> Team:
    await services.prepare(work)
    await services.fill_queue(work)
    processes = [start_process(services, WORKER.module) for _ in range(number)]
    samples: list[list[list[float]]] = [[] for _ in processes]
    reading = [
        asyncio.create_task(asyncio.to_thread(collect_samples, process, lines))
        for process, lines in zip(processes, samples, strict=True)
    ]
    try:
        await _until_done(processes, samples, work.reports)
        await wait_published(services)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            await asyncio.to_thread(process.wait, 40)
        await asyncio.gather(*reading)
    return _team([[line for line in lines if line[1] > 0] for lines in samples])


async def _until_done(
    processes: Sequence[subprocess.Popen[bytes]], samples: list[list[list[float]]], reports: int
) -> None:
    done, since = 0, time.monotonic()
    while done < reports:
        await asyncio.sleep(0.02)
        now = sum(int(lines[-1][1]) for lines in samples if lines)
        if now != done:
            done, since = now, time.monotonic()
        if any(process.poll() is not None for process in processes) or time.monotonic() - since > MEASURE_TIMEOUT:
            raise RuntimeError(f"the workers stopped at {done} of {reports}")


def _team(samples: list[list[list[float]]]) -> Team:
    """Count each worker from its first ack to its last, and the rate from the time at which all had started."""
    busy = [lines for lines in samples if len(lines) > 1]
    reports = [lines[-1][1] - lines[0][1] for lines in busy]
    cpu = sum(lines[-1][-1] - lines[0][-1] for lines in busy)
    started, ended = max(lines[0][0] for lines in busy), max(lines[-1][0] for lines in busy)
    before = sum(max((line[1] for line in lines if line[0] <= started), default=0.0) for lines in busy)
    rate = (sum(lines[-1][1] for lines in busy) - before) / (ended - started)
    return Team(rate, sum(reports) / cpu, tuple(lines[-1][1] / sum(one[-1][1] for one in busy) for lines in busy))
