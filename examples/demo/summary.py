"""The demo's summary: expectations, dead letters, figures, and commands to explore the results."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from examples.demo.checks import Expectation
from examples.demo.metrics import Reading
from examples.demo.task_table import TaskTable
from taskherd.dev import postgres
from taskherd.messages.dead_letters import DeadLetter

_QUERY: Final = (
    "SELECT version, status, document->'current_state'->>'message' AS message, name"
    " FROM tasks ORDER BY created_at DESC LIMIT 12"
)
_MAX_BODY: Final = 40
_MAX_DETAIL: Final = 90


def show(console: Console, expectations: Sequence[Expectation]) -> None:
    """Print each expectation with a tick or a cross, and below it what happened."""
    console.print()
    for each in expectations:
        mark = Text("✓ ", style="bold green") if each.met else Text("✗ ", style="bold red")
        console.print(mark + Text(each.expected, style="bold") + Text(f"\n    {each.actual}"), soft_wrap=True)


def dead_letter_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    """Yield a line for each dead letter."""
    for letter in letters:
        body = letter.body[:_MAX_BODY].decode("utf-8", "backslashreplace")
        printable = "".join(each if each.isprintable() else "·" for each in body)
        yield f"dead letter {letter.id}: {letter.reason}, {letter.detail[:_MAX_DETAIL]} | {printable}"


def numbers(first: Reading | None, last: Reading, tasks: TaskTable) -> Iterator[str]:
    """Yield lines with the number of reports and events, and the latency."""
    before = first or Reading()
    outcomes = sorted(
        (outcome, count - before.by_outcome.get(outcome, 0)) for outcome, count in last.by_outcome.items()
    )
    counts = ", ".join(f"{count:.0f} {outcome}" for outcome, count in outcomes if count)
    yield f"{last.reports - before.reports:.0f} reports processed, by outcome: {counts}"
    yield f"{tasks.events} change events received, and {tasks.repeats} duplicates"
    if tasks.lags:
        p50, p99 = (_quantile(tasks.lags, share) * 1000 for share in (0.5, 0.99))
        yield f"latency from report to change event: p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(tasks.lags)} measured)"


def next_steps(folder: Path, *, private: bool) -> Iterator[str]:
    """Yield commands that show more, as they can be typed in the current folder."""
    taskherd = _taskherd()
    if private:
        yield f"{taskherd} dev --data {folder}"
        yield "    starts the system again on the demo's data; then, in another terminal:"
    yield f". {folder}/env"
    for command in (*(("task list",) if private else ()), "dead list", "doctor", "config"):
        yield f"{taskherd} {command}"
    if (psql := _psql()) is not None:
        yield f'{psql} "$TASKHERD_DATABASE_URL" -c "{_QUERY}"'
    yield f"less {folder}/worker.log {folder}/api.log {folder}/runner.log; ls {folder}/agents/*/work"
    yield "make dev    starts a new, empty installation to try things yourself"


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a ``share`` of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _taskherd() -> str:
    script = Path(sys.executable).with_name("taskherd")
    return _short(script) if script.exists() else f"{_short(Path(sys.executable))} -m taskherd"


def _psql() -> str | None:
    if shutil.which("psql") is not None:
        return "psql"
    binaries = postgres.find()
    if isinstance(binaries, postgres.PostgresBinaries) and (path := binaries.folder / "psql").exists():
        return _short(path)
    return None


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
