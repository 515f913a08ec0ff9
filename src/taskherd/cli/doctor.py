"""``taskherd doctor``: print the findings of ``taskherd.cli.diagnostics``."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from taskherd.cli.diagnostics.roles import Role
from taskherd.cli.diagnostics.run import run_checks
from taskherd.cli.findings_output import show_findings
from taskherd.cli.output import OutputFormat, OutputOption


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
    show_findings(findings, output)


def _roles(choice: RoleChoice | None) -> tuple[Role, ...]:
    if choice is None:
        return ()
    return tuple(Role) if choice is RoleChoice.ALL else (Role(choice.value),)
