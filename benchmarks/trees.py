"""``python -m benchmarks.trees OTHER`` compares the worker of this checkout with the one of another, in turns."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import WORKER, measure
from benchmarks.harness.services import benchmark_services
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from benchmarks.harness.contenders import Measured
    from benchmarks.harness.services import BenchmarkServices

HERE = Path(__file__).parents[1]


async def run(other: Path, pairs: int, reports: int) -> None:
    """Measure both trees on the same services, first with one report a message, then in arrays."""
    async with benchmark_services() as ground:
        for work in (Workload(10_000, reports), Workload(10_000, 2 * reports, rows=True)):
            print(work.described)
            found = [await _pair(ground, work, other, swapped=bool(number % 2)) for number in range(pairs)]
            print(f"CPU of the worker: {_compared([(old.cpu, new.cpu) for old, new in found])} µs a report")
            print(f"rate: {_compared([(old.rate, new.rate) for old, new in found])} reports/s", flush=True)


async def _pair(ground: BenchmarkServices, work: Workload, other: Path, *, swapped: bool) -> tuple[Measured, Measured]:
    """Measure the other tree and this one, in this order or swapped."""
    measured: dict[Path, Measured] = {}
    for tree in (HERE, other) if swapped else (other, HERE):
        measured[tree] = await measure(ground, WORKER, work, PYTHONPATH=f"{tree / 'src'}{os.pathsep}{tree}")
    return measured[other], measured[HERE]


def _compared(pairs: list[tuple[float, float]]) -> str:
    old, new = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(after / before for before, after in pairs)
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return f"{old:,.1f} -> {new:,.1f}, ratio of pairs {statistics.median(ratios):.3f} ({spread})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout; it runs in this one's environment")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--reports", type=int, default=20_000)
    said = parser.parse_args()
    asyncio.run(run(said.other.resolve(), said.pairs, said.reports))
