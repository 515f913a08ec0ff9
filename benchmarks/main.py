"""Measure taskherd on private services and compare it with other programs."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import (
    agents,
    api,
    bloat,
    commands,
    compare,
    cpu,
    growth,
    indexing,
    latency,
    lists,
    memory,
    million,
    ops,
    pages,
    patches,
    pgbouncer,
    plans,
    positions,
    steady,
    sustained,
    sweep,
    throughput,
    workers,
)
from benchmarks.harness import machine
from benchmarks.harness.run import Options, Run
from benchmarks.harness.services import benchmark_services
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

RESULTS = Path(__file__).parent / "results"
HOUR = 60
"""Minutes of ``sustained`` from which its results are written."""

ROWS: dict[str, tuple[str, Callable[[Run], Awaitable[None]]]] = {
    "throughput": ("Reports/s of one worker, compared with other consumers", throughput.measure),
    "latency": ("Time from a report to its event", latency.measure),
    "scale": ("Reports/s with a million tasks, compared with a thousand", throughput.measure_scale),
    "memory": ("The worker's memory with a million messages waiting", memory.measure),
    "api": ("The API's reads, writes and events, compared with FastAPI and SQLAlchemy's ORM", api.measure),
    "commands": ("POSTs of tasks, compared with FastAPI, SQLAlchemy's ORM and a confirmed publish", commands.measure),
}
"""Cases that add rows to the table of results."""

SECTIONS: dict[str, tuple[str, Callable[[Run], Awaitable[str]]]] = {
    "cpu": ("Where the worker's CPU time goes", cpu.measure),
    "workers": ("More workers on one queue", workers.measure),
    "growth": ("Cost per report as the number of tasks grows", growth.measure),
    "bloat": ("Dead rows and table size with different fill factors", bloat.measure),
    "vacuums": ("Autovacuum with taskherd's settings and with the defaults", bloat.measure_vacuums),
    "agents": ("200 agents on one runner", agents.measure),
    "pages": ("What the pages of a task and of the fleet cost", pages.measure),
    "plans": ("Plans of the frequent statements", plans.measure),
    "patches": ("What the patches of libraries save", patches.measure),
    "lists": ("Lists of tasks by each filter, as the number of tasks grows", lists.measure),
    "pgbouncer": ("The guards of sessions behind PgBouncer", pgbouncer.measure),
    "ops": ("Cost of uvicorn on the operations port", ops.measure),
    "profile": ("The worker's CPU time by function", cpu.profile),
    "compare": ("The worker of another checkout, compared with this one's", compare.measure),
    "positions": ("Feed positions, under one lock and in shards", positions.measure),
    "million": ("A million tasks beside 15,000 reports/s: reports, sweeps and counts", million.measure),
    "indexing": ("Changes/s that reach the index of the tasks", indexing.measure),
    "sweep": ("Sweeps of ten million leases, and probes of 256 partitions", sweep.measure),
    "steady": ("Workers at a steady rate below their limit", steady.measure),
    "sustained": ("A steady stream of reports", sustained.measure),
}
"""Cases that add a section of their own."""

DEFAULT = (*ROWS, "cpu", "steady", "workers", "growth", "bloat")
"""All rows, and the sections of general interest.

The others take long (vacuums, sustained), need a machine without other load (agents), or are about one part.
"""

QUICK = ("throughput", "latency")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    every = {**ROWS, **SECTIONS}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases:\n" + "\n".join(f"  {name:12}{text}" for name, (text, _) in every.items()),
    )
    parser.add_argument(
        "cases",
        metavar="CASE",
        nargs="*",
        choices=(*every, []),
        help=f"what to measure; default: {', '.join(DEFAULT)}; with --quick: {', '.join(QUICK)}",
    )
    parser.add_argument("--quick", action="store_true", help="measure little, within two minutes")
    parser.add_argument("--reports", type=int, metavar="N", help="reports in the queue (100000; with --quick 20000)")
    parser.add_argument("--tasks", type=int, metavar="N", default=10_000, help="compare: number of tasks (10000)")
    parser.add_argument("--rounds", type=int, metavar="N", default=3, help="rounds of each row, at least 3")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, help="write the results (unless --quick)")
    parser.add_argument("--arrays", action="store_true", help="profile: send reports in arrays of 100")
    parser.add_argument("--acp", action="store_true", help="agents: agents that speak ACP instead of stdio ones")
    parser.add_argument("--minutes", type=float, metavar="N", default=HOUR, help="sustained: duration (60)")
    parser.add_argument("--rate", type=int, metavar="N", help="sustained, million: reports per second (1000, 15000)")
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="compare, steady: the other checkout")
    parser.add_argument("--pairs", type=int, metavar="N", default=5, help="compare: pairs of runs (5)")
    arguments = parser.parse_args(words)
    if "compare" in arguments.cases and arguments.checkout is None:
        parser.error("compare needs --checkout DIR")
    return arguments


async def run(arguments: argparse.Namespace) -> None:
    """Measure the cases and print the results; SIGTERM stops everything that was started, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    options = Options(
        reports=arguments.reports or (20_000 if arguments.quick else 100_000),
        tasks=arguments.tasks,
        rounds=arguments.rounds,
        quick=arguments.quick,
        arrays=arguments.arrays,
        minutes=arguments.minutes,
        rate=arguments.rate,
        acp=arguments.acp,
        checkout=arguments.checkout and arguments.checkout.resolve(),
        pairs=arguments.pairs,
    )
    cases = arguments.cases or (QUICK if arguments.quick else DEFAULT)
    async with benchmark_services() as services:
        run_ = Run(services, options)
        began = time.monotonic()
        environment = await machine.describe(services)
        for name, (_, measure_rows) in ROWS.items():
            if name in cases:
                await measure_rows(run_)
        for name, (title, measure) in SECTIONS.items():
            if name in cases:
                run_.sections.append(f"## {title}\n\n{await measure(run_)}")
    parts = [run_.table, *run_.sections, "\n".join(environment), f"{time.monotonic() - began:.0f} s"]
    print("\n" + "\n\n".join(part for part in parts if part))
    by_default = not options.quick and ("sustained" not in cases or options.minutes >= HOUR)
    if by_default if arguments.write is None else arguments.write:
        _write(run_, arguments.cases, environment)
    if run_.failures:
        sys.exit(1)


def _write(run_: Run, cases: Sequence[str], environment: Sequence[str]) -> None:
    today, reports = datetime.now(UTC).date().isoformat(), run_.options.reports
    workloads = (Workload(10_000, reports), Workload(10_000, throughput.IN_ARRAYS * reports, arrays=True))
    parts = [f"# Benchmark of {', '.join([*cases, today])}"]
    if run_.rows:
        parts += ["Medians of rounds in which the contenders take turns. `make bench` repeats them.", run_.table]
    parts += run_.sections
    if run_.rows:
        parts += [
            "## The workload",
            "\n".join(f"- {workload.description}" for workload in workloads),
            "A rate counts from a contender's first ack to its last, or to its last confirmed event if that is later.",
        ]
    parts += ["## The machine", "\n".join(environment)]
    if run_.measurements:
        parts += ["## Every measurement", "\n".join(f"- {line}" for line in run_.measurements)]
    path = RESULTS / f"{'-'.join([today, *cases])}.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")
    print(f"written to {RESULTS.name}/{path.name}")


def start() -> None:
    """Run from the command line."""
    try:
        asyncio.run(run(parse()))
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
