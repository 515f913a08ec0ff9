"""``taskherd config``: show the settings of this environment, with secrets hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.cli.output import OutputFormat, OutputOption, document
from taskherd.cli.tables import Column, table
from taskherd.settings import describe, load

if TYPE_CHECKING:
    import typer

_COLUMNS = (
    Column("VARIABLE"),
    Column("VALUE"),
    Column("SOURCE", optional=1),
    Column("DESCRIPTION", optional=2, shortest=30),
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("config")(config)


def config(output: OutputOption = OutputFormat.TABLE) -> None:
    """Show every setting: its value, where the value comes from, and what it does. Secrets are hidden."""
    settings = describe(load("amqp_prefix"))
    if output is OutputFormat.JSON:
        names = ("variable", "value", "source", "default", "expected", "description")
        document([{name: getattr(each, name) for name in names} for each in settings])
    else:
        table(_COLUMNS, ((each.variable, each.value, each.source, each.description) for each in settings))
