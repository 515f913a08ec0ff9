"""Measure the board: ``make bench-board``, or ``python -m benchmarks.cases.board PART…``."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from benchmarks.cases.board import boards, filters, first_row, interactive, tab, weight
from benchmarks.cases.board.figures import Figure, table
from benchmarks.cases.board.plan import Plan
from benchmarks.harness.services import benchmark_services

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS: dict[str, tuple[str, Callable[[Plan], Awaitable[list[Figure]]]]] = {
    "weight": ("Bytes of the home page and of everything it loads", weight.measure),
    "interactive": ("Time until the home page can be used, with a slow CPU", interactive.measure),
    "filters": ("Lists by each filter and by pairs, as the number of tasks grows", filters.measure),
    "first_row": ("Time from a filter to its rows in a browser, as the number of tasks grows", first_row.measure),
    "boards": ("Many feeds at once: CPU of the API, and the time until changes arrive", boards.measure),
    "tab": ("Memory of a tab while tasks change", tab.measure),
}
SIZES, QUICK_SIZES = (1_000, 100_000, 1_000_000), (1_000, 5_000)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--quick`` only changes what is not given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cases.board",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12}{text}" for name, (text, _) in PARTS.items()),
    )
    parser.add_argument("parts", metavar="PART", nargs="*", choices=(*PARTS, []), help="what to measure; default: all")
    parser.add_argument("--quick", action="store_true", help="measure little, within five minutes")
    parser.add_argument(
        "--tasks", type=_sizes, metavar="N,…", help="filters, first_row: numbers of tasks (1000,100000,1000000)"
    )
    parser.add_argument("--list-seconds", type=float, metavar="N", help="filters: duration of each list (1.5)")
    parser.add_argument("--boards", type=int, metavar="N", help="boards: number of feeds (1000)")
    parser.add_argument("--seconds", type=float, metavar="N", help="boards: duration (60)")
    parser.add_argument("--everyone", action="store_true", help="boards: each has all tasks, not those of its owner")
    parser.add_argument("--rate", type=int, metavar="N", help="boards, tab: changes per second (500)")
    parser.add_argument("--minutes", type=float, metavar="N", help="tab: duration (10)")
    parser.add_argument("--samples", type=int, metavar="N", help="tab: how often to look at the memory (10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="interactive, first_row: how often (9)")
    parser.add_argument("--than", metavar="FOLDER", default="", help="interactive: compare with this checkout")
    usual = {"tasks": SIZES, "list_seconds": 1.5, "boards": 1_000, "seconds": 60.0, "rate": 500, "minutes": 10.0}
    usual |= {"samples": 10, "rounds": 9}
    quick = {"tasks": QUICK_SIZES, "list_seconds": 0.3, "boards": 50, "seconds": 5.0, "rate": 100, "minutes": 0.2}
    quick |= {"samples": 4, "rounds": 3}
    arguments = parser.parse_args(words)
    for name, value in (quick if arguments.quick else usual).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


async def run(arguments: argparse.Namespace) -> bool:
    """Measure the parts, print the table, and return whether all targets are met."""
    figures: list[Figure] = []
    async with benchmark_services() as services:
        plan = Plan(
            services=services,
            sizes=arguments.tasks,
            boards=arguments.boards,
            seconds=arguments.seconds,
            everyone=arguments.everyone,
            rate=arguments.rate,
            minutes=arguments.minutes,
            samples=arguments.samples,
            rounds=arguments.rounds,
            list_seconds=arguments.list_seconds,
            than=arguments.than,
        )
        for name, (_, measure) in PARTS.items():
            if not arguments.parts or name in arguments.parts:
                plan.log(f"{name} at {datetime.now(UTC):%H:%M:%S} UTC, load average {os.getloadavg()[0]:.1f}")
                figures += await measure(plan)
        plan.log(f"ended at {datetime.now(UTC):%H:%M:%S} UTC, load average {os.getloadavg()[0]:.1f}\n")
    print(table(figures))
    return all(figure.met for figure in figures)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(run(parse())) else 1)
