"""The rows of the table: what is measured, beside what, and how much of it there should be."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.cases import latency, memory
from benchmarks.harness.contenders import ACK_500, ACK_EACH, FASTSTREAM, ITERATOR, WORKER, Contender, Measured, measure
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.services import BenchmarkServices

LEAST_ROUNDS = 3

IN_ARRAYS = 4
"""Times as many reports wait in arrays: else two seconds would be over before the worker is warm."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. ``bound``: the least ``ratio`` there should be, the most with ``most`` set, or no target."""

    what: str
    ours: str
    against: str
    theirs: str
    ratio: float
    bound: float | None
    most: bool = False
    unit: str = "times"

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        if self.bound is None:
            return True
        return self.ratio <= self.bound if self.most else self.ratio >= self.bound

    @property
    def line(self) -> str:
        """The row in Markdown."""
        sign = "≤" if self.most else "≥"
        target = "" if self.bound is None else f"{sign} {self.bound:g} {self.unit}"
        verdict = "" if self.bound is None else "yes" if self.met else "**no**"
        cells = (
            self.what,
            self.ours,
            self.against,
            self.theirs,
            f"{self.ratio:.2f} {self.unit}",
            target,
            verdict,
        )
        return f"| {' | '.join(cells)} |"


HEADER = "| what | taskherd | against | that | ratio | target | met |\n|---|---:|---|---:|---:|---:|---|"


@dataclass(slots=True)
class Results:
    """The rows so far, tables apart from them, and every single measurement behind the rows."""

    rows: list[Row] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)
    single: list[str] = field(default_factory=list)


async def throughput(
    stage: BenchmarkServices, results: Results, reports: int, rounds: int, say: Callable[[str], None]
) -> None:
    """Reports/s beside the peers, one after the other, again and again, so that the machine's moods hit all alike."""
    plain = Workload(10_000, reports)
    arrays = Workload(10_000, IN_ARRAYS * reports, rows=True)
    entries: tuple[tuple[Contender, Workload], ...] = (
        (ACK_500, plain),
        (WORKER, plain),
        (ACK_EACH, plain),
        (ITERATOR, plain),
        (FASTSTREAM, plain),
        (WORKER, arrays),
    )
    say(plain.described)
    say(arrays.described)
    found: dict[tuple[Contender, Workload], list[Measured]] = {entry: [] for entry in entries}
    for number in range(max(rounds, LEAST_ROUNDS)):
        for entry in entries:
            one = await measure(stage, *entry)
            found[entry].append(one)
            note = f"round {number + 1}: {_name(entry)}: {one.rate:,.0f} reports/s, {one.cpu:.0f} µs of CPU each"
            results.single.append(note)
            say(note)
    rate = {entry: statistics.median(one.rate for one in all_) for entry, all_ in found.items()}
    ours = rate[WORKER, plain]
    for peer, bound in ((FASTSTREAM, 15), (ITERATOR, 1.5), (ACK_EACH, 1.5), (ACK_500, 0.85)):
        theirs = rate[peer, plain]
        results.rows.append(
            Row("reports/s, one worker", f"{ours:,.0f}", peer.name, f"{theirs:,.0f}", ours / theirs, bound)
        )
    inside = rate[WORKER, arrays]
    results.rows.append(
        Row("reports/s in arrays of 100", f"{inside:,.0f}", "one a message", f"{ours:,.0f}", inside / ours, 3)
    )


def _name(entry: tuple[Contender, Workload]) -> str:
    contender, work = entry
    return f"{contender.name}, in arrays of {work.per_message}" if work.rows else contender.name


async def delivery(
    stage: BenchmarkServices, results: Results, seconds: float, rounds: int, say: Callable[[str], None]
) -> None:
    """Report to event, at 500 reports/s, beside a bare round trip."""
    say(f"latency: {latency.RATE} app.status a second over 10,000 tasks for {seconds:g} s, from publish to delivery")
    ours: list[latency.Latency] = []
    theirs: list[latency.Latency] = []
    for number in range(max(rounds, LEAST_ROUNDS)):
        for name, module, kept in (
            ("taskherd worker", WORKER.module, ours),
            ("bare publish, commit, publish", "benchmarks.peers.roundtrip", theirs),
        ):
            one = await latency.measure(stage, module, seconds)
            kept.append(one)
            note = (
                f"round {number + 1}: {name}: p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms, lost {one.lost}"
            )
            results.single.append(note)
            say(note)
    our, their = (statistics.median(one.p99 for one in kept) for kept in (ours, theirs))
    results.rows.append(
        Row(
            f"report to event, p99, {latency.RATE}/s",
            f"{our * 1e3:.1f} ms",
            "bare publish, commit, publish",
            f"{their * 1e3:.1f} ms",
            our / their,
            2,
            most=True,
        )
    )


async def scale(
    stage: BenchmarkServices, results: Results, reports: int, rounds: int, say: Callable[[str], None]
) -> None:
    """Throughput with a million tasks in the table beside a thousand."""
    few, many = Workload(1_000, reports), Workload(1_000_000, reports)
    found: dict[Workload, list[float]] = {few: [], many: []}
    for number in range(max(rounds, LEAST_ROUNDS)):
        for work, rates in found.items():
            one = await measure(stage, WORKER, work)
            rates.append(one.rate)
            note = f"round {number + 1}: {work.tasks:,} tasks: {one.rate:,.0f} reports/s, {one.cpu:.0f} µs of CPU each"
            results.single.append(note)
            say(note)
    most, least = (statistics.median(found[work]) for work in (many, few))
    results.rows.append(
        Row("reports/s, 1,000,000 tasks", f"{most:,.0f}", "1,000 tasks", f"{least:,.0f}", most / least, 0.9)
    )


async def resident(stage: BenchmarkServices, results: Results, waiting: int, say: Callable[[str], None]) -> None:
    """Memory with many messages waiting beside none."""
    none, many = await memory.measure(stage, 0), await memory.measure(stage, waiting)
    note = f"resident memory: {none / 2**20:.0f} MiB with nothing waiting, {many / 2**20:.0f} MiB with {waiting:,}"
    results.single.append(note)
    say(note)
    results.rows.append(
        Row(
            f"resident memory, {waiting:,} messages waiting",
            f"{many / 2**20:.0f} MiB",
            "none waiting",
            f"{none / 2**20:.0f} MiB",
            (many - none) / 2**20,
            50,
            most=True,
            unit="MB more",
        )
    )
