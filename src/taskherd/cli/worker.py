"""``taskherd worker``: run a worker until SIGTERM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("worker")(worker)


def worker() -> None:
    """Run a worker: consume reports and commands, update tasks, publish changes.

    It is configured with TASKHERD_… variables (see `taskherd config`) and runs until SIGTERM or Ctrl-C.
    """
    from taskherd.settings import load  # noqa: PLC0415 - the other commands start faster without it
    from taskherd.worker.app import main  # noqa: PLC0415 - as above

    main(load())
