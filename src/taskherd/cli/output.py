"""Print results as JSON for programs, and errors and notes for people."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from taskherd.client.errors import ClientError


class OutputFormat(StrEnum):
    """Output formats of all commands that print a result."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="Output format: a table for people, JSON for programs.")
]
_JOINERS: Final = "\u200c\u200d"
"""Invisible characters that belong to words in Persian and Indian scripts, and to emoji."""
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def print_error(message: str, *advice: str) -> None:
    """Print an error to stderr: what happened on the first line, then ``advice``, indented, on lines of its own."""
    print_note(f"taskherd: {message}", *(f"  {line}" for text in advice for line in text.splitlines()))


def print_failure(error: ClientError, *, about: str = "") -> None:
    """Print why a request failed: its texts may be from anybody, so only its advice has several lines.

    ``about`` is what the request was for, in front of the message.
    """
    subject = f"{printable(about)}: " if about else ""
    print_error(subject + printable(error.message), *map(printable, error.advice.splitlines()))


def print_note(*lines: str) -> None:
    """Print lines for people to stderr, which leaves stdout to the result."""
    for line in lines:
        typer.echo(line, err=True)


def printable(value: object) -> str:
    """Return a value as text on one line; characters that could control the terminal are escaped."""
    return "".join(_printable(each) for each in str(value))


def command_line(command: str, *arguments: str) -> str:
    """Return a command to be copied into a shell: arguments may be from anybody, and are quoted.

    They come after ``--`` if one looks like an option.
    """
    dashes = ["--"] if any(each.startswith("-") for each in arguments) else []
    return " ".join([command, *dashes, *map(shlex.quote, arguments)])


def _printable(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return " " if character.isspace() and character.isascii() else ascii(character)[1:-1]


def document(value: Any) -> None:
    """Print a value as JSON, indented if stdout is a terminal."""
    typer.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def line(value: Any) -> None:
    """Print a value as JSON on one line, unbuffered."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def moment(time: str | datetime) -> str:
    """Return a time, given as RFC 3339 or with a time zone, to the second in UTC."""
    return f"{_utc(time):%Y-%m-%d %H:%M:%S}"


def moment_and_age(time: str | datetime | None) -> str:
    """Return a time with its age, such as ``2026-11-26 05:09:40 UTC (3m ago)``; "" for None."""
    return "" if time is None else f"{moment(time)} UTC ({age(time)} ago)"


def age(time: str | datetime, now: datetime | None = None) -> str:
    """Return how long ago a time was, in its largest unit, rounded down: ``12s``, ``3m``, ``2h``, ``5d``."""
    return duration(int(((now or datetime.now(UTC)) - _utc(time)).total_seconds()))


def duration(seconds: int) -> str:
    """Return a duration in its largest unit, rounded down; ``0s`` for a negative one, of clocks that differ."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def _utc(time: str | datetime) -> datetime:
    parsed = datetime.fromisoformat(time) if isinstance(time, str) else time
    return parsed.astimezone(UTC)
