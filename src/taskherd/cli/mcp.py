"""``taskherd mcp``: serve the task tools over MCP."""

from __future__ import annotations

import typer

from taskherd.cli.serve_mcp import serve


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("mcp")(mcp)


def mcp() -> None:
    """Serve tools for tasks to AI assistants and agents, over MCP on stdin and stdout.

    With TASKHERD_URL and TASKHERD_TOKEN it offers tools to list templates, to create, list, read, send input to,
    interrupt and delete tasks, and to answer what their agents ask. Inside an agent that a runner started it offers
    coder_report_task and report_usage, with which the agent reports its progress and what it used, and ask_person, with
    which it asks people and waits for the answer.
    """
    raise typer.Exit(serve())
