"""``taskherd task wait`` and ``taskherd task watch``: follow tasks over time."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd import durations
from taskherd.cli import output as task_output
from taskherd.cli.output import OutputFormat, OutputOption
from taskherd.cli.task import EXIT_CODES, TaskArgument, app
from taskherd.client import events, http, tasks
from taskherd.client.errors import ClientError, ExitCode

__all__ = ["app"]

UNTIL = "idle,complete"
_EXPLAIN = "run `taskherd task explain` to see why"
_NEXT = "run `taskherd task explain` to see why, and `taskherd task resume` to start the agent again"


def _duration(written: str) -> float:
    try:
        return durations.parse(written)
    except ValueError:
        raise typer.BadParameter(f"{written!r}; expected {durations.HOW_TO_WRITE}") from None


@app.command(epilog=EXIT_CODES)
def wait(
    task: TaskArgument,
    until: Annotated[
        str, typer.Option("--until", help="Task statuses or agent states to wait for, separated by commas.")
    ] = UNTIL,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="DURATION", parser=_duration, help="Maximum wait: 30s, 10m, 2h.")
    ] = "1h",  # type: ignore[assignment] # read by the parser
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Wait until a task is idle or complete, or as --until says.

    Exits with 3 if the task fails instead, or if its agent ends or is lost; with 124 on timeout.
    """
    awaited = {each.strip().lower() for each in until.split(",") if each.strip()}
    document, in_time = tasks.wait(http.from_environment(), task, sorted(awaited), timeout)
    if output is OutputFormat.JSON:
        task_output.document(document)
    else:
        task_output.tasks([document])
    if not in_time:
        message = f"the task did not become {' or '.join(sorted(awaited))} within {durations.render(timeout)}"
        raise ClientError(ExitCode.TIMEOUT, message, _EXPLAIN)
    reached = set(tasks.status_and_state(document))
    if reached & awaited:
        return
    note = task_output.agent_note(document, words=True)
    if note:
        raise ClientError(ExitCode.FAILED, f"the agent {note}", _NEXT)
    raise ClientError(ExitCode.FAILED, "the task failed", _EXPLAIN)


@app.command(epilog=EXIT_CODES)
def watch(
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="Id, name, or owner/name of the task. Default: all your tasks."),
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="Without TASK: only tasks of this user.")] = "me",
    all_owners: Annotated[bool, typer.Option("--all", help="Without TASK: all tasks visible to you.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show tasks and then each of their changes, one per line.

    Runs until Ctrl-C, or until the given task is deleted. Reconnects if the connection is lost.
    """
    client = http.from_environment()
    path = (*tasks.path_of(task), "watch") if task else ("tasks", "watch")
    query = None if task or all_owners else {"q": f'owner:"{owner}"'}
    for event in events.stream_events(client, *path, query=query, notice=_notice):
        if output is OutputFormat.JSON:
            task_output.line({"event": event.type, "id": event.id, "data": event.data})
        else:
            is_snapshot = event.type == "task.snapshot"
            document = event.data if is_snapshot else event.data["data"]["task"]
            task_output.change(event.type, document, document["updated_at"] if is_snapshot else event.data["time"])
        if task and event.type == "task.deleted":
            return


def _notice(reason: str) -> None:
    task_output.print_error(f"{task_output.printable(reason)}; reconnecting")
