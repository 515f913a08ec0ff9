"""Run the command ``taskherd``, also as ``python -m taskherd``."""

from __future__ import annotations

import sys


def start() -> None:
    """Run the command line; ``taskherd mcp``, for which assistants wait, without importing typer."""
    if sys.argv[1:] == ["mcp"]:
        from taskherd.cli.serve_mcp import serve  # noqa: PLC0415

        raise SystemExit(serve())
    from taskherd.cli.main import app  # noqa: PLC0415

    app(prog_name="taskherd")


if __name__ == "__main__":
    start()
