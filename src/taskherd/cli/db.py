"""``taskherd db``: create, migrate and check the database schema."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.cli.output import print_error
from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import migrate

app = typer.Typer(help="Create, migrate and check the database schema at TASKHERD_DATABASE_URL.", no_args_is_help=True)


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Schema revision to migrate to; head is the newest.")] = migrate.HEAD,
) -> None:
    """Create the schema, or migrate it to this release. Running it again changes nothing."""
    settings = load("database_url")
    try:
        state = migrate.upgrade(settings.database_url, revision)
    except Retry as error:
        print_error(
            f"could not lock the tables ({error}); nothing was changed", "try again when the database is less busy"
        )
        raise typer.Exit(1) from None
    typer.echo(f"The schema is at revision {state.actual}.")


@app.command()
def current() -> None:
    """Show the revision of the schema and the revision that this release needs."""
    state = migrate.current(load("database_url").database_url)
    typer.echo(f"found {state.actual or 'none'}, needed {state.expected}: {state.status.value}")


@app.command()
def check() -> None:
    """Check that the schema fits this release; exit with 1 and print what to do if it does not."""
    state = migrate.current(load("database_url").database_url)
    if state.advice:
        print_error(state.advice)
        raise typer.Exit(1)
    typer.echo(f"The schema is at revision {state.actual}, as this release requires.")
