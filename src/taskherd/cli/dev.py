"""``taskherd dev``: run the whole system on this machine until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskherd.errors import Misconfigured


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("dev")(dev)


def dev(
    services_only: Annotated[bool, typer.Option("--services-only", help="Start only RabbitMQ and PostgreSQL.")] = False,
    data: Annotated[
        Path, typer.Option("--data", file_okay=False, help="Folder for all data; the next start reuses it.")
    ] = Path(".taskherd"),
) -> None:
    """Run private RabbitMQ and PostgreSQL servers, a worker, the API and a runner until Ctrl-C.

    For development and evaluation. If TASKHERD_AMQP_URL or TASKHERD_DATABASE_URL is set, that server is used instead.
    """
    try:
        from taskherd.dev import dev as session  # noqa: PLC0415 - needs an extra that production does without
    except ModuleNotFoundError as error:
        raise Misconfigured("taskherd dev", f"{error.name} is missing: run `pip install 'taskherd[local]'`") from None
    raise typer.Exit(session.run(services_only=services_only, data=data))
