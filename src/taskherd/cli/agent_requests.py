"""``taskherd task requests`` and ``task answer``: what an agent asks people for, and the answer to it."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.cli import request_output
from taskherd.cli.labels import app
from taskherd.cli.output import OutputFormat, OutputOption, document, print_note, printable
from taskherd.cli.task import EXIT_CODES, TaskArgument, read
from taskherd.client import agent_requests, http

__all__ = ["app"]


@app.command(epilog=EXIT_CODES)
def requests(
    task: TaskArgument,
    open_only: Annotated[bool, typer.Option("--open", help="Only requests that wait for an answer.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what a task's agent asks for, and what became of earlier requests and by whom; open ones come first."""
    client = http.from_environment()
    found = agent_requests.open_of(client, task) if open_only else list(agent_requests.of_task(client, task))
    if output is OutputFormat.JSON:
        document(found)
    elif found:
        request_output.of_task(found, task)
    else:
        print_note("The agent asks nothing." if open_only else "The agent has asked nothing.")


@app.command(epilog=EXIT_CODES)
def answer(
    task: TaskArgument,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REQUEST] [OPTION]",
            help="The request, by its id or the beginning of it: not needed if only one is open. Then the option, by"
            " its id or label; of a question without options, the text.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str, typer.Option("--text", help="Text: the answer, or what to say with the option; - reads it from stdin.")
    ] = "",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Answer what a task's agent asks. The first answer counts; a later one is refused, with who gave the first."""
    client = http.from_environment()
    given = words or []
    if len(given) > request_output.MAX_WORDS:
        raise typer.BadParameter("expected a request and an option; write a text of several words in quotes")
    chosen, body = agent_requests.choose(agent_requests.open_of(client, task), given, read(text))
    agent_requests.answer(client, task, chosen, body)
    if output is OutputFormat.JSON:
        document({"request_id": chosen["id"], **body})
    else:
        typer.echo(f"Answered: {printable(chosen['title'])}")
