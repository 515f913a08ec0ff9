"""`taskherd task wait` and `taskherd task watch`: until a task is as it should be, or for as long as somebody looks."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.cli import output as task_output
from taskherd.cli.output import OutputFormat, OutputOption
from taskherd.cli.task import CODES, Named, app
from taskherd.client import events, http, tasks
from taskherd.client.errors import ClientError, ExitCode

__all__ = ["app"]

UNTIL = "idle,complete"


def _duration(written: str) -> float:
    from taskherd.settings import durations  # noqa: PLC0415 - only waiting needs the settings, which take their time

    try:
        return durations.parse(written)
    except ValueError:
        raise typer.BadParameter(f"{written!r}; expected {durations.HOW_TO_WRITE}") from None


@app.command(epilog=CODES)
def wait(
    task: Named,
    until: Annotated[
        str, typer.Option("--until", help="Values of its status or its agent's state, with commas between them.")
    ] = UNTIL,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="10m", parser=_duration, help="How long to wait: 30s, 10m, 2h.")
    ] = "1h",  # type: ignore[assignment] # read by the parser
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Wait until a task is idle or complete, or as --until says; 3: it failed instead, 124: not in time."""
    wanted = {each.strip().lower() for each in until.split(",") if each.strip()}
    told, in_time = tasks.wait(http.from_environment(), task, sorted(wanted), timeout)
    if output is OutputFormat.JSON:
        task_output.document(told)
    else:
        task_output.tasks([told])
    if not in_time:
        from taskherd.settings import durations  # noqa: PLC0415

        raise ClientError(
            ExitCode.TIMEOUT, f"not {until} within {durations.render(timeout)}", "`taskherd task explain` says why"
        )
    now = set(tasks.status_and_state(told))
    if not now & wanted and now & set(tasks.FAILURES):
        raise ClientError(ExitCode.FAILED, "the task failed", "`taskherd task explain` says why")


@app.command(epilog=CODES)
def watch(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="An id, a name, or owner/name; else all.")
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="Without TASK: only those of this user.")] = "me",
    everybody: Annotated[bool, typer.Option("--all", help="Without TASK: all that you may see.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show tasks and each change of them, a line each, until Ctrl-C or the end of the one task."""
    client = http.from_environment()
    path = (*tasks.path_of(task), "watch") if task else ("tasks", "watch")
    query = None if task or everybody else {"q": f'owner:"{owner}"'}
    for event in events.stream_events(client, *path, query=query, notice=_notice):
        if output is OutputFormat.JSON:
            task_output.line({"event": event.type, "id": event.id, "data": event.data})
        else:
            snapshot = event.type == "task.snapshot"
            told = event.data if snapshot else event.data["data"]["task"]
            task_output.change(event.type, told, told["updated_at"] if snapshot else event.data["time"])
        if task and event.type == "task.deleted":
            return


def _notice(what: str) -> None:
    typer.echo(f"taskherd: {task_output.printable(what)}; asking again", err=True)
