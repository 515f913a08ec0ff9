"""``taskherd mcp``: serve the task tools over MCP."""

from __future__ import annotations

import os

import typer

from taskherd.cli.output import print_error
from taskherd.client.errors import ClientError
from taskherd.errors import Misconfigured


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("mcp")(mcp)


def mcp() -> None:
    """Serve tools for tasks to AI assistants and agents, over MCP on stdin and stdout.

    With TASKHERD_URL and TASKHERD_TOKEN it offers tools to create, list, read, control and delete tasks. Inside an
    agent that a runner started it offers coder_report_task, with which the agent reports its progress.
    """
    try:
        from taskherd.client import mcp_tools  # noqa: PLC0415 - needs an extra that production does without
    except ModuleNotFoundError as error:
        raise Misconfigured("taskherd mcp", f"{error.name} is missing: run `pip install 'taskherd[mcp]'`") from None
    try:
        server = mcp_tools.server(os.environ)
    except ClientError as error:
        print_error(error.message, error.advice)
        raise typer.Exit(error.code) from None
    server.run("stdio")
