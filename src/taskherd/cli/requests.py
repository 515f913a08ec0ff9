"""``taskherd requests``: what the agents of all tasks ask people for."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from taskherd.cli import request_output
from taskherd.cli.output import OutputFormat, OutputOption, document, print_failure, print_note
from taskherd.client import agent_requests, http
from taskherd.client.errors import ClientError


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("requests")(requests)


def requests(
    *,
    query: Annotated[
        str, typer.Option("--query", metavar="Q", help="Search terms of tasks, such as 'owner:me template:claude'.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of requests.")] = 100,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List what agents ask and wait for, oldest first.

    Of all tasks that you may see, through the API at TASKHERD_URL with the token in TASKHERD_TOKEN. Answer with
    `taskherd task answer`.
    """
    try:
        found = list(islice(agent_requests.waiting(http.from_environment(), query), limit + 1))
    except ClientError as error:
        print_failure(error)
        raise typer.Exit(error.code) from None
    shown = found[:limit]
    if output is OutputFormat.JSON:
        document(shown)
    elif shown:
        request_output.queue(shown)
    else:
        print_note("No agent waits for an answer.")
    if len(found) > limit:
        print_note(f"Only the oldest {limit} are listed; see more with --limit.")
