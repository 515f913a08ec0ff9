"""`taskherd db`: the schema in PostgreSQL."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import migrate

app = typer.Typer(help="The schema in PostgreSQL.", no_args_is_help=True)


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="The revision to migrate to.")] = migrate.HEAD,
) -> None:
    """Migrate the database to what this release needs; doing it again changes nothing."""
    settings = load("database_url")
    try:
        state = migrate.upgrade(settings.database_url, revision)
    except Retry as error:
        typer.echo(f"The tables are busy ({error}): nothing was changed, run it again when less goes on.", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"The schema is at {state.actual}.")


@app.command()
def current() -> None:
    """Show which revision the database is at and which one this release needs."""
    state = migrate.current(load("database_url").database_url)
    typer.echo(f"found {state.actual or 'none'}, needed {state.expected}: {state.status.value}")


@app.command()
def check() -> None:
    """Fail, saying what to run, unless the schema fits this release."""
    state = migrate.current(load("database_url").database_url)
    if state.advice:
        typer.echo(state.advice, err=True)
        raise typer.Exit(1)
    typer.echo(f"The schema is at {state.actual}, as this release needs it.")
