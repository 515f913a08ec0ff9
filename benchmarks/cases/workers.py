"""Two and three workers on one queue beside one: reports a second, and for each second of CPU."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import TIMEOUT, WORKER, follow, wait_published
from benchmarks.harness.services import BenchmarkServices, children
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

NUMBERS = (1, 2, 3)
TASKS = 10_000
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Team:
    """What so many workers did together: reports a second, and reports for each second of their CPU."""

    rate: float
    per_cpu: float
    shares: tuple[float, ...]


async def measure(stage: BenchmarkServices, reports: int, say: Callable[[str], None]) -> str:
    """The table: medians of rounds in which one, two and three workers take turns."""
    work = Workload(TASKS, reports)
    say(work.described)
    found: dict[int, list[Team]] = {number: [] for number in NUMBERS}
    for turn in range(ROUNDS):
        for number, teams in found.items():
            team = await _one(stage, number, work)
            teams.append(team)
            shares = ", ".join(f"{share:.0%}" for share in team.shares)
            say(
                f"round {turn + 1}: {number} at work ({shares}): {team.rate:,.0f} reports/s, "
                f"{team.per_cpu:,.0f} a second of CPU"
            )
    alone = statistics.median(team.per_cpu for team in found[1])
    lines = ["| workers | reports/s | reports a second of their CPU | beside one |", "|---:|---:|---:|---:|"]
    for number, teams in found.items():
        rate, each = (statistics.median(getattr(team, name) for team in teams) for name in ("rate", "per_cpu"))
        lines.append(f"| {number} | {rate:,.0f} | {each:,.0f} | {each / alone:.2f} |")
    return "\n".join(lines)


async def _one(stage: BenchmarkServices, number: int, work: Workload) -> Team:
    await stage.set_up(work)
    await stage.wait(work)
    processes = [children(stage, WORKER.module) for _ in range(number)]
    told: list[list[list[float]]] = [[] for _ in processes]
    reading = [
        asyncio.create_task(asyncio.to_thread(follow, process, lines))
        for process, lines in zip(processes, told, strict=True)
    ]
    try:
        await _emptied(processes, told, work.reports)
        await wait_published(stage)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            await asyncio.to_thread(process.wait, 40)
        await asyncio.gather(*reading)
    return _team([[line for line in lines if line[1] > 0] for lines in told])


async def _emptied(processes: Sequence[subprocess.Popen[bytes]], told: list[list[list[float]]], reports: int) -> None:
    done, since = 0, time.monotonic()
    while done < reports:
        await asyncio.sleep(0.02)
        now = sum(int(lines[-1][1]) for lines in told if lines)
        if now != done:
            done, since = now, time.monotonic()
        if any(process.poll() is not None for process in processes) or time.monotonic() - since > TIMEOUT:
            raise RuntimeError(f"the workers stopped at {done} of {reports}")


def _team(told: list[list[list[float]]]) -> Team:
    """Count for each worker from its first ack to its last, and the rate from when the last of them had begun."""
    busy = [lines for lines in told if len(lines) > 1]
    reports = [lines[-1][1] - lines[0][1] for lines in busy]
    cpu = sum(lines[-1][3] - lines[0][3] for lines in busy)
    begun, ended = max(lines[0][0] for lines in busy), max(lines[-1][0] for lines in busy)
    before = sum(max((line[1] for line in lines if line[0] <= begun), default=0.0) for lines in busy)
    rate = (sum(lines[-1][1] for lines in busy) - before) / (ended - begun)
    return Team(rate, sum(reports) / cpu, tuple(lines[-1][1] / sum(one[-1][1] for one in busy) for lines in busy))
