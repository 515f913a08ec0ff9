"""Print totals of tasks, and what needs a person, what runs and what ended, for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from taskherd.cli.output import age, print_note, printable
from taskherd.cli.tables import COLORS, Column, colored, fields, table
from taskherd.cli.task_output import message

if TYPE_CHECKING:
    from taskherd.client.tasks import Task

_WHY: Final = {"idle": "idle", "stalled": "stalled", "not_running": "ended", "failed": "failed", "lost": "lost"}
"""Groups of tasks that need a person, and why; a task in several groups shows the last one."""
_RUNNING: Final = ("working", "active", "initializing", "pending")
_COLORS: Final[Mapping[str, str]] = {**COLORS, "asks": "yellow", "lost": "red", "ended": "yellow", "stalled": "yellow"}
_NEEDS: Final = (
    Column("TASK"),
    Column("WHY", colors=_COLORS),
    Column("FOR", optional=2),
    Column("MESSAGE", optional=1, shortest=16),
)
_TASKS: Final = (_NEEDS[0], Column("STATE", colors=_COLORS), *_NEEDS[2:])


def totals(found: Mapping[str, Any]) -> None:
    """Print numbers of tasks, without those that are 0."""
    fields(
        ("total", f"{found['total']:,}"),
        ("working", f"{found['working']:,}" if found["working"] else ""),
        ("status", _numbers(found["by_status"])),
        ("state", _numbers(found["by_state"])),
        ("health", _numbers(found["by_health"])),
        ("attention", _numbers(found["attention"])),
    )


def _numbers(by: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in by.items() if number)


def overview(found: Mapping[str, Any], query: str) -> None:
    """Print totals, then each task in the first section that it belongs to; ``query`` has selected them."""
    requests, groups = found["requests"]["requests"], found["groups"]
    listed = {each["task_id"] for each in requests}
    needing: list[tuple[str, ...]] = [
        (each["owner_name"], each["task_name"], "asks", each["since"], each["title"]) for each in requests
    ]
    why_of = {task["id"]: why for name, why in _WHY.items() for task in groups[name]["tasks"]}
    needing += [_row(task, why_of[task["id"]]) for name in _WHY for task in _not_in(listed, groups[name]["tasks"])]
    silent = [task for task in groups["active"]["tasks"] if task["current_state"] is None]
    by_name = {name: groups[name]["tasks"] for name in _RUNNING} | {"active": silent}
    running = [task for group in by_name.values() for task in _not_in(listed, group) if not task["requests_open"]]
    ended = list(_not_in(listed, groups["complete"]["tasks"]))
    totals(found["totals"])
    _section("Needs a person", _NEEDS, needing)
    _section("Runs", _TASKS, [_row(task, _state(task)) for task in running])
    _section("Ended", _TASKS, [_row(task, "complete") for task in ended])
    if not (needing or running or ended):
        print_note("Nothing needs a person, runs or has ended.", '  create a task with: taskherd task create "PROMPT"')
    _more(found, query)


def _not_in(listed: set[str], documents: Sequence[Task]) -> Iterator[Task]:
    """Yield the tasks that are not listed yet, which they are then."""
    for task in documents:
        if task["id"] not in listed:
            listed.add(task["id"])
            yield task


def _row(task: Task, word: str) -> tuple[str, ...]:
    return task["owner_name"], task["name"], word, _since(task), message(task)


def _state(task: Task) -> str:
    state = task["current_state"] if task["status"] == "active" else None
    return str(state["state"] if state else task["status"])


def _since(task: Task) -> str:
    return str(task.get("state_since") or task["updated_at"])


def _section(heading: str, columns: Sequence[Column], rows: Sequence[tuple[str, ...]]) -> None:
    if rows:
        typer.echo(f"\n{colored(heading, bold=True)}")
        table(columns, [(f"{owner}/{name}", word, age(since), said) for owner, name, word, since, said in rows])


def _more(found: Mapping[str, Any], query: str) -> None:
    """Print the commands that list what did not fit."""
    if found["requests"]["next"]:
        print_note(f"Only the oldest requests are listed; see all with: taskherd requests{_option(query)}")
    for name, group in found["groups"].items():
        if group["next"] and name != "active":  # of which only agents without a state are shown
            terms = _option(f"{query} {group['q']}".strip())
            command = f"taskherd task list{terms} --sort {shlex.quote(group['sort'])}"
            print_note(f"Only some tasks that are {name.replace('_', ' ')} are listed; see all with: {command}")


def _option(query: str) -> str:
    return f" --query {shlex.quote(printable(query))}" if query else ""
