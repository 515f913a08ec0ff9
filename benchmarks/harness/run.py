"""One run of the benchmarks: its services and options, and the results so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.services import BenchmarkServices

MIN_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. ``reports``: how many reports wait in the queue; ``tasks``: of how many tasks."""

    reports: int
    tasks: int
    rounds: int
    quick: bool
    arrays: bool
    minutes: float
    rate: int | None
    acp: bool
    checkout: Path | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of results.

    ``target`` is the smallest acceptable ``ratio``, or the largest if ``at_most`` is set; None if there is no target.
    """

    what: str
    result: str
    compared_with: str
    other_result: str
    ratio: float
    target: float | None
    at_most: bool = False
    unit: str = "times"

    @property
    def met(self) -> bool:
        """True if the target is met or there is none."""
        if self.target is None:
            return True
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    @property
    def line(self) -> str:
        """The row in Markdown."""
        sign = "≤" if self.at_most else "≥"
        target = "" if self.target is None else f"{sign} {self.target:g} {self.unit}"
        met = "" if self.target is None else "yes" if self.met else "**no**"
        ratio = f"{self.ratio:.2f} {self.unit}"
        cells = (self.what, self.result, self.compared_with, self.other_result, ratio, target, met)
        return f"| {' | '.join(cells)} |"


HEADER = "| what | taskherd | compared with | result | ratio | target | met |\n|---|---:|---|---:|---:|---:|---|"


@dataclass(slots=True)
class Run:
    """A run with its results: rows of the table, sections after it, single measurements, and failed expectations."""

    services: BenchmarkServices
    options: Options
    rows: list[Row] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Rounds in which the contenders take turns."""
        return max(self.options.rounds, MIN_ROUNDS)

    @property
    def table(self) -> str:
        """The table of results in Markdown; empty without rows."""
        return "\n".join([HEADER, *(row.line for row in self.rows)]) if self.rows else ""

    def log(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def record(self, line: str) -> None:
        """Print a measurement and keep it for the report."""
        self.measurements.append(line)
        self.log(line)

    def fail(self, line: str) -> None:
        """Print an expectation that was not met, and let the run exit with status 1."""
        self.failures.append(line)
        self.log(line)
