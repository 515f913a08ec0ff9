"""The worker of another checkout and the worker of this one, measured in pairs on the same services."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import WORKER, measure_contender
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from benchmarks.harness.contenders import Measured
    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

THIS_CHECKOUT = Path(__file__).parents[2]


async def measure(run: Run) -> str:
    """Compare CPU per report, rate and memory of both checkouts, with single reports and with arrays.

    The other checkout runs in this one's virtual environment.
    """
    checkout = run.options.checkout
    assert checkout is not None
    lines = [
        "| workload | measured | other checkout | this one | median ratio of pairs (range) |",
        "|---|---|---:|---:|---:|",
    ]
    reports, tasks = run.options.reports, run.options.tasks
    for work in (Workload(tasks, reports), Workload(tasks, 2 * reports, arrays=True)):
        run.log(work.description)
        pairs = [
            await _pair(run.services, work, checkout, this_first=bool(number % 2))
            for number in range(run.options.pairs)
        ]
        shape = "in arrays of 100" if work.arrays else "one report per message"
        lines.append(f"| {shape} | CPU, µs per report | {_cells([(old.cpu, new.cpu) for old, new in pairs])} |")
        lines.append(f"| {shape} | reports/s | {_cells([(old.rate, new.rate) for old, new in pairs])} |")
        memory = [(old.resident / 2**20, new.resident / 2**20) for old, new in pairs]
        lines.append(f"| {shape} | memory, MiB | {_cells(memory)} |")
        run.log("\n".join(lines[-3:]))
    return "\n".join(lines)


async def _pair(
    services: BenchmarkServices, work: Workload, other: Path, *, this_first: bool
) -> tuple[Measured, Measured]:
    """Measure both checkouts, one after the other; return the other's result and this one's."""
    trees = (THIS_CHECKOUT, other) if this_first else (other, THIS_CHECKOUT)
    first, second = [await measure_contender(services, WORKER, work, **checkout_environment(tree)) for tree in trees]
    return (second, first) if this_first else (first, second)


def checkout_environment(tree: Path) -> dict[str, str]:
    """Return variables that make Python import ``taskherd`` and ``benchmarks`` from ``tree``, not from the cwd."""
    return {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "PYTHONSAFEPATH": "1"}


def _cells(pairs: list[tuple[float, float]]) -> str:
    old, new = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(after / before for before, after in pairs)
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return f"{old:,.1f} | {new:,.1f} | {statistics.median(ratios):.3f} ({spread})"
