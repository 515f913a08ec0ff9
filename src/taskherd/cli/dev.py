"""`taskherd dev`: RabbitMQ, PostgreSQL, a worker, the API and a runner on this machine until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskherd.errors import Misconfigured


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("dev")(dev)


def dev(
    services_only: Annotated[bool, typer.Option("--services-only", help="Start just RabbitMQ and PostgreSQL.")] = False,
    data: Annotated[Path, typer.Option("--data", file_okay=False, help="Where they keep their data.")] = Path(
        ".taskherd"
    ),
) -> None:
    """Run private services, a worker, the API and a runner until Ctrl-C; the next start finds what they keep."""
    try:
        from taskherd.dev import dev as session  # noqa: PLC0415 - needs an extra that production does without
    except ModuleNotFoundError as error:
        raise Misconfigured("taskherd dev", f"{error.name} is missing: run `pip install 'taskherd[local]'`") from None
    raise typer.Exit(session.run(services_only=services_only, data=data))
