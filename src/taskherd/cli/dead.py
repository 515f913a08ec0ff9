"""``taskherd dead``: list, show, replay and purge dead letters."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table

from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.dead_letters import QueuedMessage, ReplayTarget
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.cli.output import print_error
from taskherd.messages.dead_letters import DeadLetter, decode
from taskherd.settings import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

app = typer.Typer(
    help="Inspect, replay and purge dead letters: messages that could not be processed.", no_args_is_help=True
)

JSONOption = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
LimitOption = Annotated[
    int, typer.Option("--limit", min=1, max=10_000, help="Maximum number of dead letters to read, oldest first.")
]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids from `taskherd dead list`.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only dead letters with this reason.")]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters, up to --limit.")]
_PREVIEW_BYTES = 60


@app.command("list")
def list_(limit: LimitOption = 100, reason: ReasonOption = None, as_json: JSONOption = False) -> None:
    """List the oldest dead letters. They stay in the queue."""
    letters = [each for each in asyncio.run(_read(limit)) if reason in (None, each.reason)]
    if as_json:
        typer.echo(orjson.dumps([_as_json(each) for each in letters], option=orjson.OPT_INDENT_2))
        return
    table = Table(Column("id", no_wrap=True), "reason", "detail", "from", "routing key", "bytes", "body")
    for each in letters:
        body = each.body[:_PREVIEW_BYTES].decode("utf-8", "backslashreplace")
        cells = (each.id, each.reason, each.detail, each.origin.queue, each.origin.routing_key, str(each.length), body)
        table.add_row(*map(_printable, cells))
    Console(markup=False).print(table)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="Id from `taskherd dead list`.")],
    limit: LimitOption = 1000,
    as_json: JSONOption = False,
) -> None:
    """Show a dead letter with its complete body."""
    found = next((each for each in asyncio.run(_read(limit)) if each.id == letter), None)
    if found is None:
        print_error(
            f"no dead letter {letter} among the oldest {limit}",
            "`taskherd dead list` shows the ids; read more with --limit",
        )
        raise typer.Exit(1)
    document = {**_as_json(found), "body": found.body.decode("utf-8", "backslashreplace")}
    if as_json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        return
    for name, value in document.items():
        typer.echo(f"{name}: {_printable(str(value))}")


@app.command()
def replay(
    ids: IdsArgument = None,
    reason: ReasonOption = None,
    everything: AllOption = False,
    limit: LimitOption = 1000,
    as_json: JSONOption = False,
) -> None:
    """Publish dead letters again to the exchange they came from.

    Each one is removed from the dead letters after the broker has confirmed it. Exits with 1 if some could not be
    published.
    """
    _check_selection(ids, reason, everything=everything, hint="name ids, or use --reason or --all")
    count, kept = asyncio.run(_replay(ids or [], reason, limit))
    if as_json:
        typer.echo(orjson.dumps({"replayed": count, "stayed": kept}))
    else:
        typer.echo(f"{count} replayed")
        for letter, obstacle in kept.items():
            print_error(f"{letter} was not replayed: {obstacle}")
    if kept:
        raise typer.Exit(1)


@app.command()
def purge(
    ids: IdsArgument = None, everything: AllOption = False, limit: LimitOption = 1000, as_json: JSONOption = False
) -> None:
    """Delete dead letters permanently."""
    _check_selection(ids, None, everything=everything, hint="name ids, or use --all")
    removed = asyncio.run(_purge(ids or [], limit))
    typer.echo(orjson.dumps({"purged": removed}) if as_json else f"{removed} purged")


def _check_selection(ids: list[str] | None, reason: str | None, *, everything: bool, hint: str) -> None:
    if bool(ids or reason) == everything:
        raise typer.BadParameter(hint)


@asynccontextmanager
async def _broker() -> AsyncIterator[tuple[SupervisedConnection, TopologyNames]]:
    settings = load("amqp_url")
    connection = SupervisedConnection(settings.amqp_url, "dead letters")
    connection.start()
    try:
        yield connection, TopologyNames(settings.amqp_prefix)
    finally:
        await connection.close()


async def _read(limit: int) -> list[DeadLetter]:
    async with _broker() as (connection, names):
        return [decode(message) for message in await dead_letters.read(connection, names, limit)]


async def _replay(ids: list[str], reason: str | None, limit: int) -> tuple[int, dict[str, str]]:
    """Return the number of replayed dead letters, and the reason why others were kept, by id."""
    kept: dict[str, str] = {}

    def target_of(message: QueuedMessage) -> ReplayTarget | None:
        letter = decode(message)
        if (ids and letter.id not in ids) or reason not in {None, letter.reason}:
            return None
        if letter.replay_obstacle is not None:
            kept[letter.id] = letter.replay_obstacle
            return None
        return ReplayTarget(letter.origin.exchange, letter.origin.routing_key, letter.headers)

    async with _broker() as (connection, names):
        publisher = Publisher(connection)
        try:
            result = await dead_letters.replay(connection, publisher, names, target_of, limit=limit)
        finally:
            await publisher.close()
    kept.update(
        {
            decode(message).id: "no queue is bound to its original exchange with its routing key"
            for message in result.unrouted
        }
    )
    return result.count, kept


async def _purge(ids: list[str], limit: int) -> int:
    async with _broker() as (connection, names):
        select = (lambda message: decode(message).id in ids) if ids else None
        return await dead_letters.purge(connection, names, select, limit=limit)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "detail": letter.detail,
        "queue": letter.origin.queue,
        "exchange": letter.origin.exchange,
        "routing_key": letter.origin.routing_key,
        "index": letter.index,
        "length": letter.length,
        "truncated": letter.truncated,
    }


def _printable(text: str) -> str:
    """Return ``text`` with control characters escaped: it is untrusted and could control the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
