"""`taskherd mcp`: the tools of tasks over MCP, for agents and for people's assistants."""

from __future__ import annotations

import os

import typer

from taskherd.client.errors import ClientError
from taskherd.errors import Misconfigured


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("mcp")(mcp)


def mcp() -> None:
    """Serve MCP on stdin and stdout: report_task with an agent's token, the tools of tasks with a person's."""
    try:
        from taskherd.client import mcp_tools  # noqa: PLC0415 - needs an extra that production does without
    except ModuleNotFoundError as error:
        raise Misconfigured("taskherd mcp", f"{error.name} is missing: run `pip install 'taskherd[mcp]'`") from None
    try:
        server = mcp_tools.server(os.environ)
    except ClientError as error:
        typer.echo(f"{error.message}; {error.advice}", err=True)
        raise typer.Exit(error.code) from None
    server.run("stdio")
