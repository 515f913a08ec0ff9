"""``taskherd doctor``: print the findings of ``taskherd.cli.diagnostics``."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from taskherd.cli.diagnostics.findings import FindingState
from taskherd.cli.diagnostics.roles import Role
from taskherd.cli.diagnostics.run import run_checks
from taskherd.cli.output import OutputFormat, OutputOption, document, printable
from taskherd.cli.tables import COLORS, colored, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.cli.diagnostics.findings import Finding

_INDENT = max(map(len, FindingState)) + 2


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
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Check what this machine's processes need, and print how to fix each problem.

    Exits with 1 on errors. Notes are warnings only.
    """
    findings = asyncio.run(run_checks(_roles(role)))
    if output is OutputFormat.JSON:
        document([_as_json(each) for each in findings])
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
    """Print each finding, and below it how to fix it; nothing is cut off, however narrow the terminal is."""
    for finding in findings:
        result = colored(finding.state, COLORS[finding.state]) + " " * (_INDENT - len(finding.state))
        lines = wrapped(f"{printable(finding.what)}: {finding.found}", indent=_INDENT)
        if finding.advice:
            lines += wrapped(f"To fix it: {finding.advice}", indent=_INDENT)
        typer.echo(result + ("\n" + " " * _INDENT).join(lines))
