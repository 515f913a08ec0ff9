"""`taskherd demo`: see the whole thing at work on this machine, for a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskherd.errors import Misconfigured


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(demo)


def demo(
    data: Annotated[Path, typer.Option("--data", file_okay=False, help="Where its services keep their data.")] = Path(
        ".taskherd/demo"
    ),
) -> None:
    """Run private services, a worker, the API and a runner with a dozen agents; watch, and see it judged."""
    try:
        from taskherd.dev.demo import demo as session  # noqa: PLC0415 - needs an extra that production does without
    except ModuleNotFoundError as error:
        raise Misconfigured("taskherd demo", f"{error.name} is missing: run `pip install 'taskherd[local]'`") from None
    raise typer.Exit(session.run(data))
