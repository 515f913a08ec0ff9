"""Add up what agents used and cost, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import ConfigDict, Field

from taskherd.api.http.errors import HTTPError, invalid
from taskherd.api.http.query_parameters import QueryModel, TextParameter
from taskherd.api.http.responses import BufferedResponse
from taskherd.domain.usage import COUNTERS, NOTHING, UsageAmounts, total_of
from taskherd.messages.usage import render_amounts
from taskherd.store import usage_queries
from taskherd.store.engine import StatementTimeout
from taskherd.store.usage import NO_CURRENCY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_DAYS: Final = 366
DEFAULT_DAYS: Final = 30
MAX_ROWS: Final = 20_000
"""Maximum number of rows, of which each currency of a group is one, in a response."""
_ADVICE: Final = "Ask for fewer days, or group by less."
_DATE_TEXT: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
CSV: Final = "text/csv; charset=utf-8"
DAY: Final = timedelta(days=1)
_FORMATS: Final = ("json", "csv")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that spreadsheets take for a formula. https://owasp.org/www-community/attacks/CSV_Injection"""


def _date(text: str) -> date:
    with suppress(ValueError):
        if _DATE_TEXT.fullmatch(text):
            return date.fromisoformat(text)
    raise ValueError("Expected a date such as 2026-03-01.")


def _dimensions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not usage_queries.DIMENSIONS.keys() >= set(names):
        raise ValueError(f"Expected names of this list, separated by commas: {', '.join(usage_queries.DIMENSIONS)}.")
    return names


def _format(text: str) -> str:
    if text not in _FORMATS:
        raise ValueError("Expected json or csv.")
    return text


_NAME: Final = f"({'|'.join(usage_queries.DIMENSIONS)})"
_NAMES: Final = f"^{_NAME}(,{_NAME})*$"
_DATE: Final = TextParameter(_date, {"type": "string", "format": "date"})


class UsageQuery(QueryModel):
    """Query parameters of the usage route."""

    model_config = ConfigDict(populate_by_name=True)
    since: Annotated[date | None, _DATE] = Field(
        None, alias="from", description=f"The first day, in UTC. Default: {DEFAULT_DAYS} days before `to`."
    )
    until: Annotated[date | None, _DATE] = Field(
        None, alias="to", description=f"The day after the last one, at most {MAX_DAYS} days later. Default: tomorrow."
    )
    by: Annotated[tuple[str, ...], TextParameter(_dimensions, {"type": "string", "pattern": _NAMES})] = Field(
        ("day",),
        description="By what to group, separated by commas: day, organization, user, template, model. Default: day.",
    )
    format: Annotated[str, TextParameter(_format, {"type": "string", "enum": [*_FORMATS]})] = Field(
        _FORMATS[0], description="Format of the response. Default: json."
    )


async def usage(request: RequestContext) -> BufferedResponse:
    """Return what the agents of the tasks that the caller may see used and cost."""
    query = request.parameters(UsageQuery)
    since, until = _period(query)
    wanted = usage_queries.UsageFilter(request.caller.user_id, since, until, query.by, MAX_ROWS + 1)
    try:
        rows = await usage_queries.sums(request.reader, wanted)
    except StatementTimeout as error:
        raise HTTPError(400, "It takes too long to add up the usage of so many days.", _ADVICE) from error
    if len(rows) > MAX_ROWS:
        raise HTTPError(400, f"The result has more than {MAX_ROWS} rows.", _ADVICE)
    groups = _groups(rows, usage_queries.fields_of(query.by))
    if query.format == "csv":
        name = f"usage-{since}-{until}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return BufferedResponse(200, _csv(groups, usage_queries.fields_of(query.by)), headers, CSV)
    body = {
        "from": str(since),
        "to": str(until),
        "by": query.by,
        "rows": [{**fields, **render_amounts(amounts)} for fields, amounts in groups],
        "total": render_amounts(total_of(amounts for _, amounts in groups)),
    }
    return BufferedResponse(200, json.dumps(body, ensure_ascii=False).encode())  # orjson takes no integer above 64 bits


def _period(query: UsageQuery) -> tuple[date, date]:
    """Return the first day and the day after the last one. Raise a 400 for too many days, or none."""
    until = query.until or datetime.now(UTC).date() + DAY
    since = query.since or max(until, date.min + DEFAULT_DAYS * DAY) - DEFAULT_DAYS * DAY
    if not since < until <= min(since, date.max - MAX_DAYS * DAY) + MAX_DAYS * DAY:
        raise invalid(("to", f"Expected a date 1 to {MAX_DAYS} days after `from`."))
    return since, until


def _groups(rows: Iterable[Row], names: Iterable[str]) -> list[tuple[dict[str, str], UsageAmounts]]:
    """Return the fields and the amounts of each group; of its rows one has the tokens, and each other a currency."""
    groups: dict[tuple[str, ...], UsageAmounts] = {}
    names = list(names)
    for row in rows:
        key = tuple(str(row[name] or "") for name in names)
        cost = {} if row["currency"] == NO_CURRENCY else {row["currency"]: row["amount"]}
        part = UsageAmounts(tuple(int(row[name]) for name in COUNTERS), cost)
        groups[key] = groups.get(key, NOTHING).plus(part)
    return [(dict(zip(names, key, strict=True)), amounts) for key, amounts in groups.items()]


def _csv(groups: Iterable[tuple[Mapping[str, str], UsageAmounts]], names: list[str]) -> bytes:
    """Return the groups as CSV: a line for each, and one more for each further currency, so that columns add up."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*names, *COUNTERS, "amount", "currency"])
    for fields, amounts in groups:
        rendered: dict[str, Any] = render_amounts(amounts)
        labels, tokens = [_cell(fields[name]) for name in names], [rendered[name] for name in COUNTERS]
        for cost in rendered["cost"] or [{"amount": "0", "currency": ""}]:
            writer.writerow([*labels, *tokens, cost["amount"], cost["currency"]])
            tokens = [0] * len(COUNTERS)
    return text.getvalue().encode()


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: agents choose the names of their models."""
    return f"'{text}" if text.startswith(_FORMULA) else text
