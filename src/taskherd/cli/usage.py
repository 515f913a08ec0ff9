"""``taskherd usage``: print what agents used and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer

from taskherd.cli.output import OutputFormat, OutputOption, document, print_failure
from taskherd.cli.tables import Column, table
from taskherd.client import http
from taskherd.client.errors import ClientError

_TOKENS: Final = {
    "INPUT": "input_tokens",
    "OUTPUT": "output_tokens",
    "CACHE READ": "cache_read_tokens",
    "CACHE WRITE": "cache_write_tokens",
}
_LABELS: Final = {"organization": "organization_name", "user": "user_name", "template": "template_name"}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("usage")(usage)


def usage(
    *,
    since: Annotated[
        str, typer.Option("--from", metavar="DATE", help="First day, in UTC. Default: 30 days before --to.")
    ] = "",
    until: Annotated[
        str, typer.Option("--to", metavar="DATE", help="Day after the last one, in UTC. Default: tomorrow.")
    ] = "",
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="NAMES",
            help="What to group by, separated by commas: day, organization, user, template, model.",
        ),
    ] = "day",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print the tokens and the cost that agents reported, added up.

    Counts your tasks, and all tasks of the organizations that you are an admin of, through the API at TASKHERD_URL
    with the token in TASKHERD_TOKEN. Deleted tasks count too.
    """
    query = {name: value for name, value in (("from", since), ("to", until), ("by", by)) if value}
    try:
        report = http.from_environment().request("GET", "usage", query=query).body
    except ClientError as error:
        print_failure(error)
        raise typer.Exit(error.code) from None
    if output is OutputFormat.JSON:
        document(report)
    else:
        _print(report)


def _print(report: Mapping[str, Any]) -> None:
    names = report["by"]
    columns = [
        *(Column(name.upper()) for name in names),
        *(Column(heading, optional=2 if "CACHE" in heading else 1) for heading in _TOKENS),
        Column("COST"),
    ]
    rows = [[*(row[_LABELS.get(name, name)] or "-" for name in names), *_numbers(row)] for row in report["rows"]]
    total = ["total", *[""] * (len(names) - 1), *_numbers(report["total"])]
    table(columns, [*rows, total])


def _numbers(amounts: Mapping[str, Any]) -> Iterable[str]:
    yield from (f"{amounts[name]:,}" for name in _TOKENS.values())
    yield ", ".join(f"{cost['amount']} {cost['currency']}" for cost in amounts["cost"]) or "-"
