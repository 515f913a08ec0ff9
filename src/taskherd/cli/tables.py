"""Print tables and lists of fields for people, within the width of the terminal.

A table leaves out its least important columns, then shortens texts; what identifies a row is always printed in full.
Output that does not go to a terminal is as wide as it needs to be, unless ``COLUMNS`` says otherwise.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import typer
from rich.cells import cell_len, set_cell_size

from taskherd.cli.output import printable

_GAP: Final = 2
_UNLIMITED: Final = 1_000_000
_MAX_TEXT: Final = 200
"""Maximum width of a text that may be shortened, in cells."""
_MIN_VALUE: Final = 20
"""Minimum width of the values in a list of fields, in cells."""

COLORS: Final[Mapping[str, str]] = {
    "active": "green",
    "pending": "yellow",
    "initializing": "yellow",
    "paused": "blue",
    "error": "red",
    "unknown": "yellow",
    "working": "green",
    "idle": "cyan",
    "complete": "green",
    "failed": "red",
    "expired": "yellow",
    "revoked": "red",
    "deactivated": "yellow",
    "suspended": "yellow",
    "ok": "green",
    "note": "yellow",
}
"""The colors of statuses, states and results."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    ``optional``: 0 for a column that is always printed; of the others, that with the greatest number is left out first.
    ``shortest``: the width to which its texts may be shortened, in cells; 0 if they are always printed in full.
    """

    heading: str
    optional: int = 0
    shortest: int = 0
    colors: Mapping[str, str] = field(default_factory=dict)


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings, without the columns for which the terminal is too narrow."""
    texts = [[printable(value) for value in row] for row in rows]
    natural = [
        max(cell_len(column.heading), *(_limited(column, row[at]) for row in texts), 0)
        for at, column in enumerate(columns)
    ]
    shown = _shown_columns(columns, natural, _available())
    widths = _shortened(columns, natural, shown, _available())
    _print_row([colored(columns[at].heading, bold=True) for at in shown], [columns[at].heading for at in shown], widths)
    for row in texts:
        cells = [_cut(row[at], widths[place]) if columns[at].shortest else row[at] for place, at in enumerate(shown)]
        colors = [columns[at].colors.get(row[at], "") for at in shown]
        _print_row([colored(text, color) for text, color in zip(cells, colors, strict=True)], cells, widths)


def fields(*pairs: tuple[str, str]) -> None:
    """Print names and values, without the pairs whose value is empty; long values continue below their beginning.

    The command in ``next`` stays on one line, to be copied.
    """
    shown = [(name, value) for name, value in pairs if value]
    width = max((cell_len(name) for name, _ in shown), default=0)
    for name, value in shown:
        color = COLORS.get(value, "") if name in {"status", "state"} else ""
        label = colored(name, bold=True) + " " * (width - cell_len(name) + _GAP)
        lines = [printable(value)] if name == "next" else wrapped(value, indent=width + _GAP)
        typer.echo(("\n" + " " * (width + _GAP)).join([label + colored(lines[0], color), *lines[1:]]))


def wrapped(text: str, *, indent: int) -> list[str]:
    """Return the lines of a text, each short enough to be printed after ``indent`` cells; words are never divided."""
    width = max(_MIN_VALUE, _available() - indent)
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in printable(paragraph).split(" "):
            if line and cell_len(line) + 1 + cell_len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


def colored(text: str, color: str = "", *, bold: bool = False) -> str:
    """Return a text in a color, if stdout is a terminal that shows colors and ``NO_COLOR`` is not set."""
    plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return text if plain or not (color or bold) else typer.style(text, fg=color or None, bold=bold or None)


def _available() -> int:
    return shutil.get_terminal_size((_UNLIMITED, 24)).columns


def _limited(column: Column, text: str) -> int:
    return min(cell_len(text), _MAX_TEXT) if column.shortest else cell_len(text)


def _shown_columns(columns: Sequence[Column], natural: Sequence[int], available: int) -> list[int]:
    """Return the positions of the columns for which there is room, if texts are as short as they may be."""
    shown = list(range(len(columns)))
    while True:
        least = [min(natural[at], columns[at].shortest or natural[at]) for at in shown]
        last = max(shown, key=lambda at: columns[at].optional)
        if sum(least) + _GAP * (len(shown) - 1) <= available or not columns[last].optional:
            return shown
        shown.remove(last)


def _shortened(columns: Sequence[Column], natural: Sequence[int], shown: Sequence[int], available: int) -> list[int]:
    """Return the widths of the shown columns; the widest texts are shortened first."""
    widths = [natural[at] for at in shown]
    while sum(widths) + _GAP * (len(shown) - 1) > available:
        candidates = [
            place for place, at in enumerate(shown) if columns[at].shortest and widths[place] > columns[at].shortest
        ]
        if not candidates:
            break
        widths[max(candidates, key=widths.__getitem__)] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _print_row(cells: Sequence[str], plain: Sequence[str], widths: Sequence[int]) -> None:
    """Print cells, which may contain colors; ``plain`` are the same cells without them."""
    padded = [cell + " " * (width - cell_len(text)) for cell, text, width in zip(cells, plain, widths, strict=True)]
    typer.echo((" " * _GAP).join(padded).rstrip())
