"""`taskherd config`: every setting as this process sees it, with secrets hidden."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taskherd.settings import describe, load


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("config")(config)


def config(
    plain: Annotated[bool, typer.Option("--plain", help="As NAME=value lines instead of a table.")] = False,
) -> None:
    """Show every setting, where it comes from and what it is for; secrets are hidden."""
    described = describe(load("amqp_prefix"))
    if plain:
        for each in described:
            typer.echo(f"{each.variable}={each.value}")
        return
    table = Table(title="taskherd settings", title_justify="left")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from")
    table.add_column("what it is for")
    for each in described:
        style = "" if each.source == "default" else "bold"
        table.add_row(each.variable, each.value, each.source, each.meaning, style=style)
    Console(markup=False, highlight=False).print(table)
