"""Reports per second of one worker, compared with other consumers, and with more tasks in the table."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.harness.contenders import (
    ACK_500,
    ACK_EACH,
    FASTSTREAM,
    ITERATOR,
    WORKER,
    Contender,
    Measured,
    measure_contender,
)
from benchmarks.harness.run import Row
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from benchmarks.harness.run import Run

IN_ARRAYS = 4
"""Factor by which more reports wait in arrays; otherwise the run would end after two seconds, before it is warm."""

TARGETS = ((FASTSTREAM, 15), (ITERATOR, 1.5), (ACK_EACH, 1.5), (ACK_500, 1.0))
"""Contenders and the ratios to reach."""


async def measure(run: Run) -> None:
    """Compare reports/s with the contenders, in turns, so that other load on the machine affects all alike."""
    single = Workload(10_000, run.options.reports)
    arrays = Workload(10_000, IN_ARRAYS * run.options.reports, arrays=True)
    entries: tuple[tuple[Contender, Workload], ...] = (
        (ACK_500, single),
        (WORKER, single),
        (ACK_EACH, single),
        (ITERATOR, single),
        (FASTSTREAM, single),
        (WORKER, arrays),
    )
    run.log(single.description)
    run.log(arrays.description)
    results: dict[tuple[Contender, Workload], list[Measured]] = {entry: [] for entry in entries}
    for number in range(run.rounds):
        for entry in entries:
            measured = await measure_contender(run.services, *entry)
            results[entry].append(measured)
            run.record(
                f"round {number + 1}: {_name(entry)}: {measured.rate:,.0f} reports/s, {measured.cpu:.0f} µs of CPU each"
            )
    rate = {entry: statistics.median(one.rate for one in measured) for entry, measured in results.items()}
    worker = rate[WORKER, single]
    for peer, target in TARGETS:
        other = rate[peer, single]
        run.rows.append(
            Row("reports/s, one worker", f"{worker:,.0f}", peer.name, f"{other:,.0f}", worker / other, target)
        )
    in_arrays = rate[WORKER, arrays]
    run.rows.append(
        Row(
            "reports/s in arrays of 100",
            f"{in_arrays:,.0f}",
            "one report per message",
            f"{worker:,.0f}",
            in_arrays / worker,
            3,
        )
    )


def _name(entry: tuple[Contender, Workload]) -> str:
    contender, work = entry
    return f"{contender.name}, in arrays of {work.per_message}" if work.arrays else contender.name


async def measure_scale(run: Run) -> None:
    """Compare reports/s with a million tasks in the table with a thousand."""
    few, many = Workload(1_000, run.options.reports), Workload(1_000_000, run.options.reports)
    results: dict[Workload, list[float]] = {few: [], many: []}
    for number in range(run.rounds):
        for work, rates in results.items():
            measured = await measure_contender(run.services, WORKER, work)
            rates.append(measured.rate)
            run.record(
                f"round {number + 1}: {work.tasks:,} tasks: {measured.rate:,.0f} reports/s, "
                f"{measured.cpu:.0f} µs of CPU each"
            )
    with_many, with_few = (statistics.median(results[work]) for work in (many, few))
    run.rows.append(
        Row(
            "reports/s, 1,000,000 tasks",
            f"{with_many:,.0f}",
            "1,000 tasks",
            f"{with_few:,.0f}",
            with_many / with_few,
            0.9,
        )
    )
