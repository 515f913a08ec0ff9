"""``taskherd task`` for many tasks: ``create --from``, and ``--query`` of pause, resume, delete, send and interrupt."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from taskherd.cli.output import OutputFormat, document, line, print_error, print_note, printable
from taskherd.client import bulk, http
from taskherd.client.errors import ApiError, ClientError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_FILE: Final = 64 * 1024 * 1024
MAX_LINES: Final = 10_000
"""Maximum size in characters, and number of tasks, of a file with tasks to create."""
_BYTE_ORDER_MARK: Final = "\ufeff"
MAX_SHOWN: Final = 20
"""Maximum number of refusals, and of tasks of a dry run, that are printed for people."""
DONE: Final[Mapping[str, str]] = {
    "pause": "Paused",
    "resume": "Resumed",
    "delete": "Deleted",
    "send": "Sent to",
    "interrupt": "Interrupted",
}

QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        metavar="Q",
        help="All tasks that match these search terms instead, such as 'owner:me status:error'.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="With --query: only show the tasks that match.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="With --query: do not ask for confirmation.")]


def one_of(references: Sequence[str] | None, query: str | None) -> None:
    """Raise ``ClientError`` unless the command names tasks, or a search, but not both."""
    if bool(references) == (query is not None):
        raise ClientError(ExitCode.USAGE, "name the tasks, or give a search with --query")


def act(action: str, query: str, *, text: str | None = None, dry_run: bool, yes: bool, output: OutputFormat) -> None:
    """Do one thing to all tasks that match: ask for confirmation, show the progress, and who could not.

    Exits with 6 if a task was refused, and with 1 if the action ended before its last task.
    """
    client = http.from_environment()
    ids: Sequence[str] | None = None
    if dry_run or not yes:
        preview = bulk.preview_action(client, action, query, text)
        if dry_run:
            _show_preview(preview, output)
            return
        if not _confirmed(action, preview["total"]):
            raise ClientError(ExitCode.USAGE, "nothing was changed", "confirm with y, or add --yes")
        ids = preview.get("ids")  # null from a server of an earlier version
    started = bulk.start_action(client, action, query, text, ids=ids)
    try:
        finished = _follow(client, started)
    except KeyboardInterrupt:
        canceled = bulk.cancel_action(client, started)
        print_note(f"Canceled after {canceled['succeeded'] + canceled['refused']} of {canceled['total']} tasks.")
        raise
    refused = list(bulk.action_results(client, finished, refused=True))
    if output is OutputFormat.JSON:
        document({"action": finished, "refused": refused})
    else:
        typer.echo(f"{DONE[action]} {finished['succeeded']} of {finished['total']} tasks.")
    _report_refused(refused)
    if finished["state"] != "completed":
        reason = finished["failure"] or "it was canceled"
        raise ClientError(ExitCode.ERROR, f"the action ended with {finished['pending']} tasks left: {reason}")
    if refused:
        raise typer.Exit(ExitCode.REFUSED)


def is_interactive() -> bool:
    """Return whether a person can answer a question: whether stdin is a terminal."""
    return sys.stdin.isatty()


def _confirmed(action: str, count: int) -> bool:
    if count == 0:
        return True
    if not is_interactive():
        raise ClientError(ExitCode.USAGE, f"{count} tasks match", "add --yes to go on without confirmation")
    words = "Send this to" if action == "send" else action.capitalize()
    return typer.confirm(f"{words} {count} {'task' if count == 1 else 'tasks'}?", err=True)


def _show_preview(preview: Mapping[str, Any], output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        document(preview)
        return
    typer.echo(f"{preview['total']} tasks match.")
    for task in preview["tasks"][:MAX_SHOWN]:
        typer.echo(f"  {printable(task['owner_name'])}/{printable(task['name'])}  {task['status']}")
    if preview["total"] > MAX_SHOWN:
        typer.echo(f"  and {preview['total'] - min(MAX_SHOWN, len(preview['tasks']))} more")


def _follow(client: http.Client, started: bulk.Action) -> bulk.Action:
    action = started
    with _progress(started["total"]) as progress:
        for action in bulk.follow_action(client, started):
            progress(action["succeeded"] + action["refused"])
    return action


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show a progress bar on stderr if it is a terminal; yield the function that moves it."""
    columns = (TextColumn("tasks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("tasks", total=total)
        yield lambda completed: progress.update(task, completed=completed)


def _report_refused(refused: Sequence[Mapping[str, Any]]) -> None:
    for each in refused[:MAX_SHOWN]:
        name = f"{each['owner_name']}/{each['name']}" if each["name"] else each["task_id"]
        error = each["error"]
        message = " ".join(filter(None, (error["message"], error.get("detail"))))
        print_error(f"{printable(name)}: {printable(message)}")
    if len(refused) > MAX_SHOWN:
        print_note(f"and {len(refused) - MAX_SHOWN} more tasks were refused; -o json lists all")


def read_entries(path: str, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks in a file, one a line: a prompt, or a JSON object with the fields of a task; ``-`` is stdin.

    Blank lines are skipped. ``defaults`` are the fields that a line does not give.
    """
    entries = [
        {**defaults, **_entry(text, number)} for number, text in enumerate(_read(path).split("\n"), 1) if text.strip()
    ]
    if not 0 < len(entries) <= MAX_LINES:
        raise ClientError(ExitCode.USAGE, f"{path}: {len(entries)} tasks", f"expected 1 to {MAX_LINES:,}, one a line")
    return entries


def _read(path: str) -> str:
    try:
        if path == "-":
            text = sys.stdin.read(MAX_FILE + 1).removeprefix(_BYTE_ORDER_MARK)
        else:
            with Path(path).open(encoding="utf-8-sig") as file:
                text = file.read(MAX_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(ExitCode.USAGE, f"cannot read {path}: {error}") from None
    if len(text) > MAX_FILE:
        raise ClientError(ExitCode.USAGE, f"{path} is too large", f"the limit is {MAX_FILE:,} characters")
    return text


def _entry(text: str, number: int) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"input": text.strip()}
    try:
        entry: dict[str, Any] = json.loads(text)
    except ValueError as error:
        advice = "a line that starts with { is a JSON object; write a prompt like that as one, in its field input"
        raise ClientError(ExitCode.USAGE, f"line {number} is not JSON: {error}", advice) from None
    return entry


def create_all(
    client: http.Client, entries: Sequence[Mapping[str, Any]], key: str | None, output: OutputFormat
) -> None:
    """Create tasks, and print each result; exit with the code of the first refusal at the end."""
    key = key or str(uuid4())
    refused: list[tuple[int, ApiError]] = []
    results = bulk.create_many(client, entries, key)
    try:
        with _progress(len(entries)) as progress:
            for index, result in enumerate(results):
                progress(index + 1)
                if "error" in result:
                    refused.append((index, ApiError.from_response(result["status"], result["error"], None)))
                _show_created(result, output)
    except (ClientError, KeyboardInterrupt):
        print_note(repeat_advice(key))
        raise
    for index, error in islice(refused, MAX_SHOWN):
        print_error(f"task {index + 1}: {printable(error.message)}")
    if not refused:
        return
    print_note(f"{len(refused)} of {len(entries)} tasks were not created.")
    kinds = Counter(error.code for _, error in refused)
    if kinds[ExitCode.ERROR]:
        print_note(repeat_advice(key))
    raise typer.Exit(refused[0][1].code)


def _show_created(result: bulk.Result, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        line(result)
    elif "task" in result:
        typer.echo(f"{printable(result['task']['owner_name'])}/{printable(result['task']['name'])}")


def repeat_advice(key: str) -> str:
    """Return how to repeat a create that may have taken effect."""
    return f"  repeat the command with --idempotency-key {shlex.quote(key)}: what was created is not created again"
