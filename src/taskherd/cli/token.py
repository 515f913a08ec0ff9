"""`taskherd token`: who may speak to the API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from taskherd.settings import durations, load
from taskherd.store import migrate, tokens
from taskherd.store.engine import dispose, open_engine, transaction

if TYPE_CHECKING:
    from taskherd.store import AsyncConnection

app = typer.Typer(help="The tokens that people and their tools sign in with.", no_args_is_help=True)

MAX_LISTED = 10_000
_DAYS = {"d": 86_400.0, "w": 7 * 86_400.0}
_LONGEST = 100 * 366 * _DAYS["d"]
T = TypeVar("T")


def _lifetime(written: str) -> timedelta:
    """A duration, also in days or weeks."""
    unit = _DAYS.get(written[-1:])
    try:
        seconds = float(written[:-1]) * unit if unit else durations.parse(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise typer.BadParameter(f"{written!r} is no lifetime; expected one such as 12h, 30d or 4w")
    return timedelta(seconds=seconds)


@app.command()
def create(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="The user that it speaks for.")],
    expires: Annotated[
        timedelta | None,
        typer.Option(metavar="30d", parser=_lifetime, help="How long it holds: 12h, 30d, 4w. Without: until revoked."),
    ] = None,
) -> None:
    """Print a new token, once: only its hash is kept."""
    from taskherd.api.http import user_tokens  # noqa: PLC0415 - the other commands start faster without it

    token, kept = user_tokens.generate()
    owner = _run(lambda conn: tokens.add(conn, kept.id, kept.secret_hash, user, expires))
    if owner is None:
        typer.echo(f"There is no active user {user!r} in the directory; `taskherd directory apply` loads it.", err=True)
        raise typer.Exit(1)
    typer.echo(token)


@app.command("list")
def list_(
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="Only those of this user.")] = None,
) -> None:
    """Show every token: its id, whose it is, until when it holds and when it was last used."""
    found = _run(lambda conn: tokens.list_tokens(conn, user, MAX_LISTED))
    table = Table("id", "user", "state", "created", "expires", "last used")
    for each in found:
        times = (_shown(moment) for moment in (each.created_at, each.expires_at, each.last_used_at))
        table.add_row(each.id, each.username, each.state, *times)
    Console(markup=False, highlight=False).print(table)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="The token's id, or the whole token.")],
) -> None:
    """End a token; the API notices within a second."""
    token_id = token.partition("-")[0]
    if not _run(lambda conn: tokens.revoke(conn, token_id)):
        typer.echo(f"There is no token {token_id[:10]!r} that still holds.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{token_id} is revoked.")


def _shown(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _run(act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    return asyncio.run(_in_transaction(load("database_url").database_url, act))


async def _in_transaction(database_url: str, act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    engine = open_engine(database_url, size=1, application_name="taskherd-token")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await act(conn)
    finally:
        await dispose(engine)
