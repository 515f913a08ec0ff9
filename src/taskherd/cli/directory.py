"""``taskherd directory``: load organizations, users and templates."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from taskherd.cli.output import OutputFormat, OutputOption, document, print_error, print_note, printable
from taskherd.directory_file.document import MAX_BYTES
from taskherd.directory_file.example import EXAMPLE
from taskherd.directory_file.model import Directory
from taskherd.directory_file.parse import InvalidDirectory, parse
from taskherd.errors import Retry
from taskherd.settings import load
from taskherd.store import directory, migrate
from taskherd.store.directory_changes import DirectoryChanges, EntryAction, EntryChange
from taskherd.store.engine import dispose, open_engine, transaction

app = typer.Typer(help="Load the organizations, users and templates that tasks refer to.", no_args_is_help=True)

NOTHING_CHANGED = "nothing was changed"
PERMISSION = "--allow-deactivate"


@app.command()
def example() -> None:
    """Print an example of a directory file, to start your own from: two users, and two templates."""
    typer.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)


@app.command()
def apply(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="Directory file, as YAML; - is stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    allow_deactivate: Annotated[
        bool,
        typer.Option(
            PERMISSION,
            help="Allow to deactivate an organization, all its members or templates, or more than a tenth of a kind.",
        ),
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make the directory match FILE. Running it again changes nothing.

    Entries that are missing from FILE are deactivated, never deleted. Exits with 1 if FILE is invalid or deactivates
    more than is allowed; then nothing was changed.
    """
    database_url = load("database_url").database_url
    name = file.name.strip("<>")  # stdin is called <stdin>
    try:
        content = parse(file.read(MAX_BYTES + 1))
        if dry_run:
            changes = asyncio.run(_plan(database_url, content))
            _show(changes, output, allowed=allow_deactivate)
        else:
            applied = asyncio.run(_apply(database_url, content, allow_deactivate=allow_deactivate))
            changes = applied.changes
            _report(applied, output)
    except InvalidDirectory as error:
        print_error(f"{name} is invalid; {NOTHING_CHANGED}", *map(printable, error.problems))
        raise typer.Exit(1) from None
    except directory.TooManyDeactivated as error:
        print_error(
            f"{name} would deactivate too much; {NOTHING_CHANGED}",
            *map(printable, error.reasons),
            f"see what would change with --dry-run; if that is what you want, add {PERMISSION}",
        )
        raise typer.Exit(1) from None
    except Retry as error:
        print_error(f"another apply is running ({error}); {NOTHING_CHANGED}", "try again")
        raise typer.Exit(1) from None
    if changes.tokens:
        print_note(
            f"Reactivated users sign in again with {changes.tokens} old token{'s' if changes.tokens > 1 else ''}.",
            "  `taskherd token list --user NAME` shows them, and `taskherd token revoke ID` ends one for good",
        )


def _show(changes: DirectoryChanges, output: OutputFormat, *, allowed: bool) -> None:
    if output is OutputFormat.JSON:
        document({"dry_run": True, **_as_json(changes), "not_allowed": [] if allowed else list(changes.excessive)})
        return
    for each in changes.changes:
        fields = f": {', '.join(_describe_field(each, name) for name in each.fields)}" if each.fields else ""
        typer.echo(printable(f"{each.action.value} {each.kind} {each.name}{fields}"))
    typer.echo(f"{changes.summary if changes.changes else 'No changes'}; this was a dry run.")
    if changes.excessive and not allowed:
        typer.echo(printable(f"To apply this, add {PERMISSION}: it deactivates {'; '.join(changes.excessive)}."))


def _describe_field(change: EntryChange, name: str) -> str:
    """Return a changed field with its values, if they are shown: ``role "member" → "admin"``."""
    if name not in change.values:
        return f"{name} changed"
    before, after = (json.dumps(value, ensure_ascii=False) for value in change.values[name])
    return f"{name} {before} → {after}"


def _as_json(changes: DirectoryChanges) -> dict[str, Any]:
    listed = [{**vars_of, "fields": list(vars_of["fields"])} for vars_of in map(asdict, changes.changes)]
    return {"changes": listed, **{action.value: changes.count(action) for action in EntryAction}}


def _report(applied: directory.AppliedChanges, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        document({"dry_run": False, **_as_json(applied.changes), "revision": applied.revision})
        return
    result = applied.changes.summary if applied.changed else "No changes"
    typer.echo(f"{result}; the directory is at revision {applied.revision}.")


async def _plan(database_url: str, content: Directory) -> DirectoryChanges:
    engine = open_engine(database_url, size=1, application_name="taskherd-directory")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await directory.plan(conn, content)
    finally:
        await dispose(engine)


async def _apply(database_url: str, content: Directory, *, allow_deactivate: bool) -> directory.AppliedChanges:
    engine = open_engine(database_url, size=1, application_name="taskherd-directory")
    try:
        async with transaction(engine) as conn:
            await migrate.check(conn)
            return await directory.apply(conn, content, allow_deactivate=allow_deactivate)
    finally:
        await dispose(engine)
