"""The command `taskherd`: one typer app that the areas add their commands to."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from taskherd import __version__
from taskherd.cli import (
    api,
    config,
    db,
    dead,
    demo,
    dev,
    directory,
    doctor,
    follow,
    mcp,
    runner,
    token,
    topology,
    worker,
)
from taskherd.errors import Misconfigured, Unavailable
from taskherd.observe import logs
from taskherd.settings import Settings, unknown_variables, variable_of

EXIT_UNAVAILABLE = 1
EXIT_MISCONFIGURED = 2


class PlainErrors(TyperGroup):
    """Turns the errors a person can mend into a message and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except Misconfigured as error:
            typer.echo("taskherd can't start:", err=True)
            for setting, expected in error.wrong:
                typer.echo(f"{_variable(setting)}: {expected}", err=True)
            raise typer.Exit(EXIT_MISCONFIGURED) from None
        except Unavailable as error:
            typer.echo(f"taskherd can't go on: {error}", err=True)
            raise typer.Exit(EXIT_UNAVAILABLE) from None


app = typer.Typer(
    cls=PlainErrors,
    help="Keeps the truth about every AI agent task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"taskherd {__version__}")
    raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Keeps the truth about every AI agent task."""
    logs.configure("warning", "auto")  # a process that stays configures them again, by its settings
    for unknown in unknown_variables(os.environ):
        guess = f"; did you mean {unknown.nearest}?" if unknown.nearest else ""
        typer.echo(f"warning: {unknown.variable} is no setting of taskherd{guess}", err=True)


def _variable(setting: str) -> str:
    """Return what people know a setting by: its variable."""
    return variable_of(setting) if setting in Settings.model_fields else setting


app.add_typer(db.app, name="db")
app.add_typer(directory.app, name="directory")
app.add_typer(topology.app, name="topology")
app.add_typer(dead.app, name="dead")
app.add_typer(token.app, name="token")
app.add_typer(follow.app, name="task")
for command in (worker, api, runner, mcp, dev, demo, doctor, config):
    command.register(app)
