"""``taskherd api``: serve the HTTP API until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def api() -> None:
        """Serve the API: read what the worker keeps, turn writes into commands. Set up by TASKHERD_… variables."""
        from taskherd.api.app import main  # noqa: PLC0415 - the other commands start faster without it
        from taskherd.settings import load  # noqa: PLC0415

        main(load())
