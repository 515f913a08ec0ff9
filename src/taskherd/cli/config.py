"""``taskherd config``: show the settings of this environment, with secrets hidden."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taskherd.settings import describe, load


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("config")(config)


def config(
    plain: Annotated[bool, typer.Option("--plain", help="Print NAME=value lines instead of a table.")] = False,
) -> None:
    """Show every setting: its value, where the value comes from, and what it does. Secrets are hidden."""
    settings = describe(load("amqp_prefix"))
    if plain:
        for setting in settings:
            typer.echo(f"{setting.variable}={setting.value}")
        return
    table = Table(title="taskherd settings", title_justify="left")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("source")
    table.add_column("description")
    for setting in settings:
        style = "" if setting.source == "default" else "bold"
        table.add_row(setting.variable, setting.value, setting.source, setting.description, style=style)
    Console(markup=False, highlight=False).print(table)
