"""``taskherd task interrupt``, ``pause``, ``resume`` and ``delete``: one task, several, or all that match a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from taskherd.cli import bulk
from taskherd.cli.history import app
from taskherd.cli.output import OutputFormat, OutputOption, document, line, print_failure, printable
from taskherd.cli.task import EXIT_CODES, complete_names
from taskherd.client import http, tasks
from taskherd.client.errors import ApiError, ClientError, ExitCode

__all__ = ["app"]

TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK...]",
        help="Ids, names, or owner/name of the tasks.",
        autocompletion=complete_names,
        show_default=False,
    ),
]


@app.command(epilog=EXIT_CODES)
def interrupt(
    task: TasksArgument = None,
    *,
    query: bulk.QueryOption = None,
    dry_run: bulk.DryRunOption = False,
    yes: bulk.YesOption = False,
    key: bulk.KeyOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """End what agents do: their turn, or the agent itself if nothing less helps; `task resume` starts that again.

    Each task is judged by itself; the exit code is that of the first one that is refused. With --query, all tasks that
    match are changed in the background, at a limited rate; Ctrl-C cancels what is left.
    """
    _change_all("interrupt", task, query, key=key, dry_run=dry_run, yes=yes, output=output)


@app.command(epilog=EXIT_CODES)
def pause(
    task: TasksArgument = None,
    *,
    query: bulk.QueryOption = None,
    dry_run: bulk.DryRunOption = False,
    yes: bulk.YesOption = False,
    key: bulk.KeyOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Pause tasks: stop their workspaces and keep their files.

    Each task is judged by itself; the exit code is that of the first one that is refused. With --query, all tasks that
    match are changed in the background, at a limited rate; Ctrl-C cancels what is left.
    """
    _change_all("pause", task, query, key=key, dry_run=dry_run, yes=yes, output=output)


@app.command(epilog=EXIT_CODES)
def resume(
    task: TasksArgument = None,
    *,
    query: bulk.QueryOption = None,
    dry_run: bulk.DryRunOption = False,
    yes: bulk.YesOption = False,
    key: bulk.KeyOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Start tasks again that are paused, or whose agent ended, is lost, or did not start.

    Each task is judged by itself; the exit code is that of the first one that is refused. With --query, all tasks that
    match are changed in the background, at a limited rate; Ctrl-C cancels what is left.
    """
    _change_all("resume", task, query, key=key, dry_run=dry_run, yes=yes, output=output)


@app.command(epilog=EXIT_CODES)
def delete(
    task: TasksArgument = None,
    *,
    query: bulk.QueryOption = None,
    dry_run: bulk.DryRunOption = False,
    yes: bulk.YesOption = False,
    key: bulk.KeyOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete tasks and their workspaces.

    Each task is judged by itself; the exit code is that of the first one that is refused. With --query, all tasks that
    match are changed in the background, at a limited rate; Ctrl-C cancels what is left.
    """
    _change_all("delete", task, query, key=key, dry_run=dry_run, yes=yes, output=output)


def _change_all(
    action: str,
    references: list[str] | None,
    query: str | None,
    *,
    key: str | None,
    dry_run: bool,
    yes: bool,
    output: OutputFormat,
) -> None:
    """Do one thing to the tasks that are named, or to all that match a search."""
    bulk.one_of(references, query)
    if query is not None:
        bulk.act(action, query, key=key, dry_run=dry_run, yes=yes, output=output)
    elif dry_run or yes or key:
        raise ClientError(ExitCode.USAGE, "--dry-run, --yes and --idempotency-key are for --query")
    elif action == "delete":
        _delete_each(references or [], output)
    elif action == "interrupt":
        _interrupt_each(references or [], output)
    else:
        _request_builds(references or [], action, output)


def _delete_each(references: list[str], output: OutputFormat) -> None:
    """Delete each task."""
    client = http.from_environment()
    _change_each(
        references,
        output,
        change=lambda path: tasks.change(client, "DELETE", *path),
        result=lambda reference, _: {"task": reference, "deleted": True},
        sentence=lambda _: "Deleted; its workspace will be removed.",
    )


def _interrupt_each(references: list[str], output: OutputFormat) -> None:
    """Interrupt the agent of each task."""
    client = http.from_environment()
    _change_each(
        references,
        output,
        change=lambda path: tasks.change(client, "POST", *path, "interrupt"),
        result=lambda reference, body: {"task": reference, **body},
        sentence=lambda _: "The agent is being interrupted; `taskherd task explain` says what became of it.",
    )


def _request_builds(references: list[str], action: str, output: OutputFormat) -> None:
    """Request a build of each task."""
    client = http.from_environment()
    _change_each(
        references,
        output,
        change=lambda path: tasks.change(client, "POST", *path, action),
        result=lambda _, body: body,
        sentence=_requested_build,
    )


def _requested_build(body: Any) -> str:
    build = body["workspace_build"]
    return f"Build {build['build_number']} ({build['transition']}) was requested; its id is {build['id']}."


def _change_each(
    references: list[str],
    output: OutputFormat,
    *,
    change: Callable[[tuple[str, str, str]], http.ApiResponse],
    result: Callable[[str, Any], Any],
    sentence: Callable[[Any], str],
) -> None:
    """Change each task; go on after a refusal, and exit with the code of the first one at the end.

    ``result`` is called with the reference and the response's body, and returns the JSON to print; ``sentence`` returns
    what people read instead.
    """
    paths = [tasks.path_of(each) for each in references]  # a wrong reference is found before anything is changed
    refused: list[ApiError] = []
    for reference, path in zip(references, paths, strict=True):
        try:
            body = change(path).body
        except ApiError as error:
            if len(references) == 1:
                raise
            refused.append(error)
            print_failure(error, about=reference)
            continue
        if output is OutputFormat.JSON:
            (document if len(references) == 1 else line)(result(reference, body))
        else:
            name = f"{printable(reference)}: " if len(references) > 1 else ""
            typer.echo(name + sentence(body))
    if refused:
        raise typer.Exit(refused[0].code)
