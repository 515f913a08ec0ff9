"""Tasks as people see them in a terminal, or as JSON for programs."""

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
    """How to show what was found."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[OutputFormat, typer.Option("--output", "-o", help="For people, or for programs.")]
_MAX_MESSAGE = 80


def printable(said: object) -> str:
    """A text on one line, without what could steer a terminal."""
    return "".join(each if each.isprintable() else " " for each in str(said))


def document(told: Any) -> None:
    """JSON, indented where a person looks at it."""
    typer.echo(json.dumps(told, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def line(told: Any) -> None:
    """JSON on a line of its own, sent at once."""
    typer.echo(json.dumps(told, ensure_ascii=False))


def tasks(found: Iterable[Task]) -> None:
    """Tasks, one a line."""
    table = Table("task", "status", "state", "message", "updated", box=None, pad_edge=False, header_style="bold")
    for task in found:
        state = task["current_state"] or {}
        table.add_row(
            printable(f"{task['owner_name']}/{task['name']}"),
            task["status"],
            state.get("state", ""),
            printable(state.get("message", ""))[:_MAX_MESSAGE],
            task["updated_at"][:19].replace("T", " "),
        )
    Console(markup=False, highlight=False).print(table)


def task(told: Task) -> None:
    """One task, a field a line."""
    state, health = told["current_state"] or {}, told["workspace_agent_health"] or {}
    well = {True: "healthy", False: health.get("reason", "not healthy"), None: ""}[health.get("healthy")]
    fields(
        ("task", f"{told['owner_name']}/{told['name']}"),
        ("id", told["id"]),
        ("title", told["display_name"]),
        ("status", told["status"]),
        ("state", state.get("state", "")),
        ("message", state.get("message", "")),
        ("uri", state.get("uri", "")),
        ("agent", well),
        ("workspace", f"{told['workspace_name']} {told.get('workspace_status', '')}"),
        ("template", told["template_display_name"] or told["template_name"]),
        ("created", told["created_at"]),
        ("updated", told["updated_at"]),
        ("prompt", told["initial_prompt"]),
    )


def fields(*pairs: tuple[str, str]) -> None:
    """Names and values, those that are empty left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(name, printable(value))
    Console(markup=False, highlight=False).print(table)


def change(event_type: str, told: Task, time: str) -> None:
    """One line for a change of a task."""
    state = told["current_state"] or {}
    text = " ".join(filter(None, (state.get("state", ""), printable(state.get("message", "")))))
    what = "deleted" if event_type == "task.deleted" else told["status"]
    typer.echo(f"{time[11:19]}  {printable(told['owner_name'])}/{printable(told['name'])}  {what}  {text}".rstrip())
