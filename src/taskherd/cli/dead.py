"""`taskherd dead`: look at the dead letters, send them back, or throw them away."""

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
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.messages.dead_letters import DeadLetter, decode
from taskherd.settings import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

app = typer.Typer(help="The dead letters: messages that could not be decoded or were refused.", no_args_is_help=True)

As_JSON = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
Most = Annotated[int, typer.Option("--most", min=1, max=10_000, help="How many of the oldest to look at.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as `taskherd dead list` shows them.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]
_PREVIEW = 60


@app.command("list")
def list_(most: Most = 100, reason: Reason = None, as_json: As_JSON = False) -> None:
    """List the oldest dead letters, and leave them where they are."""
    letters = [each for each in asyncio.run(_read(most)) if reason in (None, each.reason)]
    if as_json:
        typer.echo(orjson.dumps([_described(each) for each in letters], option=orjson.OPT_INDENT_2))
        return
    table = Table(Column("id", no_wrap=True), "reason", "detail", "from", "routing key", "bytes", "body")
    for each in letters:
        body = each.body[:_PREVIEW].decode("utf-8", "backslashreplace")
        cells = (each.id, each.reason, each.detail, each.origin.queue, each.origin.routing_key, str(each.length), body)
        table.add_row(*map(_printable, cells))
    Console(markup=False).print(table)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="The id of one.")], most: Most = 1000, as_json: As_JSON = False
) -> None:
    """Show one dead letter whole."""
    found = next((each for each in asyncio.run(_read(most)) if each.id == letter), None)
    if found is None:
        typer.echo(f"no dead letter {letter} among the oldest {most}", err=True)
        raise typer.Exit(1)
    described = {**_described(found), "body": found.body.decode("utf-8", "backslashreplace")}
    if as_json:
        typer.echo(orjson.dumps(described, option=orjson.OPT_INDENT_2))
        return
    for name, value in described.items():
        typer.echo(f"{name}: {_printable(str(value))}")


@app.command()
def replay(
    ids: Ids = None, reason: Reason = None, everything: Everything = False, most: Most = 1000, as_json: As_JSON = False
) -> None:
    """Send dead letters back to where they came from, and remove each once the broker has it."""
    _check_choice(ids, reason, everything=everything)
    count, kept = asyncio.run(_replay(ids or [], reason, most))
    if as_json:
        typer.echo(orjson.dumps({"replayed": count, "stayed": kept}))
    else:
        typer.echo(f"{count} replayed")
        for letter, obstacle in kept.items():
            typer.echo(f"{letter} stays: {obstacle}", err=True)
    if kept:
        raise typer.Exit(1)


@app.command()
def purge(ids: Ids = None, everything: Everything = False, most: Most = 1000, as_json: As_JSON = False) -> None:
    """Remove dead letters for good."""
    _check_choice(ids, None, everything=everything)
    removed = asyncio.run(_purge(ids or [], most))
    typer.echo(orjson.dumps({"purged": removed}) if as_json else f"{removed} purged")


def _check_choice(ids: list[str] | None, reason: str | None, *, everything: bool) -> None:
    if bool(ids or reason) == everything:
        raise typer.BadParameter("say which, by id or reason, or --all")


@asynccontextmanager
async def _broker() -> AsyncIterator[tuple[SupervisedConnection, TopologyNames]]:
    settings = load("amqp_url")
    link = SupervisedConnection(settings.amqp_url, "dead letters")
    link.start()
    try:
        yield link, TopologyNames(settings.amqp_prefix)
    finally:
        await link.close()


async def _read(most: int) -> list[DeadLetter]:
    async with _broker() as (link, names):
        return [decode(message) for message in await dead_letters.read(link, names, most)]


async def _replay(ids: list[str], reason: str | None, most: int) -> tuple[int, dict[str, str]]:
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

    async with _broker() as (link, names):
        publisher = Publisher(link)
        try:
            result = await dead_letters.replay(link, publisher, names, target_of, limit=most)
        finally:
            await publisher.close()
    kept.update({decode(message).id: "no queue is bound for it at its origin" for message in result.unrouted})
    return result.count, kept


async def _purge(ids: list[str], most: int) -> int:
    async with _broker() as (link, names):
        select = (lambda message: decode(message).id in ids) if ids else None
        return await dead_letters.purge(link, names, select, limit=most)


def _described(letter: DeadLetter) -> dict[str, Any]:
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
    """Return `text` without what could steer a terminal: it was written by whoever sent the letter."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
