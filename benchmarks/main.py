"""The command: which rows to measure, how big, and where the table goes."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import api, machine, rows
from benchmarks.cpu import profile
from benchmarks.stage import Stage, stage
from benchmarks.workload import Workload

RESULTS = Path(__file__).parent / "results"
ROWS = ("throughput", "latency", "scale", "memory", "api")
BIG = ("scale", "memory")
MILLION = 1_000_000


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="*", choices=(*ROWS, "profile", []), help="default: all rows, or those of --quick"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small run within three minutes: throughput, latency and api"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row, at least 3")
    parser.add_argument("--reports", type=int, help="reports waiting; default 100,000, 20,000 with --quick")
    parser.add_argument("--rows", action="store_true", help="profile with reports in arrays of 100")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, help="keep the table; default: unless --quick"
    )
    return parser.parse_args(words)


async def run(said: argparse.Namespace) -> None:
    """Measure what was asked for."""
    reports = said.reports or (20_000 if said.quick else 100_000)
    async with stage() as ground:
        if "profile" in said.what:
            print(await profile(ground, Workload(10_000, reports, rows=said.rows)))
            return
        wanted = said.what or [row for row in ROWS if not (said.quick and row in BIG)]
        await _measured(ground, said, wanted, reports)


async def _measured(ground: Stage, said: argparse.Namespace, wanted: list[str], reports: int) -> None:
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
    if "api" in wanted:
        sizes = (api.FEW,) if said.quick else (api.FEW, api.MANY)
        await api.measure(ground, results, sizes, seconds=2 if said.quick else 5, rounds=said.rounds, say=_say)
    table = "\n".join([rows.HEADER, *(row.line for row in results.rows)])
    print(f"\n{table}\n\n{os.linesep.join(on)}\n\n{time.monotonic() - began:.0f} s")
    if said.write if said.write is not None else not said.quick:
        _write(table, on, results, reports)


def _write(table: str, on: list[str], results: rows.Results, reports: int) -> None:
    work = [Workload(10_000, reports).described, Workload(10_000, reports, rows=True).described]
    date = datetime.now(UTC).date().isoformat()
    parts = [
        f"# Benchmark of {date}",
        "Medians; the contenders take turns. `make bench` measures it again.",
        table,
        "## The work",
        "\n".join(f"- {line}" for line in work),
        "A rate counts from a contender's first ack to its last, or to its last confirmed event if that is later.",
        "## The machine",
        "\n".join(on),
        "## Every measurement",
        "\n".join(f"- {line}" for line in results.single),
    ]
    path = RESULTS / f"{date}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")
    print(f"written to {path.parent.name}/{path.name}")


def _say(line: str) -> None:
    print(line, flush=True)


def start() -> None:
    """Run from the command line."""
    try:
        asyncio.run(run(parse()))
    except KeyboardInterrupt:
        sys.exit(130)
