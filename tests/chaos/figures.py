"""The figures of a chaos campaign: each test records one row, and this module prints all rows as a table.

A test uses the fixture ``figures`` and records its row at the end, when all assertions have passed::

    await figures.record_run(harness, "RabbitMQ killed", faults=20, seconds=times, note="a private node")

That reads the number of inputs sent from the harness, and the losses and duplicates from its ledger. If two tests have
the same row, the one with more faults is shown. Failed tests are listed, by the hook in ``conftest.py``.

Rows are written as JSON lines to the file that ``CHAOS_FIGURES`` names, so that an interrupted campaign keeps its
figures. Without that variable nothing is recorded, and the broker is not queried. ``make chaos`` does the rest::

    python -m tests.chaos.figures FIGURES [DOCUMENT [COMMAND]]

prints the table, and writes it into the document between the two markers of the command, ``make chaos`` by default.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from tests.harness.chaos import ChaosHarness

VARIABLE: Final = "CHAOS_FIGURES"
MAX_REASON_LENGTH = 500
ERROR_LINE: Final = re.compile(r"E  |[ |]+\w*(Error|Group)\b.*: ")
"""The lines in pytest's output that say what failed, also within a group of errors."""
MARKERS: Final = {
    "make chaos": ("<!-- figures -->", "<!-- end of figures -->"),
    **{
        f"make cluster ROW={service}": (f"<!-- {service} figures -->", f"<!-- end of {service} figures -->")
        for service in ("RabbitMQ", "PostgreSQL")
    },
}
"""The markers around the table of each command."""
COLUMNS = (
    "fault", "times", "inputs sent", "lost", "duplicated", "redelivered", "republished",
    "seconds to first progress (median, longest)", "notes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. ``seconds``: from the end of each fault to the first commit after it. None: not counted."""

    row: str
    faults: int
    sent: int
    lost: int
    duplicated: int
    redelivered: int | None = None
    republished: int | None = None
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    def cells(self) -> list[str]:
        """Return the cells of the row."""
        counts = (self.faults, self.sent, self.lost, self.duplicated, self.redelivered, self.republished)
        median = f"{statistics.median(self.seconds):.1f}, {max(self.seconds):.1f}" if self.seconds else ""
        return [self.row, *("" if number is None else f"{number:,}" for number in counts), median, self.note]


class Figures:
    """The collector of the rows of figures; ``enabled`` is false if nothing reads them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> Figures:
        """Create the collector that the environment variable selects."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path) if path else None)

    @property
    def enabled(self) -> bool:
        """True if rows are recorded."""
        return self._path is not None

    def record(
        self,
        row: str,
        *,
        faults: int,
        sent: int,
        lost: int,
        duplicated: int,
        redelivered: int | None = None,
        republished: int | None = None,
        seconds: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """Record a row."""
        rounded = [round(each, 3) for each in seconds]
        self._write(asdict(Figure(row, faults, sent, lost, duplicated, redelivered, republished, rounded, note)))

    async def record_run(
        self,
        harness: ChaosHarness,
        row: str,
        *,
        faults: int,
        redelivered: float | None = None,
        seconds: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """Record a row from a harness. ``redelivered`` is needed only if a restart has reset the broker's own count."""
        if not self.enabled:
            return
        counted = await harness.redelivered() if redelivered is None else int(redelivered)
        ledger = harness.ledger
        self.record(
            row,
            faults=faults,
            sent=harness.sent,
            lost=ledger.lost,
            duplicated=ledger.duplicated,
            redelivered=counted,
            republished=ledger.republished,
            seconds=seconds,
            note=note,
        )

    def record_failure(self, test: str, output: str) -> None:
        """Record a failed test, with the error lines of pytest's output."""
        reason = [line.strip("E|+ ") for line in output.splitlines() if ERROR_LINE.match(line)]
        self._write({"failed": test, "reason": " ".join(reason)[:MAX_REASON_LENGTH]})

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, followed by the failed tests."""
    rows: dict[str, Figure] = {}
    failed: list[str] = []
    for line in lines:
        if "failed" in line:
            failed.append(f"`{line['failed']}`: {line['reason']}")
            continue
        figure = Figure(**line)
        other = rows.get(figure.row)
        if other is None or figure.faults >= other.faults:
            rows[figure.row] = figure
    lines_of_cells = [
        COLUMNS,
        ("---", *("---:" for _ in COLUMNS[1:-1]), "---"),
        *(figure.cells() for figure in rows.values()),
    ]
    markdown = "\n".join(f"| {' | '.join(cells)} |" for cells in lines_of_cells)
    return markdown + "".join(f"\n\n**Failed:** {test}" for test in failed)


def machine() -> str:
    """Describe the machine that the figures were measured on, without its name."""
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{cores} shared cores of {model}, {memory:.0f} GiB of memory, Python {platform.python_version()}"


def insert_table(document: str, figures: str, day: str, command: str = "make chaos") -> str:
    """Return the document with these figures between the markers of the command."""
    begin, end = MARKERS[command]
    before, _, remainder = document.partition(begin)
    _, found, after = remainder.partition(end)
    assert found, f"the document has no {begin} and {end}"
    head = f"Measured on {day} with `{command}`, which prints and rewrites this table, on {machine()}."
    return f"{before}{begin}\n{head}\n\n{figures}\n{end}{after}"


def main(figures: str, document: str = "", command: str = "make chaos") -> None:
    """Print the table of the figures in a file, and write it into the document if one is given."""
    markdown = table(json.loads(line) for line in Path(figures).read_text().splitlines())
    sys.stdout.write(f"\n{markdown}\n")
    if document:
        path, day = Path(document), f"{datetime.now(UTC):%-d %B %Y}"
        path.write_text(insert_table(path.read_text(), markdown, day, command))


if __name__ == "__main__":
    main(*sys.argv[1:])
