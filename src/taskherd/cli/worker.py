"""``taskherd worker``: run a worker until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def worker() -> None:
        """Consume reports and commands, keep the truth, publish the changes. Set up by TASKHERD_… variables."""
        from taskherd.settings import load  # noqa: PLC0415
        from taskherd.worker.app import main  # noqa: PLC0415 - the other commands start faster without it

        main(load())
