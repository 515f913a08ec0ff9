"""The live display: a table where there is a terminal, else a line for each change."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.demo.metrics import Meter
from examples.demo.task_table import DemoTask, TaskTable

_EVERY: Final = 0.25
_STYLES: Final = {
    "active": "green",
    "paused": "blue",
    "error": "red",
    "working": "cyan",
    "complete": "green",
    "failed": "red",
    "healthy": "green",
}


class Screen:
    """Shows what the board knows; `say` adds a line of what the demo itself does."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._open.enter_context(self._live)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._open.close()

    def say(self, line: str) -> None:
        """Tell what the demo does now."""
        self.console.print(Text(f"{self._passed():5.1f}s  {line}", style="bold"), soft_wrap=True)

    def changed(self, row: DemoTask) -> None:
        """Show that a task changed."""
        if self._live is None:
            said = f"{row.state}: {row.message}" if row.state else "-"
            status = "deleted" if row.deleted else row.status
            task = f"{row.scenario.name:<16} v{row.version:<3}"
            line = f"{self._passed():5.1f}s  {task} {status:<12} {row.health or '-'} | {said}"
            self.console.print(Text(line), soft_wrap=True)

    async def run(self, board: TaskTable, meter: Meter) -> None:
        """Read the metrics and draw, until cancelled."""
        read_at = 0.0
        while True:
            if monotonic() - read_at >= 1:
                read_at = monotonic()
                await meter.read()
            if self._live is not None:
                self._live.update(self.table(board, meter), refresh=True)
            await asyncio.sleep(_EVERY)

    def table(self, board: TaskTable, meter: Meter) -> Table:
        """All tasks as they stand."""
        seen = meter.last
        counts = f"{seen.reports:.0f} reports, {seen.events:.0f} events, {seen.dead_lettered:.0f} dead letters"
        table = Table(title=f"{self._passed():.0f} s · {meter.rate:.1f} reports/s · {counts}", expand=True)
        table.add_column("task", no_wrap=True, ratio=3)
        table.add_column("status", no_wrap=True, width=12)
        table.add_column("current_state", no_wrap=True, width=13)
        table.add_column("message", no_wrap=True, ratio=5)
        table.add_column("health", no_wrap=True, ratio=3)
        table.add_column("v", justify="right", min_width=3)
        for row in board.rows.values():
            status = "deleted" if row.deleted else row.status
            health = Text(row.health or "-", style=_STYLES.get(row.health, "yellow" if row.health else ""))
            cells = (_styled(status), _styled(row.state), Text(row.message), health, Text(str(row.version or "")))
            table.add_row(
                Text(row.scenario.name if row.task_id else f"({row.scenario.prompt})"),
                *cells,
                style="dim" if row.deleted else "",
            )
        return table

    def _passed(self) -> float:
        return monotonic() - self._began


def _styled(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, ""))
