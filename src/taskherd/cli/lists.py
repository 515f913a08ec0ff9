"""``taskherd task list``, ``deleted``, ``totals`` and ``overview``: the tasks that match, and how many there are."""

from __future__ import annotations

from typing import Annotated

import typer

from taskherd.cli import overview_output, task_output
from taskherd.cli.follow import app
from taskherd.cli.output import OutputFormat, OutputOption, document, print_note
from taskherd.cli.task import EXIT_CODES
from taskherd.client import http, tasks
from taskherd.client.errors import ClientError, ExitCode

__all__ = ["app"]

QueryOption = Annotated[
    str, typer.Option("--query", metavar="Q", help="Search terms of tasks, such as 'owner:me template:claude'.")
]


@app.command("list", epilog=EXIT_CODES)
def list_(
    *,
    owner: Annotated[str, typer.Option("--owner", help="Only tasks of this user.")] = "me",
    all_owners: Annotated[bool, typer.Option("--all", help="All tasks visible to you.")] = False,
    status: Annotated[
        str | None,
        typer.Option("--status", help="Only tasks that are pending, initializing, active, paused, error or unknown."),
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Only tasks whose agent is working, idle, complete or failed.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="Only tasks of the template of this name.")] = None,
    organization: Annotated[str | None, typer.Option("--organization", help="Only tasks of this organization.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="KEY=VALUE", help="Only tasks with this label.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query", metavar="Q", help="Search terms instead, such as 'health:lost runner:rack-7 changed:<1d'."
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", help="created: newest first, the default; changed: last changed first.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of tasks.")] = 100,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List tasks, newest first, with the time since they were created (AGE) and since their last change (UPDATED)."""
    filters = {"status": status, "state": state, "template": template, "organization": organization, "label": label}
    if query is not None and any(filters.values()):
        raise ClientError(ExitCode.USAGE, "give either --query or single filters", "write all of them as search terms")
    terms = {key: value for key, value in {"owner": None if all_owners else owner, **filters}.items() if value}
    found = list(tasks.list_tasks(http.from_environment(), terms, limit + 1, query=query, sort=sort))
    documents = found[:limit]
    if output is OutputFormat.JSON:
        document(documents)
    elif documents:
        task_output.tasks(documents)
    elif any(filters.values()) or owner != "me" or query is not None:
        print_note("No tasks match.", "  leave out a filter, or add --all for the tasks of all owners")
    else:
        print_note("No tasks.", '  create one with: taskherd task create "PROMPT"')
    if len(found) > limit:
        print_note(f"Only the newest {limit} are listed; see more with --limit.")


@app.command("deleted", epilog=EXIT_CODES)
def deleted(
    *,
    owner: Annotated[str, typer.Option("--owner", help="Only tasks of this user.")] = "me",
    all_owners: Annotated[bool, typer.Option("--all", help="All deleted tasks visible to you.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Only tasks whose names begin like this.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=tasks.MAX_DELETED, help="Maximum number of tasks.")
    ] = tasks.MAX_DELETED,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List deleted tasks, last deleted first, with who deleted each and when, until their contents are erased."""
    terms = {key: value for key, value in {"owner": None if all_owners else owner, "name": name}.items() if value}
    found, may_follow = tasks.list_deleted(http.from_environment(), terms, limit)
    if output is OutputFormat.JSON:
        document(found)
    elif found:
        task_output.deleted(found)
    elif may_follow:
        print_note("No deleted tasks among the last ones.")
    elif name or all_owners or owner != "me":
        print_note("No deleted tasks match.", "  leave out a filter, or add --all for the tasks of all owners")
    else:
        print_note("No deleted tasks.", "  see those of all owners with: taskherd task deleted --all")
    if len(found) == limit:
        print_note(f"At most the last {limit} deleted are listed; see others with --name or --owner.")
    elif may_follow:
        print_note("There may be earlier ones: others have deleted very many tasks since.")


@app.command(epilog=EXIT_CODES)
def totals(query: QueryOption = "", output: OutputOption = OutputFormat.TABLE) -> None:
    """Show how many tasks you may see, by status, state and health, and how many of them need a person."""
    found = tasks.totals(http.from_environment(), query)
    if output is OutputFormat.JSON:
        document(found)
    else:
        overview_output.totals(found)


@app.command(epilog=EXIT_CODES)
def overview(query: QueryOption = "", output: OutputOption = OutputFormat.TABLE) -> None:
    """Show what needs a person, what runs and what ended, of all tasks that you may see: a few of each, and totals."""
    found = tasks.overview(http.from_environment(), query)
    if output is OutputFormat.JSON:
        document(found)
    else:
        overview_output.overview(found, query)
