"""`taskherd directory`: who and what tasks refer to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import directory, migrate
from taskherd.store.engine import dispose, open_engine, transaction

app = typer.Typer(help="Organizations, users and templates.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep `apply` a command of its own name, though it is the only one."""


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The directory, as YAML.")],
) -> None:
    """Make the directory what FILE says; what FILE leaves out is deactivated, never deleted."""
    settings = load("database_url")
    try:
        changes = asyncio.run(_apply(settings.database_url, directory.parse(file.read_bytes())))
    except directory.InvalidDirectory as error:
        typer.echo(f"{file} was not applied:\n{error}", err=True)
        raise typer.Exit(1) from None
    except Retry as error:
        typer.echo(f"Another apply is running ({error}): nothing was changed, run it again.", err=True)
        raise typer.Exit(1) from None
    if changes.changed:
        counts = f"{changes.created} created, {changes.updated} updated, {changes.deactivated} deactivated"
        typer.echo(f"{counts}; the directory is at revision {changes.revision}.")
    else:
        typer.echo(f"Nothing to change; the directory is at revision {changes.revision}.")


async def _apply(database_url: str, wanted: directory.Directory) -> directory.AppliedChanges:
    engine = open_engine(database_url, size=1, application_name="taskherd-directory")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await directory.apply(conn, wanted)
    finally:
        await dispose(engine)
