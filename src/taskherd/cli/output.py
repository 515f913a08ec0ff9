"""Print tasks and errors for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
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
    table = Table("task", "status", "state", "message", "updated", box=None, pad_edge=False, header_style="bold")
    for each in documents:
        state = each["current_state"] or {}
        table.add_row(
            printable(f"{each['owner_name']}/{each['name']}"),
            each["status"],
            state.get("state", ""),
            printable(state.get("message", ""))[:_MAX_MESSAGE],
            each["updated_at"][:19].replace("T", " "),
        )
    Console(markup=False, highlight=False).print(table)


def task(document: Task) -> None:
    """Print a task, one field per line."""
    state, health = document["current_state"] or {}, document["workspace_agent_health"] or {}
    agent = {True: "healthy", False: health.get("reason", "not healthy"), None: ""}[health.get("healthy")]
    fields(
        ("task", f"{document['owner_name']}/{document['name']}"),
        ("id", document["id"]),
        ("title", document["display_name"]),
        ("status", document["status"]),
        ("state", state.get("state", "")),
        ("message", state.get("message", "")),
        ("uri", state.get("uri", "")),
        ("agent", agent),
        ("workspace", f"{document['workspace_name']} {document.get('workspace_status', '')}"),
        ("template", document["template_display_name"] or document["template_name"]),
        ("created", document["created_at"]),
        ("updated", document["updated_at"]),
        ("prompt", document["initial_prompt"]),
    )


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
    text = " ".join(filter(None, (state.get("state", ""), printable(state.get("message", "")))))
    status = "deleted" if event_type == "task.deleted" else document["status"]
    name = f"{printable(document['owner_name'])}/{printable(document['name'])}"
    typer.echo(f"{time[11:19]}  {name}  {status}  {text}".rstrip())
