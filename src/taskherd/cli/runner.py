"""``taskherd runner``: run agents until SIGTERM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("runner")(runner)


def runner() -> None:
    """Run the agents of tasks: start, follow and stop them as the worker requests.

    It is configured with TASKHERD_… variables (see `taskherd config`) and runs until SIGTERM or Ctrl-C. Its agents keep
    running when it stops; the next runner on the same folder adopts them.
    """
    from taskherd.runner.app import main  # noqa: PLC0415 - the other commands start faster without it
    from taskherd.settings import load  # noqa: PLC0415 - as above

    main(load("amqp_url"))
