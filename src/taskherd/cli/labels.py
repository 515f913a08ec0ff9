"""``taskherd task label``: set and remove labels of a task."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taskherd.cli import task_output
from taskherd.cli.lists import app
from taskherd.cli.output import OutputFormat, OutputOption, document
from taskherd.cli.task import EXIT_CODES, TaskArgument
from taskherd.client import http, tasks
from taskherd.client.errors import ClientError, ExitCode

__all__ = ["app"]


@app.command(epilog=EXIT_CODES)
def label(
    task: TaskArgument,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE|KEY-...", help="Labels to set, and keys of labels to remove, each with -."),
    ],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Set labels of a task, such as repo=acme/app, and remove others, such as team-. Lists select tasks by them."""
    body = {"labels": _changes(changes)}
    client = http.from_environment()
    changed = tasks.change(client, "PATCH", *tasks.path_of(task), "labels", body=body).body
    if output is OutputFormat.JSON:
        document(changed)
    else:
        task_output.task(changed, page=client.page("tasks", changed["owner_name"], changed["name"]))


def _changes(texts: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and key.endswith("-"):
            changes[key[:-1]] = None
        elif equals:
            changes[key] = value
        else:
            raise ClientError(ExitCode.USAGE, f"invalid label {text!r}", "expected KEY=VALUE, or KEY- to remove it")
    return changes
