"""The command: which rows to measure, how big, and where the table goes."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import patches
from benchmarks.cases import agents, api, bloat, cpu, growth, plans, rows, sustained, workers
from benchmarks.harness import machine
from benchmarks.harness.services import BenchmarkServices, benchmark_services
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"
ROWS = ("throughput", "latency", "scale", "memory", "api")
QUICK = ("throughput", "latency")
SECTIONS = {
    "cpu": ("Where the worker's CPU goes", cpu.measure),
    "workers": ("More workers on one queue", workers.measure),
    "growth": ("Cost as the work grows", growth.measure),
    "bloat": ("What updates leave behind", bloat.measure),
    "vacuums": ("Autovacuum", bloat.vacuums),
    "agents": ("Agents on one runner", agents.measure),
    "plans": ("The hot statements' plans", plans.measure),
    "patches": ("What the patches of libraries earn", patches.measure),
}
FULL = (*ROWS, "cpu", "workers", "growth", "bloat")
"""Of the sections those that fit into a full run: vacuums takes ten minutes, plans tells nothing of this machine,
agents wants it for itself, and patches is for after an upgrade of a library."""
MILLION = 1_000_000
HOUR = 60


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        choices=(*ROWS, *SECTIONS, "profile", "sustained", []),
        help="default: all rows, or those of --quick",
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long sustained goes on")
    parser.add_argument("--rate", type=int, default=1_000, help="reports a second of sustained")
    parser.add_argument("--quick", action="store_true", help="a small run within two minutes: throughput and latency")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row, at least 3")
    parser.add_argument("--reports", type=int, help="reports waiting; default 100,000, 20,000 with --quick")
    parser.add_argument("--rows", action="store_true", help="profile with reports in arrays of 100")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, help="keep the table; default: unless --quick"
    )
    return parser.parse_args(words)


async def run(said: argparse.Namespace) -> None:
    """Measure what was asked for; SIGTERM ends it as Ctrl-C does, with all that it started."""
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    reports = said.reports or (20_000 if said.quick else 100_000)
    async with benchmark_services() as ground:
        if "profile" in said.what:
            print(await cpu.profile(ground, Workload(10_000, reports, rows=said.rows)))
            return
        if "sustained" in said.what:
            await _sustained(ground, said)
            return
        wanted = said.what or (QUICK if said.quick else FULL)
        await _measured(ground, said, wanted, reports)


async def _sustained(ground: BenchmarkServices, said: argparse.Namespace) -> None:
    on = await machine.described(ground)
    table, flat = await sustained.measure(ground, said.minutes, said.rate, _say)
    print(f"\n{table}")
    if said.write if said.write is not None else said.minutes >= HOUR:
        title = f"{said.minutes:g} minutes at {said.rate:,} reports/s"
        _keep(f"{_today()}-sustained", [f"# {title}, {_today()}", table, "## The machine", "\n".join(on)])
    if not flat:
        sys.exit(1)


async def _measured(ground: BenchmarkServices, said: argparse.Namespace, wanted: Sequence[str], reports: int) -> None:
    results, began = rows.Results(), time.monotonic()
    on = await machine.described(ground)
    if "throughput" in wanted:
        await rows.throughput(ground, results, reports, said.rounds, _say)
    if "latency" in wanted:
        await rows.delivery(ground, results, 2 if said.quick else 20, said.rounds, _say)
    if "scale" in wanted:
        await rows.scale(ground, results, reports, said.rounds, _say)
    if "memory" in wanted:
        await rows.resident(ground, results, MILLION, _say)
    for name in (name for name in SECTIONS if name in wanted):
        title, measure = SECTIONS[name]
        results.sections.append(f"## {title}\n\n{await measure(ground, reports, _say)}")
    if "api" in wanted:
        sizes = (api.FEW,) if said.quick else (api.FEW, api.MANY)
        await api.measure(ground, results, sizes, seconds=2 if said.quick else 5, rounds=said.rounds, say=_say)
    table = "\n".join([rows.HEADER, *(row.line for row in results.rows)]) if results.rows else ""
    took = f"{time.monotonic() - began:.0f} s"
    print("\n" + "\n\n".join([table, *results.sections, "\n".join(on), took]))
    if said.write if said.write is not None else not said.quick:
        _write(table, on, results, reports)


def _write(table: str, on: list[str], results: rows.Results, reports: int) -> None:
    work = [Workload(10_000, reports).described, Workload(10_000, rows.IN_ARRAYS * reports, rows=True).described]
    parts = [
        f"# Benchmark of {_today()}",
        "Medians; the contenders take turns. `make bench` measures it again.",
        table,
        *results.sections,
        "## The work",
        "\n".join(f"- {line}" for line in work),
        "A rate counts from a contender's first ack to its last, or to its last confirmed event if that is later.",
        "## The machine",
        "\n".join(on),
        "## Every measurement",
        "\n".join(f"- {line}" for line in results.single),
    ]
    _keep(_today(), parts)


def _keep(name: str, parts: Sequence[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    print(f"written to {RESULTS.name}/{name}.md")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _say(line: str) -> None:
    print(line, flush=True)


def start() -> None:
    """Run from the command line."""
    try:
        asyncio.run(run(parse()))
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
