"""``taskherd api``: serve the HTTP API until SIGTERM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("api")(api)


def api() -> None:
    """Serve the HTTP API: read tasks from the database, send changes to the worker as commands.

    It is configured with TASKHERD_… variables (see `taskherd config`) and runs until SIGTERM or Ctrl-C.
    """
    from taskherd.api.app import main  # noqa: PLC0415 - the other commands start faster without it
    from taskherd.settings import load  # noqa: PLC0415 - as above

    main(load())
