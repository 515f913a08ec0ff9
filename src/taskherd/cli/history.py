"""``taskherd task events``, ``durations`` and ``builds``: what happened to a task so far."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.cli import task_output
from taskherd.cli.output import OutputFormat, OutputOption, document, print_note
from taskherd.cli.task import EXIT_CODES, TaskArgument, app
from taskherd.client import http, tasks

__all__ = ["app"]


@app.command(epilog=EXIT_CODES)
def events(
    task: TaskArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="Maximum number of entries, the newest.")] = 50,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show a task's timeline, oldest first: who did what, and what changed."""
    entries = tasks.timeline(http.from_environment(), task, limit)
    if output is OutputFormat.JSON:
        document(entries)
    elif entries:
        task_output.timeline(entries)
    else:
        print_note("No entries: the task's history was deleted after its retention.")


@app.command(epilog=EXIT_CODES)
def durations(task: TaskArgument, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show how long a task was in each state, the longest first."""
    found = tasks.durations(http.from_environment(), task)
    if output is OutputFormat.JSON:
        document(found)
    else:
        task_output.durations(found)


@app.command(epilog=EXIT_CODES)
def builds(
    task: TaskArgument,
    log: Annotated[
        int | None,
        typer.Option(
            "--log", metavar="NUMBER", min=1, help="Show the log of this one instead, with that of its agent."
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the starts and stops of a task's workspace, newest first, and why one failed. Times of a log are in UTC."""
    client = http.from_environment()
    found = tasks.builds(client, task) if log is None else tasks.build_log(client, task, log)
    if output is OutputFormat.JSON:
        document(found)
    elif log is None:
        task_output.builds(found)
    elif found:
        task_output.build_log(found)
    else:
        print_note("Its log is empty, or was pruned.")
