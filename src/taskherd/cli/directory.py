"""``taskherd directory``: load organizations, users and templates."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from taskherd.cli.output import print_error
from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import directory, migrate
from taskherd.store.engine import dispose, open_engine, transaction

app = typer.Typer(help="Load the organizations, users and templates that tasks refer to.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``apply`` a subcommand: typer runs a single command without its name."""


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Directory file, as YAML.")],
) -> None:
    """Make the directory match FILE. Running it again changes nothing.

    Entries that are missing from FILE are deactivated, never deleted.
    """
    settings = load("database_url")
    try:
        changes = asyncio.run(_apply(settings.database_url, directory.parse(file.read_bytes())))
    except directory.InvalidDirectory as error:
        print_error(f"{file} is invalid; nothing was changed", str(error))
        raise typer.Exit(1) from None
    except Retry as error:
        print_error(f"another apply is running ({error}); nothing was changed", "try again")
        raise typer.Exit(1) from None
    if changes.changed:
        counts = f"{changes.created} created, {changes.updated} updated, {changes.deactivated} deactivated"
        typer.echo(f"{counts}; the directory is at revision {changes.revision}.")
    else:
        typer.echo(f"No changes; the directory is at revision {changes.revision}.")


async def _apply(database_url: str, content: directory.Directory) -> directory.AppliedChanges:
    engine = open_engine(database_url, size=1, application_name="taskherd-directory")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await directory.apply(conn, content)
    finally:
        await dispose(engine)
