"""The demo's display: a live table on a terminal, else a line for each change."""

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

_REFRESH_INTERVAL: Final = 0.25
"""Seconds between two updates of the table."""
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
    """A display of the task table; ``say`` adds a line about what the demo does."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started_at = monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._exit_stack = ExitStack()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._exit_stack.enter_context(self._live)
        else:
            self.console.print(
                Text("  time  task             version status   agent health | state: message", style="bold")
            )
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._exit_stack.close()

    def say(self, line: str) -> None:
        """Print a line about what the demo does."""
        self.console.print(Text(f"{self._elapsed():5.1f}s  {line}", style="bold"), soft_wrap=True)

    def changed(self, row: DemoTask) -> None:
        """Print a change of a task, unless the live table shows it."""
        if self._live is None:
            state = f"{row.state}: {row.message}" if row.state else "-"
            status = "deleted" if row.deleted else row.status
            task = f"{row.scenario.name:<16} v{row.version:<3}"
            line = f"{self._elapsed():5.1f}s  {task} {status:<12} {row.health or '-'} | {state}"
            self.console.print(Text(line), soft_wrap=True)

    async def run(self, tasks: TaskTable, meter: Meter) -> None:
        """Read the metrics and refresh the table until cancelled."""
        read_at = 0.0
        while True:
            if monotonic() - read_at >= 1:
                read_at = monotonic()
                await meter.read()
            if self._live is not None:
                self._live.update(self.table(tasks, meter), refresh=True)
            await asyncio.sleep(_REFRESH_INTERVAL)

    def table(self, tasks: TaskTable, meter: Meter) -> Table:
        """Return a table of all tasks, with the worker's counters in its title."""
        total = meter.last
        counts = f"{total.reports:.0f} reports, {total.events:.0f} events, {total.dead_lettered:.0f} dead letters"
        table = Table(title=f"{self._elapsed():.0f} s · {meter.rate:.1f} reports/s · {counts}", expand=True)
        table.add_column("task", no_wrap=True, ratio=3)
        table.add_column("status", no_wrap=True, width=12)
        table.add_column("state", no_wrap=True, width=13)
        table.add_column("message", no_wrap=True, ratio=5)
        table.add_column("agent health", no_wrap=True, ratio=3)
        table.add_column("version", justify="right", min_width=3)
        for row in tasks.rows.values():
            status = "deleted" if row.deleted else row.status
            health = Text(row.health or "-", style=_STYLES.get(row.health, "yellow" if row.health else ""))
            cells = (_styled(status), _styled(row.state), Text(row.message), health, Text(str(row.version or "")))
            table.add_row(
                Text(row.scenario.name if row.task_id else f"({row.scenario.prompt})"),
                *cells,
                style="dim" if row.deleted else "",
            )
        return table

    def _elapsed(self) -> float:
        return monotonic() - self._started_at


def _styled(value: str) -> Text:
    return Text(value, style=_STYLES.get(value, ""))
