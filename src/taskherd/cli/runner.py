"""``taskherd runner``: run agents until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def runner() -> None:
        """Start, follow and stop the agents of tasks, as the worker asks. Set up by TASKHERD_… variables."""
        from taskherd.runner.app import main  # noqa: PLC0415 - the other commands start faster without it
        from taskherd.settings import load  # noqa: PLC0415

        main(load("amqp_url"))
