"""Print tasks and errors for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from taskherd.client.tasks import Task


class OutputFormat(StrEnum):
    """Output formats of ``taskherd task``."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="Output format: a table for people, JSON for programs.")
]
_MAX_MESSAGE = 80
"""Maximum number of characters of a status message in a table."""
_MAX_DETAIL = 200
"""Maximum number of characters of the details of an entry of a timeline."""


def print_error(message: str, *advice: str) -> None:
    """Print an error to stderr: what happened on the first line, then ``advice``, indented, on lines of its own."""
    typer.echo(f"taskherd: {message}", err=True)
    for text in filter(None, advice):
        for each in text.splitlines():
            typer.echo(f"  {each}", err=True)


def printable(value: object) -> str:
    """Return a value as text on one line, without characters that could control the terminal."""
    return "".join(each if each.isprintable() else " " for each in str(value))


def document(value: Any) -> None:
    """Print a value as JSON, indented if stdout is a terminal."""
    typer.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def line(value: Any) -> None:
    """Print a value as JSON on one line, unbuffered."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def tasks(documents: Iterable[Task]) -> None:
    """Print a table of tasks, one per line."""
    table = Table(
        "task", "status", "state", "message", "agent", "updated", box=None, pad_edge=False, header_style="bold"
    )
    for each in documents:
        state = each["current_state"] or {}
        table.add_row(
            printable(f"{each['owner_name']}/{each['name']}"),
            each["status"],
            state.get("state", ""),
            printable(state.get("message", ""))[:_MAX_MESSAGE],
            printable(agent_note(each)),
            moment(each["updated_at"]),
        )
    Console(markup=False, highlight=False).print(table)


def task(document: Task) -> None:
    """Print a task, one field per line."""
    state, health = document["current_state"] or {}, document["workspace_agent_health"] or {}
    ended = document.get("agent_exit")
    fields(
        ("task", f"{document['owner_name']}/{document['name']}"),
        ("id", document["id"]),
        ("title", document["display_name"]),
        ("status", document["status"]),
        ("state", state.get("state", "")),
        ("message", state.get("message", "")),
        ("uri", state.get("uri", "")),
        ("agent", agent_note(document, words=True) or ("healthy" if health.get("healthy") else "")),
        ("ended", moment(ended["at"]) if ended else ""),
        ("workspace", f"{document['workspace_name']} {document.get('workspace_status', '')}"),
        ("template", document["template_display_name"] or document["template_name"]),
        ("created", document["created_at"]),
        ("updated", document["updated_at"]),
        ("prompt", document["initial_prompt"]),
    )


def agent_note(document: Task, *, words: bool = False) -> str:
    """Return what is to be known about a task's agent, as a predicate; "" if it is healthy and not stalled.

    That is how it ended (with its last words if ``words``), since when it has stalled, or why it is not healthy.
    """
    agent_exit, health = document.get("agent_exit"), document["workspace_agent_health"] or {}
    if agent_exit:
        return _how_ended(agent_exit, words=words)
    if document.get("stalled_since"):
        return f"has stalled since {moment(document['stalled_since'])}"
    if health.get("healthy", True):
        return ""
    reason = str(health.get("reason", "is not healthy"))
    return _LOST if reason == "agent has lost connection" else reason.removeprefix("agent ")


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


def moment(time: str) -> str:
    """Return a time in RFC 3339 to the second, for people."""
    return time[:19].replace("T", " ")


def next_step(explanation: Mapping[str, Any], task: str) -> None:
    """Print the command that starts the agent of a task again, if none is running or it has stalled."""
    if explanation["resume"]["value"]:
        fields(("next", f"taskherd task resume {task}"))
    elif explanation["stalled_since"]["value"]:
        fields(("next", f"taskherd task pause {task}, and when it is paused: taskherd task resume {task}"))


def timeline(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print the entries of a timeline, one per line: its changes, and the inputs that were sent."""
    for each in entries:
        is_action = "input" in each
        words = each["words"] if is_action else each["cause"]["words"]
        detail = f"{each['input']} ({each['state']})" if is_action else _changes(each)
        typer.echo(f"{moment(each['time'])}  {printable(words)}  {printable(detail)[:_MAX_DETAIL]}".rstrip())


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


def fields(*pairs: tuple[str, str]) -> None:
    """Print names and values, one pair per line, without those whose value is empty."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(name, printable(value))
    Console(markup=False, highlight=False).print(table)


def change(event_type: str, document: Task, time: str) -> None:
    """Print one change of a task on one line; ``time`` is in RFC 3339."""
    state = document["current_state"] or {}
    note = agent_note(document, words=True)
    parts = (state.get("state", ""), state.get("message", ""), f"[agent {note}]" if note else "")
    text = printable(" ".join(filter(None, parts)))
    status = "deleted" if event_type == "task.deleted" else document["status"]
    name = f"{printable(document['owner_name'])}/{printable(document['name'])}"
    typer.echo(f"{time[11:19]}  {name}  {status}  {text}".rstrip())
