"""``taskherd doctor``: print the findings of ``taskherd.cli.diagnostics``."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from taskherd.cli.diagnostics.findings import FindingState
from taskherd.cli.diagnostics.roles import Role
from taskherd.cli.diagnostics.run import run_checks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.cli.diagnostics.findings import Finding

_STYLES = {FindingState.OK: "green", FindingState.NOTE: "yellow", FindingState.ERROR: "bold red"}


class RoleChoice(StrEnum):
    """The processes that a machine may be checked for."""

    WORKER = "worker"
    API = "api"
    RUNNER = "runner"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor")(doctor)


def doctor(
    role: Annotated[
        RoleChoice | None,
        typer.Argument(help="What this machine runs; by default what runs with these settings or is set up by them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> None:
    """Check what this machine's processes need, and print how to fix each problem.

    Exits with 1 on errors. Notes are warnings only.
    """
    findings = asyncio.run(run_checks(_roles(role)))
    if as_json:
        typer.echo(orjson.dumps([_as_json(each) for each in findings], option=orjson.OPT_INDENT_2))
    else:
        _print(findings)
    if any(finding.state is FindingState.ERROR for finding in findings):
        raise typer.Exit(1)


def _roles(choice: RoleChoice | None) -> tuple[Role, ...]:
    if choice is None:
        return ()
    return tuple(Role) if choice is RoleChoice.ALL else (Role(choice.value),)


def _as_json(finding: Finding) -> dict[str, str]:
    return {"check": finding.what, "result": finding.state, "found": finding.found, "advice": finding.advice}


def _print(findings: Iterable[Finding]) -> None:
    table = Table(title="taskherd doctor", title_justify="left")
    table.add_column("result", no_wrap=True)
    for heading in ("check", "found", "how to fix it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.state, finding.what, finding.found, finding.advice, style=_STYLES[finding.state])
    Console(markup=False, highlight=False).print(table)
