"""``taskherd token``: create, list and revoke API tokens."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from taskherd import durations
from taskherd.cli.output import OutputFormat, OutputOption, age, document, duration, print_error, print_note
from taskherd.cli.tables import COLORS, Column, table
from taskherd.domain.reports import format_rfc3339
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
_COLUMNS = (
    Column("ID"),
    Column("USER"),
    Column("STATE", colors=COLORS),
    Column("AGE", optional=2),
    Column("EXPIRES", optional=1),
    Column("LAST USED", optional=3),
)
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
    output: OutputOption = OutputFormat.TABLE,
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
    if output is OutputFormat.JSON:
        document({"id": parsed.id, "token": token})
    else:
        typer.echo(token)


@app.command("list")
def list_(
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="Only tokens of this user.")] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List all tokens: owner, state, time since they were created and last used, and time until they expire."""
    listed = _run(lambda conn: tokens.list_tokens(conn, user, MAX_LISTED))
    if output is OutputFormat.JSON:
        document([_as_json(each) for each in listed])
    elif listed:
        table(_COLUMNS, map(_row, listed))
    else:
        whose = f" of user {user!r}" if user else ""
        print_note(
            f"No tokens{whose}.", f"  create one with: taskherd token create --user {shlex.quote(user or 'NAME')}"
        )


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, or the token itself.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Revoke a token. The API rejects it within a second."""
    token_id = token.partition("-")[0]
    if not _run(lambda conn: tokens.revoke(conn, token_id)):
        print_error(f"there is no valid token {token_id[:10]!r}", "`taskherd token list` shows all tokens")
        raise typer.Exit(1)
    if output is OutputFormat.JSON:
        document({"revoked": token_id})
    else:
        typer.echo(f"Revoked token {token_id}.")


def _row(token: tokens.TokenRow) -> tuple[str, ...]:
    used = age(token.last_used_at) if token.last_used_at else NEVER
    return token.id, token.username, token.state, age(token.created_at), _expiry(token), used


def _expiry(token: tokens.TokenRow) -> str:
    if token.expires_at is None:
        return NEVER
    left = int((token.expires_at - datetime.now(UTC)).total_seconds())
    return f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"


def _as_json(token: tokens.TokenRow) -> dict[str, str | None]:
    times = {name: getattr(token, name) for name in ("created_at", "expires_at", "last_used_at")}
    shown = {name: None if time is None else format_rfc3339(time) for name, time in times.items()}
    return {"id": token.id, "user": token.username, "state": token.state, **shown}


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
