"""``taskherd db``: create, migrate and check the database schema."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from taskherd.cli.options import parse_duration
from taskherd.cli.output import OutputFormat, OutputOption, document, print_error
from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import grants as privileges
from taskherd.store import migrate
from taskherd.store import role_settings as roles

app = typer.Typer(help="Create, migrate and check the database schema at TASKHERD_DATABASE_URL.", no_args_is_help=True)


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Schema revision to migrate to; head is the newest.")] = migrate.HEAD,
    grants: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="SQL to execute afterwards, such as deploy/postgres/grants.sql."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="DURATION", parser=parse_duration, help="Give up after 30s, 10m, 2h. Default: never."
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Create the schema, or migrate it to this release. Running it again changes nothing."""
    settings = load("database_url")
    try:
        state = migrate.upgrade(settings.database_url, revision, timeout=timeout)
    except migrate.MigrationCanceled as error:
        print_error(str(error), "a migration of many millions of tasks takes hours: allow it more time")
        raise typer.Exit(1) from None
    except Retry as error:
        print_error(
            f"could not lock the tables ({error}); nothing was changed", "try again when the database is less busy"
        )
        raise typer.Exit(1) from None
    if grants is not None:
        asyncio.run(privileges.apply(settings.database_url, grants.read_text(encoding="utf-8")))
    _print(state, f"The schema is at revision {state.actual}.", output)


@app.command()
def current(output: OutputOption = OutputFormat.TABLE) -> None:
    """Show the revision of the schema and the revision that this release needs."""
    state = migrate.current(load("database_url").database_url)
    _print(state, f"found {state.actual or 'none'}, needed {state.expected}: {state.status.value}", output)


@app.command()
def check(output: OutputOption = OutputFormat.TABLE) -> None:
    """Check that the schema fits this release; exit with 1 and print what to do if it does not."""
    state = migrate.current(load("database_url").database_url)
    if not state.advice:
        _print(state, f"The schema is at revision {state.actual}, as this release requires.", output)
        return
    if output is OutputFormat.JSON:
        document(_as_json(state))
    print_error(state.advice)
    raise typer.Exit(1)


@app.command()
def role_settings(
    apply: Annotated[
        bool, typer.Option("--apply", help="Execute the statements instead of only printing them.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print the statements that give the user of TASKHERD_DATABASE_URL the settings that its sessions need.

    Behind a PgBouncer in transaction mode, sessions get their timeouts from nowhere else.
    """
    url = load("database_url").database_url
    statements = asyncio.run(roles.apply(url) if apply else roles.statements(url))
    if output is OutputFormat.JSON:
        document({"statements": list(statements), "applied": apply})
        return
    for statement in statements:
        typer.echo(f"{statement};")
    if apply:
        typer.echo("-- applied to sessions that begin from now on: run RECONNECT in PgBouncer's console")


def _print(state: migrate.SchemaState, sentence: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        document(_as_json(state))
    else:
        typer.echo(sentence)


def _as_json(state: migrate.SchemaState) -> dict[str, Any]:
    return {"found": state.actual, "needed": state.expected, "status": state.status.value}
