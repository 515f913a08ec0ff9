"""The command ``taskherd``: a typer app that imports each command's module only when the command runs.

``taskherd task``, which scripts call often, and ``taskherd mcp``, for which assistants wait, need neither settings nor
database: they start in a third of the time that importing all commands would take.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from taskherd.cli.output import print_error
from taskherd.errors import Misconfigured, Unavailable

EXIT_UNAVAILABLE = 1
EXIT_MISCONFIGURED = 2
_PACKAGE: Final = "taskherd"

GROUPS: Final = {
    "db": "db",
    "directory": "directory",
    "template": "template",
    "topology": "topology",
    "dead": "dead",
    "token": "token",
    "task": "agent_requests",
}
"""Commands with subcommands, and the module of each."""

SINGLE: Final = ("worker", "api", "runner", "mcp", "fleet", "requests", "usage", "dev", "doctor", "config")
"""Commands without subcommands, each in a module of the same name."""


WITHOUT_SETTINGS: Final = ("task", "mcp", "fleet", "requests", "usage")
"""Commands that are clients of the API: started often, they import neither settings nor logs."""


class Commands(TyperGroup):
    """A group that imports commands on demand, and turns errors that users can fix into a message and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys([*GROUPS, *SINGLE])
        self.commands = names  # typer searches it for the nearest name of a mistyped command

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return [*GROUPS, *SINGLE]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Import and return a command, or return None if there is none with this name."""
        if cmd_name not in {*GROUPS, *SINGLE}:
            return None
        try:
            command = _import_command(cmd_name)
        except ModuleNotFoundError as error:
            command = _unavailable_command(_missing_extra(error, cmd_name))
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            print_error(_missing_extra(error, ctx.invoked_subcommand))
            raise typer.Exit(EXIT_MISCONFIGURED) from None
        except Misconfigured as error:
            print_error("cannot start", *(f"{_variable(setting)}: {expected}" for setting, expected in error.wrong))
            raise typer.Exit(EXIT_MISCONFIGURED) from None
        except Unavailable as error:
            print_error(str(error))
            raise typer.Exit(EXIT_UNAVAILABLE) from None


def _import_command(name: str) -> Any:
    if name in GROUPS:
        return typer.main.get_group(import_module(f"taskherd.cli.{GROUPS[name]}").app)
    single = typer.Typer(add_completion=False)
    import_module(f"taskherd.cli.{name}").register(single)
    return typer.main.get_command(single)


def _missing_extra(error: ModuleNotFoundError, command: str | None) -> str:
    """Return what to install for a command that lacks a library; raise ``error`` if a module of taskherd is missing."""
    library = (error.name or _PACKAGE).partition(".")[0]
    if library == _PACKAGE:
        raise error
    return f"`taskherd {command}` needs more than the client: run `{_install(command)}`"


def _install(command: str | None) -> str:
    return f"pip install 'taskherd[{'local' if command == 'dev' else 'server'}]'"


def _unavailable_command(reason: str) -> Any:
    """Return a command that accepts any arguments and ends with ``reason``, which is its help, too."""
    unavailable = typer.Typer(add_completion=False)
    accepts_anything = {"ignore_unknown_options": True, "allow_extra_args": True}

    @unavailable.command(context_settings=accepts_anything, help=f"Not installed: {reason}.")
    def end() -> None:
        print_error(reason)
        raise typer.Exit(EXIT_MISCONFIGURED)

    return typer.main.get_command(unavailable)


_HELP: Final = """Run and track AI coding agents.

Three processes make up the system: `worker`, `api` and `runner`. `taskherd dev` runs all of them on this machine.
"""

app = typer.Typer(
    cls=Commands,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if not requested:
        return
    from taskherd import __version__  # noqa: PLC0415 - it takes long to look up

    typer.echo(f"taskherd {__version__}")
    raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Prepare what all commands need; the help text is ``_HELP``."""
    if ctx.invoked_subcommand not in WITHOUT_SETTINGS:
        _prepare()


def _prepare() -> None:
    """Configure logs, and warn about ``TASKHERD_…`` variables that are not settings."""
    from taskherd.observability import logs  # noqa: PLC0415
    from taskherd.settings import unknown_variables  # noqa: PLC0415

    logs.configure("warning", "auto")  # worker, api and runner configure them again, from their settings
    for unknown in unknown_variables(os.environ):
        guess = f"; did you mean {unknown.nearest}?" if unknown.nearest else ""
        typer.echo(f"warning: unknown setting {unknown.variable}{guess}", err=True)


def _variable(setting: str) -> str:
    """Return the environment variable of a setting; other names are returned unchanged."""
    from taskherd.settings import Settings, variable_of  # noqa: PLC0415

    return variable_of(setting) if setting in Settings.model_fields else setting
