"""``taskherd dead``: list, show, replay and purge dead letters."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskherd.broker import dead_letters as queue
from taskherd.broker.connection import open_connection
from taskherd.broker.topology import TopologyNames
from taskherd.cli.output import (
    OutputFormat,
    OutputOption,
    age,
    command_line,
    document,
    moment_and_age,
    print_error,
    print_note,
    printable,
)
from taskherd.cli.tables import Column, fields, table
from taskherd.dead_letters import Replay, Selection
from taskherd.dead_letters import replay as replay_selected
from taskherd.domain.reports import format_rfc3339
from taskherd.messages.dead_letters import DeadLetter, decode
from taskherd.settings import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.dead_letters import Purged, QueuedMessage
    from taskherd.settings import Settings

app = typer.Typer(
    help="Inspect, replay and purge dead letters: messages that could not be processed.", no_args_is_help=True
)

LimitOption = Annotated[
    int, typer.Option("--limit", min=1, max=10_000, help="Maximum number of dead letters to read, oldest first.")
]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids from `taskherd dead list`.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only dead letters with this reason.")]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters, up to --limit.")]
_MORE = "`taskherd dead list` shows the ids; read more with --limit"
_PREVIEW_BYTES = 200
_COLUMNS = (
    Column("ID"),
    Column("REASON"),
    Column("AGE", optional=1),
    Column("DETAIL", optional=2, shortest=16),
    Column("QUEUE", optional=4),
    Column("ROUTING KEY", optional=5),
    Column("BYTES", optional=6),
    Column("BODY", optional=3, shortest=16),
)


@app.command("list")
def list_(limit: LimitOption = 100, reason: ReasonOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the oldest dead letters, and how long ago they were dead-lettered. They stay in the queue."""
    found = asyncio.run(_read(limit + 1))
    letters = [each for each in found[:limit] if reason in (None, each.reason)]
    if output is OutputFormat.JSON:
        document([_as_json(each) for each in letters])
    elif letters:
        table(_COLUMNS, map(_row, letters))
    elif reason and found:
        print_note(f"No dead letters with this reason among the oldest {limit}.")
    else:
        print_note("No dead letters.")
    if len(found) > limit:
        print_note(f"Only the oldest {limit} were read; read more with --limit.")


def _row(letter: DeadLetter) -> tuple[object, ...]:
    died = age(letter.time) if letter.time else ""
    body = letter.body[:_PREVIEW_BYTES].decode("utf-8", "backslashreplace")
    origin = letter.origin
    return letter.id, letter.reason, died, letter.detail, origin.queue, origin.routing_key, letter.length, body


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="Id from `taskherd dead list`.")],
    limit: LimitOption = 1000,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show a dead letter with its complete body, and when it was dead-lettered."""
    found = next((each for each in asyncio.run(_read(limit)) if each.id == letter), None)
    if found is None:
        print_error(
            f"no dead letter {letter} among the oldest {limit}",
            _MORE,
        )
        raise typer.Exit(1)
    body = found.body.decode("utf-8", "backslashreplace")
    if output is OutputFormat.JSON:
        document({**_as_json(found), "body": body})
        return
    origin = found.origin
    fields(
        ("id", found.id),
        ("reason", found.reason),
        ("detail", found.detail),
        ("time", moment_and_age(found.time)),
        ("queue", origin.queue),
        ("exchange", origin.exchange),
        ("routing key", origin.routing_key),
        ("sender", found.sender or ""),
        ("index", "" if found.index is None else f"{found.index} of the array it arrived in"),
        ("size", f"{found.length} bytes{', of which only the beginning was kept' if found.truncated else ''}"),
        ("body", body),
        ("next", command_line("taskherd dead replay", found.id) if found.replay_obstacle is None else ""),
        ("no replay", found.replay_obstacle or ""),
    )


@app.command()
def replay(
    ids: IdsArgument = None,
    reason: ReasonOption = None,
    everything: AllOption = False,
    limit: LimitOption = 1000,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Publish dead letters again to the exchange they came from.

    Each one is removed from the dead letters after the broker has confirmed it. Exits with 1 if some could not be
    published, or an id was not found. They are sent as your own RabbitMQ user, so you vouch for them. Two kinds are
    replayed only by their id: those of an untrusted sender, and those that RabbitMQ dead-lettered before a worker
    checked their sender. What the workers would refuse is kept: if TASKHERD_COMMAND_SENDERS or TASKHERD_REPORT_SENDERS
    is set, it must have your user.
    """
    _check_selection(ids, reason, everything=everything, hint="name ids, or use --reason or --all")
    state = asyncio.run(_replay(Selection(frozenset(ids or ()), reason), limit))
    count, kept = len(state.replayed), state.kept
    if output is OutputFormat.JSON:
        document({"replayed": count, "stayed": kept})
    else:
        typer.echo(f"{count} replayed")
        for letter, obstacle in kept.items():
            print_error(f"{letter} was not replayed: {obstacle}")
    is_complete = _tell_rest(state.selection, state.missing, state.beyond, limit)
    if kept or not is_complete:
        raise typer.Exit(1)


@app.command()
def purge(
    ids: IdsArgument = None,
    reason: ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters, beyond --limit too.")] = False,
    limit: LimitOption = 1000,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete dead letters permanently: those with these ids, with this reason or, if both are given, with both.

    Exits with 1 if an id was not found.
    """
    _check_selection(ids, reason, everything=everything, hint="name ids, or use --reason or --all")
    selection = Selection(frozenset(ids or ()), reason)
    found, (removed, beyond) = asyncio.run(_purge(selection, limit))
    if output is OutputFormat.JSON:
        document({"purged": removed})
    else:
        typer.echo(f"{removed} purged")
    if not _tell_rest(selection, selection.ids - found, beyond, limit):
        raise typer.Exit(1)


def _tell_rest(selection: Selection, missing: frozenset[str], beyond: int, limit: int) -> bool:
    """Say what was not found, and what was not looked at; return whether every id was found."""
    with_reason = " with this reason" if selection.reason else ""
    for letter in sorted(missing):
        print_error(f"no dead letter {printable(letter)}{with_reason} among the oldest {limit}")
    if missing:
        print_note(f"  {_MORE}")
    if beyond and not selection.ids:
        print_note(f"Only the oldest {limit} were read; read more with --limit.")
    return not missing


def _check_selection(ids: list[str] | None, reason: str | None, *, everything: bool, hint: str) -> None:
    if bool(ids or reason) == everything:
        raise typer.BadParameter(hint)


@asynccontextmanager
async def _broker() -> AsyncIterator[tuple[Settings, SupervisedConnection, TopologyNames]]:
    settings = load("amqp_url")
    async with open_connection(settings.amqp_url, "dead letters") as connection:
        yield settings, connection, TopologyNames(settings.amqp_prefix)


async def _read(limit: int) -> list[DeadLetter]:
    async with _broker() as (_, connection, names):
        return [decode(message) for message in await queue.read(connection, names, limit)]


async def _replay(selection: Selection, limit: int) -> Replay:
    state = Replay(selection)
    async with _broker() as (settings, connection, _):
        await replay_selected(connection, settings, state, limit=limit)
    return state


async def _purge(selection: Selection, limit: int) -> tuple[set[str], Purged]:
    """Purge the selected dead letters; return the ids of those, unless all were purged, and the numbers."""
    found: set[str] = set()

    def select(message: QueuedMessage) -> bool:
        letter = decode(message)
        if selection.has(letter):
            found.add(letter.id)
        return letter.id in found

    async with _broker() as (_, connection, names):
        is_all = selection == Selection()
        return found, await queue.purge(connection, names, None if is_all else select, limit=limit)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "detail": letter.detail,
        "time": None if letter.time is None else format_rfc3339(letter.time),
        "queue": letter.origin.queue,
        "exchange": letter.origin.exchange,
        "routing_key": letter.origin.routing_key,
        "sender": letter.sender,
        "index": letter.index,
        "length": letter.length,
        "truncated": letter.truncated,
    }
