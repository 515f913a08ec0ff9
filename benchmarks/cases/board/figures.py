"""The figures of the board: each with its target and whether it is met; and how many values become one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADER = "| what | measured | target | met |\n|---|---:|---:|---|"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value in ``unit``, and the largest that is good enough; None if there is no target."""

    what: str
    value: float
    unit: str
    most: float | None = None
    detail: str = ""

    @property
    def met(self) -> bool:
        """True if the target is met or there is none."""
        return self.most is None or self.value <= self.most

    @property
    def line(self) -> str:
        """The figure as a row in Markdown."""
        target = "" if self.most is None else f"≤ {_number(self.most)} {self.unit}"
        met = "" if self.most is None else "yes" if self.met else "**no**"
        measured = f"{_number(self.value)} {self.unit}" + (f" ({self.detail})" if self.detail else "")
        return f"| {self.what} | {measured} | {target} | {met} |"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    return "\n".join([HEADER, *(figure.line for figure in figures)])


def growth(values: Sequence[float]) -> float:
    """Return the highest value of the second half minus that of the first, which is about 0 for what does not grow.

    Raise ``ValueError`` for fewer than two values.
    """
    half = len(values) // 2
    return max(values[half:]) - max(values[:half])


def percentile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest value that is at least as large as this share of all, each counted as often as it is there.

    Raise ``ValueError`` if there is none.
    """
    most = ceil(sum(counts.values()) * share)
    for value in sorted(counts):
        most -= counts[value]
        if most <= 0:
            return value
    message = "there are no values"
    raise ValueError(message)


def _number(value: float) -> str:
    """Return a number with a decimal place only where that says something."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.1f}"
