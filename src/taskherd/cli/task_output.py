"""Print tasks, their conversations and their timelines for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from taskherd.cli.output import age, command_line, duration, moment, moment_and_age, printable
from taskherd.cli.tables import COLORS, Column, colored, fields, table, wrapped
from taskherd.client.tasks import LOST

if TYPE_CHECKING:
    from taskherd.client.tasks import Task

_TASK_COLUMNS: Final = (
    Column("TASK"),
    Column("STATUS", colors=COLORS),
    Column("STATE", optional=1, colors=COLORS),
    Column("AGE", optional=4),
    Column("UPDATED", optional=2),
    Column("TEMPLATE", optional=5),
    Column("MESSAGE", optional=3, shortest=16),
)
_LABELS: Final = Column("LABELS", optional=3, shortest=16)
_DELETED_COLUMNS: Final = (
    Column("TASK"),
    Column("DELETED"),
    Column("BY"),
    Column("AGE", optional=3),
    Column("TEMPLATE", optional=2),
    Column("TITLE", optional=1, shortest=16),
)
_DURATION_COLUMNS: Final = (Column("STATE", colors=COLORS), Column("TIME"), Column("SHARE"))
_BUILD_COLUMNS: Final = (
    Column("BUILD"),
    Column("TRANSITION"),
    Column("STATUS", colors={"succeeded": "green", "failed": "red", "running": "yellow"}),
    Column("AGE", optional=2),
    Column("TOOK", optional=3),
    Column("ERROR", optional=1, shortest=16),
)
_MAX_DETAIL: Final = 200
"""Maximum number of characters of the details of an entry of a timeline."""


def tasks(documents: Iterable[Task]) -> None:
    """Print a table of tasks, one per line, with their labels if any of them has some."""
    shown = list(documents)
    if any(document.get("labels") for document in shown):
        table((*_TASK_COLUMNS, _LABELS), [(*_row(document), labels(document)) for document in shown])
    else:
        table(_TASK_COLUMNS, map(_row, shown))


def deleted(documents: Iterable[Task]) -> None:
    """Print a table of deleted tasks, one per line."""
    table(
        _DELETED_COLUMNS,
        [
            (
                f"{document['owner_name']}/{document['name']}",
                age(document["deleted_at"]),
                document["deleted_by"] or "unknown",
                age(document["created_at"]),
                document["template_name"],
                document["display_name"],
            )
            for document in documents
        ],
    )


def labels(document: Task) -> str:
    """Return the labels of a task: ``repo=acme/app, team=blue``."""
    return ", ".join(f"{key}={value}" for key, value in document.get("labels", {}).items())


def _row(document: Task) -> tuple[str, ...]:
    return (
        f"{document['owner_name']}/{document['name']}",
        document["status"],
        (document["current_state"] or {}).get("state", ""),
        age(document["created_at"]),
        age(document["updated_at"]),
        document["template_name"],
        message(document),
    )


def message(document: Task) -> str:
    """Return what there is to say about a task: how its agent ended, what it asks for, or what it reported last."""
    state, note = document["current_state"] or {}, agent_note(document)
    said = str(state.get("message", ""))
    last_words = (document.get("agent_exit") or {}).get("words", "")
    if last_words and state.get("state") == "failed":  # then the message only repeats how the agent ended
        said = last_words.splitlines()[-1]
    if note:
        return f"agent {note}; {said}" if said else f"agent {note}"
    return f"asks: {asks(document)}" if document.get("requests_open") else said


def task(document: Task, *, page: str, following: str = "") -> None:
    """Print a task, one field per line, with the address of its page; ``following`` is the command to run next."""
    state, health = document["current_state"] or {}, document["workspace_agent_health"] or {}
    ended, interrupt = document.get("agent_exit"), document.get("interrupt")
    fields(
        ("task", f"{document['owner_name']}/{document['name']}"),
        ("id", document["id"]),
        ("title", document["display_name"]),
        ("status", document["status"]),
        ("state", state.get("state", "")),
        ("message", state.get("message", "")),
        ("uri", state.get("uri", "")),
        ("asks", asks(document)),
        ("agent", agent_note(document, words=True) or ("is healthy" if health.get("healthy") else "")),
        ("ended", moment_and_age(ended["at"]) if ended else ""),
        ("interrupt", f"since {moment_and_age(interrupt['since'])}" if interrupt else ""),
        ("workspace", f"{document['workspace_name']} {document.get('workspace_status') or ''}".rstrip()),
        ("template", document["template_display_name"] or document["template_name"]),
        ("usage", _usage(document.get("usage") or {})),
        ("labels", labels(document)),
        ("created", moment_and_age(document["created_at"])),
        ("updated", moment_and_age(document["updated_at"])),
        ("prompt", document["initial_prompt"]),
        ("page", page),
        ("next", following),
    )


def asks(document: Task) -> str:
    """Return what a task's agent asks people for: the title of its first open request, and how many more there are."""
    titles = [each["title"] for each in document.get("requests", ())]
    more = document.get("requests_open", 0) - 1
    return "" if not titles else f"{titles[0]} (and {more} more)" if more > 0 else str(titles[0])


def _usage(usage: Mapping[str, Any]) -> str:
    """Return what a task's agents used, "" if nothing is known."""
    if not usage:
        return ""
    cost = [f"{each['amount']} {each['currency']}" for each in usage["cost"]]
    tokens = f"{usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out"
    cached = usage["cache_read_tokens"] + usage["cache_write_tokens"]
    return ", ".join([tokens, *([f"{cached:,} of a cache"] if cached else []), *cost])


def agent_note(document: Task, *, words: bool = False) -> str:
    """Return what is to be known about a task's agent, as a predicate; "" if it is healthy and not stalled.

    That is how it ended (with its last words if ``words``), since when it has stalled, or why it is not healthy.
    """
    agent_exit, health = document.get("agent_exit"), document["workspace_agent_health"] or {}
    if agent_exit:
        return _how_ended(agent_exit, words=words)
    stalled = document.get("stalled_since")
    if stalled:
        return f"has stalled since {moment(stalled)} UTC" if words else f"has stalled for {age(stalled)}"
    if health.get("healthy", True):
        return ""
    reason = str(health.get("reason", "is not healthy"))
    return _LOST if reason == LOST else reason.removeprefix("agent ")


_LOST = "is lost: its heartbeats stopped"


def _how_ended(agent_exit: Mapping[str, Any], *, words: bool) -> str:
    from taskherd.domain import explanations, view  # noqa: PLC0415 - few tasks need it, and it loads slowly
    from taskherd.domain.reports import ExitReason  # noqa: PLC0415

    try:
        why = ExitReason(agent_exit["why"])
    except ValueError:  # of a later release
        return f"ended: {agent_exit['why']}"
    if why is ExitReason.LOST and not words:
        return "is lost"
    last_words, at = agent_exit["words"] if words else "", datetime.fromisoformat(agent_exit["at"])
    return explanations.how_ended(view.EndedAgent(why, agent_exit["status"], agent_exit["signal"], last_words, at))


def next_step(explanation: Mapping[str, Any], task: str) -> str:
    """Return the command that starts the agent of a task again; "" if it runs and has not stalled."""
    if explanation["resume"]["value"]:
        return command_line("taskherd task resume", task)
    if explanation["stalled_since"]["value"]:
        pause, resume = (command_line(f"taskherd task {action}", task) for action in ("pause", "resume"))
        return f"{pause}, and when it is paused: {resume}"
    return ""


def log_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print entries of a conversation; those that were sent to the agent are marked with ``>``."""
    for entry in entries:
        lines = [printable(each) for each in entry["content"].splitlines()]
        mark = colored(">", "cyan") if entry["type"] == "input" else " "
        typer.echo((f"{moment(entry['time'])[11:]} {mark} " + "\n           ".join(lines)).rstrip())


def timeline(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print the entries of a timeline, oldest first: its changes, and the inputs that were sent."""
    for each in entries:
        is_action = "input" in each
        words = each["words"] if is_action else each["cause"]["words"]
        detail = f"{each['input']} ({each['state']})" if is_action else _changes(each)
        time = moment(each["time"])
        lines = wrapped(f"{printable(words)}  {printable(detail)[:_MAX_DETAIL]}".rstrip(), indent=len(time) + 2)
        typer.echo(("\n" + " " * (len(time) + 2)).join([f"{time}  {lines[0]}", *lines[1:]]))


def durations(found: Mapping[str, Any]) -> None:
    """Print how long a task was in each state, the longest first, with its share of the whole."""
    totals = sorted(found["totals"], key=lambda total: -total["seconds"])
    whole = sum(total["seconds"] for total in totals) or 1
    table(
        _DURATION_COLUMNS,
        [
            (total["state"], duration(int(total["seconds"])), f"{100 * total['seconds'] / whole:.0f} %")
            for total in totals
        ],
    )


def builds(found: Iterable[Mapping[str, Any]]) -> None:
    """Print the starts and stops of a workspace, one per line."""
    table(_BUILD_COLUMNS, map(_build, found))


def _build(build: Mapping[str, Any]) -> tuple[str, ...]:
    job = build["job"]
    started, ended = job.get("started_at"), job.get("completed_at")
    took = age(started, datetime.fromisoformat(ended)) if started and ended else ""
    return (
        str(build["build_number"]),
        build["transition"],
        job["status"],
        age(job["created_at"]),
        took,
        printable(job.get("error", "")),
    )


def build_log(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print the entries of the logs of a build and its agents, oldest first."""
    for each in entries:
        is_error = (each.get("log_level") or each["level"]) == "error"
        text = f"error: {each['output']}" if is_error else each["output"]
        time = moment(each["created_at"])
        indent = len(time) + 2
        first, *more = (colored(line, "red" if is_error else "") for line in wrapped(text, indent=indent))
        typer.echo(("\n" + " " * indent).join([f"{time}  {first}", *more]))


def _changes(event: Mapping[str, Any]) -> str:
    """Return the changes that matter to people: status, state and prompt."""
    changes, parts = event["changes"], []
    if "status" in changes:
        parts.append(f"{changes['status']['from'] or 'new'} → {changes['status']['to']}")
    state = changes.get("current_state", {}).get("to")
    if state:
        parts.append(f"{state['state']}: {state['message']}".rstrip(": "))
    if "initial_prompt" in changes and event["version"] > 1:
        parts.append(changes["initial_prompt"]["to"])
    return ", ".join(parts)


def change(event_type: str, document: Task, time: str) -> None:
    """Print one change of a task on one line; ``time`` is in RFC 3339."""
    state = document["current_state"] or {}
    note = agent_note(document, words=True)
    parts = (state.get("state", ""), state.get("message", ""), f"[agent {note}]" if note else "")
    text = printable(" ".join(filter(None, parts)))
    status = "deleted" if event_type == "task.deleted" else document["status"]
    name = f"{printable(document['owner_name'])}/{printable(document['name'])}"
    typer.echo(f"{moment(time)[11:]}  {name}  {colored(status, COLORS.get(status, ''))}  {text}".rstrip())
