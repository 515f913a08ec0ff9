"""``taskherd template``: check that this machine can run the agent of a template."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from taskherd.cli.diagnostics.template import MAX_SECONDS, check_template
from taskherd.cli.findings_output import show_findings
from taskherd.cli.output import OutputFormat, OutputOption, print_error, printable
from taskherd.directory_file.document import MAX_BYTES
from taskherd.directory_file.parse import InvalidDirectory, parse_templates
from taskherd.settings import load

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from taskherd.cli.diagnostics.findings import Finding
    from taskherd.directory_file.model import TemplatePart

FILE: Final = "directory.yaml"
"""The file that is read if none is named: what ``taskherd directory example`` is written to."""

app = typer.Typer(help="Check that a runner's machine can run the agent of a template.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Keep `check` a command of its own: typer runs an only command without its name."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Template, as NAME or ORGANIZATION/NAME.")],
    file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            "--file", "-f", help="Directory file, or one with `templates:` only; - is stdin.", show_default=FILE
        ),
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(
            help="Maximum time in seconds.", min=10, max=MAX_SECONDS, show_default="30, or the template's start_timeout"
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Start the agent of a template once, without a task, and print what is missing.

    Run it on a runner's machine, as the runner's user and with its settings: the agent gets the variables, limits and
    isolation that the runner would give it, in a temporary folder. No process and no file of the agent is left.
    Exits with 1 on errors. Notes are warnings only.
    """
    file = file or _open_default()
    try:
        template = _find(parse_templates(file.read(MAX_BYTES + 1)), name)
    except InvalidDirectory as error:
        print_error(f"{file.name.strip('<>')} is invalid", *map(printable, error.problems))
        raise typer.Exit(1) from None
    settings = load("runner_root")
    findings = asyncio.run(_until_terminated(check_template(template, settings, os.environ, timeout)))
    show_findings(findings, output)


def _open_default() -> typer.FileBinaryRead:
    """Open the file that is read if none is named; exit with 1 if this folder has none."""
    try:
        return cast("typer.FileBinaryRead", Path(FILE).open("rb"))
    except OSError as error:
        print_error(f"{FILE} of this folder cannot be read: {error.strerror}", "name the directory file with --file")
        raise typer.Exit(1) from None


def _find(templates: Sequence[TemplatePart], name: str) -> TemplatePart:
    """Return the template of that name; exit with 1 if there is none or more than one."""
    names = [f"{each.organization}/{each.name}" for each in templates]
    found = [each for each, full in zip(templates, names, strict=True) if name in {each.name, full}]
    if len(found) == 1:
        return found[0]
    problem = "several templates are" if found else "no template is"
    print_error(f"{problem} named {printable(name)} in the file", f"it has: {printable(', '.join(names))}")
    raise typer.Exit(1)


async def _until_terminated(work: Coroutine[Any, Any, Sequence[Finding]]) -> Sequence[Finding]:
    """Await the work; SIGTERM cancels it as SIGINT does, so that it ends its agent."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        print_error("the check was ended; so was its agent")
        raise typer.Exit(1) from None
