"""What a run of the board's benchmark measures: its sizes, its services, and a line for each measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness.services import BenchmarkServices


@dataclass(frozen=True, slots=True)
class Plan:
    """The services, and the sizes of the parts.

    ``sizes``: numbers of tasks of ``filters`` and ``first_row``; ``boards`` and ``seconds``: number of feeds and
    duration of ``boards``, of which each has all tasks if ``everyone``, else those of an owner of its own; ``rate``:
    changes per second of ``boards`` and ``tab``; ``minutes`` and ``samples``: duration of ``tab``, and how often it
    looks at the memory; ``rounds``: loads of the page of ``interactive``, and how often ``first_row`` uses each filter;
    ``than``: folder of a checkout to compare them with, or none; ``list_seconds``: duration of each list of
    ``filters``.
    """

    services: BenchmarkServices
    sizes: tuple[int, ...]
    boards: int
    seconds: float
    everyone: bool
    rate: int
    minutes: float
    samples: int
    rounds: int
    list_seconds: float
    than: str = ""

    def log(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)
