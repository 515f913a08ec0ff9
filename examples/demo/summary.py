"""The end of the demo in words: what was expected, what came, the dead letters, the numbers, where to look on."""

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
    "SELECT version, status, document->'current_state'->>'message' AS said, name"
    " FROM tasks ORDER BY created_at DESC LIMIT 12"
)
_MAX_BODY: Final = 40
_MAX_DETAIL: Final = 90


def show(console: Console, findings: Sequence[Expectation]) -> None:
    """Print a tick or a cross for each expectation."""
    console.print()
    for finding in findings:
        mark = Text("✓ ", style="bold green") if finding.met else Text("✗ ", style="bold red")
        console.print(mark + Text(finding.expected, style="bold") + Text(f"\n    {finding.actual}"), soft_wrap=True)


def letters(found: Sequence[DeadLetter]) -> Iterator[str]:
    """A line for each dead letter."""
    for letter in found:
        body = letter.body[:_MAX_BODY].decode("utf-8", "backslashreplace")
        printable = "".join(each if each.isprintable() else "·" for each in body)
        yield f"dead letter {letter.id}: {letter.reason}, {letter.detail[:_MAX_DETAIL]} | {printable}"


def numbers(first: Reading | None, last: Reading, board: TaskTable) -> Iterator[str]:
    """What went through the worker, and how long it took."""
    before = first or Reading()
    outcomes = sorted(
        (outcome, count - before.by_outcome.get(outcome, 0)) for outcome, count in last.by_outcome.items()
    )
    told = ", ".join(f"{count:.0f} {outcome}" for outcome, count in outcomes if count)
    yield f"{last.reports - before.reports:.0f} reports: {told}"
    yield f"{board.events} change events seen, {board.repeats} repeats"
    if board.lags:
        half, most = (_quantile(board.lags, share) * 1000 for share in (0.5, 0.99))
        yield f"from a report's making to its event: p50 {half:.0f} ms, p99 {most:.0f} ms ({len(board.lags)} measured)"


def further(folder: Path, *, private: bool) -> Iterator[str]:
    """Commands that show more, as they are to be typed from here."""
    taskherd = _taskherd()
    if private:
        yield f"{taskherd} dev --data {folder}"
        yield "    starts the demo's RabbitMQ and PostgreSQL, a worker and the API again; then, in another terminal:"
    yield f". {folder}/env"
    for words in ("dead list", "doctor", "config"):
        yield f"{taskherd} {words}"
    if (psql := _psql()) is not None:
        yield f'{psql} "$TASKHERD_DATABASE_URL" -c "{_QUERY}"'
    yield f"less {folder}/worker.log {folder}/api.log {folder}/runner.log; ls {folder}/agents/*/work"
    yield "make dev    starts a RabbitMQ, a PostgreSQL, a worker, the API and a runner for yourself"


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that a `share` of the others does not exceed, the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _taskherd() -> str:
    script = Path(sys.executable).with_name("taskherd")
    return _short(script) if script.exists() else f"{_short(Path(sys.executable))} -m taskherd"


def _psql() -> str | None:
    found = shutil.which("psql")
    if found is not None:
        return "psql"
    binaries = postgres.find()
    if isinstance(binaries, postgres.PostgresBinaries) and (path := binaries.folder / "psql").exists():
        return _short(path)
    return None


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
