"""The command `taskherd`: one typer app, whose commands are imported when they are asked for.

`taskherd task` is what people and scripts call over and over, and it needs neither the settings nor the database: it
starts in a third of the time that importing everything takes.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from taskherd.errors import Misconfigured, Unavailable

EXIT_UNAVAILABLE = 1
EXIT_MISCONFIGURED = 2

GROUPS: Final = {
    "db": "db",
    "directory": "directory",
    "topology": "topology",
    "dead": "dead",
    "token": "token",
    "task": "follow",
}
"""The names of commands that have commands of their own, and the module of each."""

ALONE: Final = ("worker", "api", "runner", "mcp", "dev", "doctor", "config")
"""The names of the others, each in a module of that name."""


class Commands(TyperGroup):
    """Finds a command by its name, and turns the errors a person can mend into a message and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys([*GROUPS, *ALONE])
        self.commands = names  # where the name that somebody may have meant is looked for

    def list_commands(self, _ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return [*GROUPS, *ALONE]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """The command of this name, None where there is none."""
        if cmd_name in GROUPS:
            found: Any = typer.main.get_group(import_module(f"taskherd.cli.{GROUPS[cmd_name]}").app)
        elif cmd_name in ALONE:
            one = typer.Typer(add_completion=False)
            import_module(f"taskherd.cli.{cmd_name}").register(one)
            found = typer.main.get_command(one)
        else:
            return None
        found.name = cmd_name
        return found

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
    cls=Commands,
    help="Keeps the truth about every AI agent task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from taskherd import __version__  # noqa: PLC0415 - see there

    typer.echo(f"taskherd {__version__}")
    raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Keeps the truth about every AI agent task."""
    if ctx.invoked_subcommand != "task":
        _prepare()


def _prepare() -> None:
    """Set up logs, and warn of variables that look like settings and are none."""
    from taskherd.observability import logs  # noqa: PLC0415
    from taskherd.settings import unknown_variables  # noqa: PLC0415

    logs.configure("warning", "auto")  # a process that stays configures them again, by its settings
    for unknown in unknown_variables(os.environ):
        guess = f"; did you mean {unknown.nearest}?" if unknown.nearest else ""
        typer.echo(f"warning: {unknown.variable} is no setting of taskherd{guess}", err=True)


def _variable(setting: str) -> str:
    """Return what people know a setting by: its variable."""
    from taskherd.settings import Settings, variable_of  # noqa: PLC0415

    return variable_of(setting) if setting in Settings.model_fields else setting
