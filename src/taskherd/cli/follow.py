"""``taskherd task wait``, ``watch`` and ``logs``: follow tasks over time."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd import durations
from taskherd.cli import task_output
from taskherd.cli.lifecycle import app
from taskherd.cli.options import parse_duration
from taskherd.cli.output import (
    OutputFormat,
    OutputOption,
    command_line,
    document,
    line,
    print_error,
    print_note,
    printable,
)
from taskherd.cli.task import EXIT_CODES, TaskArgument
from taskherd.client import events, http, task_logs, tasks
from taskherd.client.conversation import Entry
from taskherd.client.errors import ClientError, ExitCode

__all__ = ["app"]

UNTIL = "idle,complete"
_EXPLAIN = "run `taskherd task explain` to see why"
_NEXT = "run `taskherd task explain` to see why, and `taskherd task resume` to start the agent again"


@app.command(epilog=EXIT_CODES)
def wait(
    task: TaskArgument,
    until: Annotated[
        str, typer.Option("--until", help="Task statuses or agent states to wait for, separated by commas.")
    ] = UNTIL,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="DURATION", parser=parse_duration, help="Maximum wait: 30s, 10m, 2h.")
    ] = "1h",  # type: ignore[assignment] # read by the parser
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Wait until a task is idle or complete, or as --until says.

    Exits with 3 if the task fails instead, or if its agent ends or is lost; with 124 on timeout.
    """
    awaited = {each.strip().lower() for each in until.split(",") if each.strip()}
    reached, in_time = tasks.wait(http.from_environment(), task, sorted(awaited), timeout)
    if output is OutputFormat.JSON:
        document(reached)
    else:
        task_output.tasks([reached])
    if not in_time:
        message = f"the task did not become {' or '.join(sorted(awaited))} within {durations.render(timeout)}"
        raise ClientError(ExitCode.TIMEOUT, message, _EXPLAIN)
    if awaited.intersection(tasks.status_and_state(reached)):
        return
    note = task_output.agent_note(reached, words=True)
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
    path = (*tasks.path_by_id(client, task), "watch") if task else ("tasks", "watch")
    query = None if task or all_owners else {"q": f'owner:"{owner}"'}
    for event in events.stream_events(client, *path, query=query, notice=_notice):
        if output is OutputFormat.JSON:
            line({"event": event.type, "id": event.id, "data": event.data})
        else:
            is_snapshot = event.type == "task.snapshot"
            shown = event.data if is_snapshot else event.data["data"]["task"]
            task_output.change(event.type, shown, shown["updated_at"] if is_snapshot else event.data["time"])
        if task and event.type == "task.deleted":
            return


@app.command(epilog=EXIT_CODES)
def logs(
    task: TaskArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing new entries until the agent has ended, or Ctrl-C.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the conversation with a task's agent; entries with > were sent to it. Times are in UTC.

    With --follow, an entry is printed once it is final: when another one comes after it, its tool call has ended, the
    agent is idle or has ended, or, the first time, nothing was added for 3 seconds. One that changes after that is
    printed again once it is final. JSON is one entry per line; of those with the same id, the last one counts.

    It ends with 0 when the agent has ended or is lost, or the task is paused or deleted; but not while an agent starts
    or will be started again, nor while a complete task still has its agent.
    """
    client = http.from_environment()
    if follow:
        for entries in task_logs.follow(client, task, notice=_notice):
            _print_entries(entries, output)
        return
    body, has_older = task_logs.newest(client, task)
    if output is OutputFormat.JSON:
        document(body)
    elif body["logs"]:
        task_output.log_entries(body["logs"])
    else:
        print_note("No entries yet.", f"  wait for them with: {printable(command_line('taskherd task logs -f', task))}")
    if has_older:
        print_note(f"Only the newest {len(body['logs'])} entries are printed; older ones are left out.")


def _print_entries(entries: list[Entry], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        for entry in entries:
            line(entry)
    else:
        task_output.log_entries(entries)


def _notice(reason: str) -> None:
    print_error(f"{printable(reason)}; reconnecting")
