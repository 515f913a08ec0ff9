"""Print the findings of checks, for people or programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from taskherd.cli.diagnostics.findings import FindingState
from taskherd.cli.output import OutputFormat, document, printable
from taskherd.cli.tables import COLORS, colored, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskherd.cli.diagnostics.findings import Finding

_INDENT: Final = max(map(len, FindingState)) + 2


def show_findings(findings: Sequence[Finding], output: OutputFormat) -> None:
    """Print the findings, and exit with 1 if one is an error."""
    if output is OutputFormat.JSON:
        document([_as_json(each) for each in findings])
    else:
        _print(findings)
    if any(finding.state is FindingState.ERROR for finding in findings):
        raise typer.Exit(1)


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
