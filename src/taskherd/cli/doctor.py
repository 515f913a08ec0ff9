"""``taskherd doctor``: print the findings of ``taskherd.cli.diagnostics``."""

from __future__ import annotations

import asyncio

import typer
from rich.console import Console
from rich.table import Table

from taskherd.cli.diagnostics import FindingState, run_checks

_STYLES = {FindingState.OK: "green", FindingState.NOTE: "yellow", FindingState.ERROR: "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Check settings, database and broker, and print how to fix each problem.

    Exits with 1 on errors. Notes are warnings only.
    """
    findings = asyncio.run(run_checks())
    table = Table(title="taskherd doctor", title_justify="left")
    table.add_column("result", no_wrap=True)
    for heading in ("check", "found", "how to fix it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.state, finding.what, finding.found, finding.advice, style=_STYLES[finding.state])
    Console(markup=False, highlight=False).print(table)
    if any(finding.state is FindingState.ERROR for finding in findings):
        raise typer.Exit(1)
