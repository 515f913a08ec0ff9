"""``taskherd token``: create, list and revoke API tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from taskherd import durations
from taskherd.cli.output import print_error
from taskherd.settings import load
from taskherd.store import migrate, tokens
from taskherd.store.engine import dispose, open_engine, transaction

if TYPE_CHECKING:
    from taskherd.store import AsyncConnection

app = typer.Typer(help="Create, list and revoke the API tokens of users and their tools.", no_args_is_help=True)

MAX_LISTED = 10_000
NEVER = "never"
DEFAULT_LIFETIME = "90d"
_DAYS = {"d": 86_400.0, "w": 7 * 86_400.0}
_MAX_LIFETIME = 100 * 366 * _DAYS["d"]
T = TypeVar("T")


def _lifetime(written: str) -> timedelta | None:
    """Parse a duration, which may also be in days or weeks; None stands for ``never``."""
    if written == NEVER:
        return None
    unit = _DAYS.get(written[-1:])
    try:
        seconds = float(written[:-1]) * unit if unit else durations.parse(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_LIFETIME:
        raise typer.BadParameter(f"invalid lifetime {written!r}; expected one such as 12h, 30d or 4w, or {NEVER}")
    return timedelta(seconds=seconds)


@app.command()
def create(
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="User the token belongs to; it has the rights of this user.")
    ],
    expires: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"Lifetime, such as 12h, 30d or 4w, or {NEVER}."),
    ] = DEFAULT_LIFETIME,
) -> None:
    """Create an API token and print it.

    It cannot be shown again, because the database stores only its hash.
    """
    from taskherd.api.http import user_tokens  # noqa: PLC0415 - the other commands start faster without it

    lifetime = _lifetime(expires)
    token, parsed = user_tokens.generate()
    owner = _run(lambda conn: tokens.add(conn, parsed.id, parsed.secret_hash, user, lifetime))
    if owner is None:
        print_error(
            f"there is no active user {user!r}", "add the user to the directory file and run `taskherd directory apply`"
        )
        raise typer.Exit(1)
    typer.echo(token)


@app.command("list")
def list_(
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="Only tokens of this user.")] = None,
) -> None:
    """List all tokens with owner, state, expiry and last use."""
    listed = _run(lambda conn: tokens.list_tokens(conn, user, MAX_LISTED))
    table = Table("id", "user", "state", "created", "expires", "last used")
    for each in listed:
        times = (_format_time(moment) for moment in (each.created_at, each.expires_at, each.last_used_at))
        table.add_row(each.id, each.username, each.state, *times)
    Console(markup=False, highlight=False).print(table)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, or the token itself.")],
) -> None:
    """Revoke a token. The API rejects it within a second."""
    token_id = token.partition("-")[0]
    if not _run(lambda conn: tokens.revoke(conn, token_id)):
        print_error(f"there is no valid token {token_id[:10]!r}", "`taskherd token list` shows all tokens")
        raise typer.Exit(1)
    typer.echo(f"Revoked token {token_id}.")


def _format_time(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _run(query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    return asyncio.run(_in_transaction(load("database_url").database_url, query))


async def _in_transaction(database_url: str, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    engine = open_engine(database_url, size=1, application_name="taskherd-token")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await query(conn)
    finally:
        await dispose(engine)
