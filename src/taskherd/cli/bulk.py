"""``taskherd task`` for many tasks: ``create --from``, and ``--query`` of pause, resume, delete, send and interrupt."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from taskherd.cli import text_files
from taskherd.cli.output import OutputFormat, document, line, print_error, print_failure, print_note, printable
from taskherd.client import bulk, http
from taskherd.client.errors import ApiError, ClientError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LINES: Final = 10_000
"""Maximum number of tasks of a file with tasks to create."""
MAX_SHOWN: Final = 20
"""Maximum number of refusals, and of tasks of a dry run, that are printed for people."""
CANCEL_SECONDS: Final = 60.0
"""Seconds for which Ctrl-C learns whether an action was started, cancels it, and waits for its end."""
_STARTED_ONCE: Final = "what was started is not started again"
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


def check_key(key: str | None) -> str | None:
    """Return an idempotency key. Raise ``BadParameter`` if no request can have it."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise typer.BadParameter(f"{key!r}; expected printable ASCII characters")
    return key


KeyOption = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        callback=check_key,
        help="With --query: repeating the command with the same key, also after Ctrl-C, follows what it started.",
    ),
]
Start: TypeAlias = Callable[..., bulk.Action]
"""``client.bulk.start_action`` for one action and key, but for its keyword arguments."""


def one_of(references: Sequence[str] | None, query: str | None) -> None:
    """Raise ``ClientError`` unless the command names tasks, or a search, but not both."""
    if bool(references) == (query is not None):
        raise ClientError(ExitCode.USAGE, "name the tasks, or give a search with --query")


def act(
    action: str,
    query: str,
    *,
    text: str | None = None,
    key: str | None,
    dry_run: bool,
    yes: bool,
    output: OutputFormat,
) -> None:
    """Do one thing to all tasks that match: ask for confirmation, show the progress, and who could not.

    With the ``key`` of an earlier call that started an action, that one is followed. Exits with 6 if a task was
    refused, and with 1 if the action ended before its last task.
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
    key = key or str(uuid4())
    finished = _run(client, partial(bulk.start_action, client, action, query, text, key), ids, key)
    with _naming(finished, key):
        refused = list(bulk.action_results(client, finished, refused=True))
    if output is OutputFormat.JSON:
        document({"action": finished, "refused": refused})
    else:
        typer.echo(f"{DONE[action]} {finished['succeeded']} of {finished['total']} tasks.")
    _report_refused(refused)
    if finished["state"] != "completed":
        reason = finished["failure"] or "it was canceled"
        raise ClientError(ExitCode.ERROR, f"the action ended with {_left(finished)}: {reason}")
    if refused:
        raise typer.Exit(ExitCode.REFUSED)
    if ids and not finished["total"]:
        raise ClientError(ExitCode.ERROR, "nothing was changed", "no task matches any more, or the key was canceled")


def _run(client: http.Client, start: Start, ids: Sequence[str] | None, key: str) -> bulk.Action:
    """Start an action and follow it to its end; cancel it on Ctrl-C, also if its start was not yet answered."""
    started: bulk.Action | None = None
    try:
        started = _start(start, ids, key)
        with _naming(started, key):
            return _follow(client, started)
    except KeyboardInterrupt:
        _cancel(client, start, started, key)
        raise


def _start(start: Start, ids: Sequence[str] | None, key: str) -> bulk.Action:
    """Start an action, and say how to repeat that if it may have been started although no answer came."""
    lost: list[str] = []

    def notice(reason: str) -> None:
        lost.append(reason)
        print_error(f"{printable(reason)}; trying again")

    try:
        return start(ids=ids, notice=notice)
    except ClientError as error:
        if lost or error.code is ExitCode.ERROR:
            print_note(repeat_advice(key, _STARTED_ONCE))
        raise


def _cancel(client: http.Client, start: Start, started: bulk.Action | None, key: str) -> None:
    """Cancel an action, wait for its end, and print how far it came; another Ctrl-C ends that at once."""
    print_note("Canceling; Ctrl-C again leaves at once.")
    deadline = time.monotonic() + CANCEL_SECONDS
    last = started
    try:
        for step in _cancel_steps(client, start, started, lambda: deadline - time.monotonic()):
            last = step
    except ClientError as error:
        print_failure(error)
    except KeyboardInterrupt:
        pass  # what is known is printed below
    if last is None:
        print_note(repeat_advice(key, _STARTED_ONCE))
    elif last["finished_at"] is None:
        print_note(*_where(last, key))
    elif not last["total"]:
        print_note("Canceled before anything was changed; its idempotency key starts nothing any more.")
    else:
        unconfirmed = last.get("unconfirmed", 0)  # none from a server of an earlier version
        rest = f"; {unconfirmed} more may still be changed" if unconfirmed else ""
        print_note(f"Canceled after {last['succeeded'] + last['refused']} of {last['total']} tasks{rest}.")


def _cancel_steps(
    client: http.Client, start: Start, started: bulk.Action | None, left: Callable[[], float]
) -> Iterator[bulk.Action]:
    """Cancel an action and yield it until it is finished.

    If it is not known whether it was started, that is learned by its key. Without ids this starts nothing, and neither
    does the first request if it arrives after this one.
    """
    action = started or start(ids=(), left=left)
    yield action
    yield from bulk.follow_action(client, bulk.cancel_action(client, action, left=left), left=left)


@contextmanager
def _naming(action: bulk.Action, key: str) -> Iterator[None]:
    """Print where to look at an action if the block cannot do so."""
    try:
        yield
    except ClientError:
        print_note(*_where(action, key))
        raise


def _where(action: bulk.Action, key: str) -> tuple[str, str]:
    path = f"/api/v2/{bulk.ACTIONS}/{printable(action['id'])}"
    return (
        f"  its action is {printable(action['id'])}: GET {path} shows it, POST {path}/cancel cancels it",
        repeat_advice(key, "this action is followed, and no other one is started"),
    )


def is_interactive() -> bool:
    """Return whether a person can answer a question: whether stdin is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def _confirmed(action: str, count: int) -> bool:
    if count == 0:
        return True
    if not is_interactive():
        raise ClientError(ExitCode.USAGE, f"{count} tasks match", "add --yes to go on without confirmation")
    words = "Send this to" if action == "send" else action.capitalize()
    try:
        return typer.confirm(f"{words} {count} {'task' if count == 1 else 'tasks'}?", err=True)
    except typer.Abort as error:  # of Ctrl-C, or of an end of the input, as Ctrl-D
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        typer.echo(err=True)
        return False


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


def _left(finished: bulk.Action) -> str:
    """Return how many tasks have no result, and how many may still be changed, in words."""
    unconfirmed = finished.get("unconfirmed", 0)  # none from a server of an earlier version
    return f"{finished['pending']} tasks left" + (f" and {unconfirmed} not confirmed" if unconfirmed else "")


def _report_refused(refused: Sequence[Mapping[str, Any]]) -> None:
    for each in refused[:MAX_SHOWN]:
        name = f"{each['owner_name']}/{each['name']}" if each["name"] else each["task_id"]
        error = each["error"]
        message = " ".join(filter(None, (error["message"], error.get("detail"))))
        print_error(f"{printable(name)}: {printable(message)}")
    if len(refused) > MAX_SHOWN:
        print_note(f"and {len(refused) - MAX_SHOWN} more tasks without success; -o json lists all")


def read_entries(path: str, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks in a file, one a line: a prompt, or a JSON object with the fields of a task; ``-`` is stdin.

    Blank lines are skipped. ``defaults`` are the fields that a line does not give.
    """
    entries = [
        {**defaults, **_entry(text, number)}
        for number, text in enumerate(text_files.read(path).split("\n"), 1)
        if text.strip()
    ]
    if not 0 < len(entries) <= MAX_LINES:
        raise ClientError(ExitCode.USAGE, f"{path}: {len(entries)} tasks", f"expected 1 to {MAX_LINES:,}, one a line")
    return entries


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


def repeat_advice(key: str, promise: str = "what was created is not created again") -> str:
    """Return how to repeat a change that may have taken effect; ``promise`` is what a repeat does then."""
    return f"  repeat the command with --idempotency-key {shlex.quote(key)}: {promise}"


@contextmanager
def advise_repeat(advice: str) -> Iterator[None]:
    """Print how to repeat the change that the block makes, if it fails but may have taken effect."""
    try:
        yield
    except (ClientError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or error.code is ExitCode.ERROR or error.may_have_arrived:
            print_note(advice)
        raise
