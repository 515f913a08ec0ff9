"""The figures of a chaos campaign: each test notes one row, and this prints all of them as one table.

A test asks for the fixture ``figures`` and notes its row at its very end, when every assertion has held::

    await figures.of(stage, "RabbitMQ killed", faults=20, seconds=times, note="a node of its own")

That takes the inputs sent from the stage, and what was lost and doubled from its ledger. A test without a stage says it
all itself, with ``figures.note(...)``. Of two tests with the same row (the short one of `make test` and the full one)
the one with more faults is shown. A test that fails is shown as failed, by the hook in ``conftest.py``.

Notes go, one JSON object a line, to the file that ``CHAOS_FIGURES`` names, so that a campaign that is broken off still
has its figures; without that variable nothing is kept and the broker is not asked. ``make chaos`` does the rest::

    python -m tests.chaos.figures FIGURES [DOCUMENT]

prints the table, and writes it into the document between its two markers.
"""

from __future__ import annotations

import json
import os
import platform
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

WHERE: Final = "CHAOS_FIGURES"
MAX_WHY = 500
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
COLUMNS = (
    "what happens", "times", "inputs sent", "lost", "doubled", "redelivered", "told again",
    "s to first progress (median, longest)", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. ``seconds``: from the end of each fault to the first commit after it; None: was not counted."""

    row: str
    faults: int
    sent: int
    lost: int
    doubled: int
    redelivered: int | None = None
    told_again: int | None = None
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    def cells(self) -> list[str]:
        """The row as it is shown."""
        whole = (self.faults, self.sent, self.lost, self.doubled, self.redelivered, self.told_again)
        median = f"{statistics.median(self.seconds):.1f}, {max(self.seconds):.1f}" if self.seconds else ""
        return [self.row, *("" if number is None else f"{number:,}" for number in whole), median, self.note]


class Figures:
    """Where tests note their figures; ``wanted`` tells whether anybody reads them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> Figures:
        """The one that the environment asks for."""
        path = os.environ.get(WHERE)
        return cls(Path(path) if path else None)

    @property
    def wanted(self) -> bool:
        """Whether notes are kept."""
        return self._path is not None

    def note(
        self,
        row: str,
        *,
        faults: int,
        sent: int,
        lost: int,
        doubled: int,
        redelivered: int | None = None,
        told_again: int | None = None,
        seconds: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """Note a row."""
        rounded = [round(each, 3) for each in seconds]
        self._keep(asdict(Figure(row, faults, sent, lost, doubled, redelivered, told_again, rounded, note)))

    async def of(
        self,
        stage: ChaosHarness,
        row: str,
        *,
        faults: int,
        redelivered: float | None = None,
        seconds: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """Note a row about a stage; ``redelivered`` is needed only where the broker forgets its count, by a restart."""
        if not self.wanted:
            return
        counted = await stage.redelivered() if redelivered is None else int(redelivered)
        books = stage.ledger
        self.note(
            row,
            faults=faults,
            sent=stage.sent,
            lost=books.lost,
            doubled=books.doubled,
            redelivered=counted,
            told_again=books.repeats,
            seconds=seconds,
            note=note,
        )

    def failed(self, test: str, told: str) -> None:
        """Note that a test has failed, so that no table is without it; of what pytest told, the errors' lines."""
        why = [line.removeprefix("E").strip() for line in told.splitlines() if line.startswith("E  ")]
        self._keep({"failed": test, "why": " ".join(why)[:MAX_WHY]})

    def _keep(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def table(lines: Iterable[dict[str, Any]]) -> str:
    """The Markdown table of such lines, and under it what failed."""
    rows: dict[str, Figure] = {}
    failed: list[str] = []
    for line in lines:
        if "failed" in line:
            failed.append(f"`{line['failed']}`: {line['why']}")
            continue
        figure = Figure(**line)
        known = rows.get(figure.row)
        if known is None or figure.faults >= known.faults:
            rows[figure.row] = figure
    shown = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:-1]), "---"), *(figure.cells() for figure in rows.values())]
    said = "\n".join(f"| {' | '.join(cells)} |" for cells in shown)
    return said + "".join(f"\n\n**Failed:** {test}" for test in failed)


def machine() -> str:
    """What the figures were measured on, without anything that names the machine."""
    cores, state = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{cores} shared cores of {model}, {state:.0f} GiB of memory, Python {platform.python_version()}"


def written(document: str, figures: str, day: str) -> str:
    """The document with these figures between its markers."""
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"the document has no {BEGIN} and {END}"
    head = f"Measured on {day} with `make chaos`, which prints and writes this table again, on {machine()}."
    return f"{before}{BEGIN}\n{head}\n\n{figures}\n{END}{after}"


def main(figures: Path, document: Path | None = None) -> None:
    """Print the table of the figures in a file, and write it into the document, if one is given."""
    shown = table(json.loads(line) for line in figures.read_text().splitlines())
    sys.stdout.write(f"\n{shown}\n")
    if document is not None:
        document.write_text(written(document.read_text(), shown, f"{datetime.now(UTC):%-d %B %Y}"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
