"""Print requests of agents for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from taskherd.cli.output import age, command_line, moment_and_age
from taskherd.cli.tables import Column, fields, table
from taskherd.client.agent_requests import short

if TYPE_CHECKING:
    from taskherd.client.agent_requests import AgentRequest

MAX_WORDS: Final = 2
"""Maximum number of words that name a request and an option."""
_COLORS: Final[Mapping[str, str]] = {"open": "yellow", "answered": "green", "withdrawn": "blue", "expired": "blue"}
_OF_TASK: Final = (
    Column("REQUEST"),
    Column("STATE", colors=_COLORS),
    Column("AGE", optional=2),
    Column("TITLE", optional=1, shortest=16),
    Column("ANSWER", optional=3, shortest=16),
)
_QUEUE: Final = (
    Column("TASK"),
    Column("REQUEST"),
    Column("AGE", optional=2),
    Column("TITLE", optional=1, shortest=16),
    Column("OPTIONS", optional=3, shortest=12),
)


def of_task(requests: Sequence[AgentRequest], task: str) -> None:
    """Print the requests of a task, and of the open ones all that answering needs."""
    table(
        _OF_TASK, [(short(each), each["state"], age(each["since"]), each["title"], outcome(each)) for each in requests]
    )
    for each in requests:
        if each["state"] == "open":
            typer.echo()
            _details(each, task)


def queue(requests: Iterable[AgentRequest]) -> None:
    """Print open requests of several tasks, one per line."""
    rows = [
        (f"{each['owner_name']}/{each['task_name']}", short(each), age(each["since"]), each["title"], options(each))
        for each in requests
    ]
    table(_QUEUE, rows)


def options(request: AgentRequest) -> str:
    """Return the ids of the options: ``allow, reject``; for a question without any, that it wants a text."""
    return ", ".join(each["id"] for each in request["options"]) or "(text)"


def outcome(request: AgentRequest) -> str:
    """Return who answered and how: ``alice: Allow, but only once``, "" without an answer."""
    given = request["answer"]
    if given is None:
        return ""
    labels = {each["id"]: each["label"] for each in request["options"]}
    parts = [labels.get(given["option_id"], given["option_id"]), given["text"]]
    late = "" if given["delivered_at"] or request["state"] == "answered" else " (not delivered)"
    return f"{given['by'] or 'policy'}: {', '.join(filter(None, parts))}{late}"


def _details(request: AgentRequest, task: str) -> None:
    choices = request["options"]
    words = (task, short(request), *(each["id"] for each in choices[:1]))
    fields(
        ("request", request["id"]),
        (request["kind"], request["title"]),
        ("detail", request["detail"]),
        ("tool", _tool(request["tool"])),
        ("options", ", ".join(f"{each['id']} ({each['label']})" for each in choices)),
        ("asked", moment_and_age(request["since"])),
        ("expires", request["expires_at"] or ""),
        ("next", command_line("taskherd task answer", *words) + ("" if choices else ' "TEXT"')),
    )


def _tool(tool: Mapping[str, Any] | None) -> str:
    """Return the kind, the name and the input of a tool, a command as people write it."""
    if tool is None:
        return ""
    given = tool.get("input")
    command = given.get("command") if isinstance(given, dict) and len(given) == 1 else None
    text = command if isinstance(command, str) else json.dumps(given, ensure_ascii=False) if given is not None else ""
    return " ".join(filter(None, (f"{tool['kind']}:", tool.get("name"), text)))
