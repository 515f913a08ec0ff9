"""Serve MCP on this process's stdin and stdout; imports neither typer nor rich, whose import takes half of a start."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from taskherd import __version__
from taskherd.client import mcp_stdio, mcp_tools
from taskherd.client.errors import ClientError


def serve() -> int:
    """Serve the tools for which the environment has tokens until stdin ends, and return the exit code."""
    try:
        tools = mcp_tools.available(os.environ)
    except ClientError as error:
        sys.stderr.write(f"error: {error.message}\n{error.advice}\n")
        return error.code
    source, output = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what anything else prints must not get between the messages
    with suppress(BrokenPipeError):
        mcp_stdio.Server(mcp_tools.NAME, __version__, tools, output).run(source)
    return 0
