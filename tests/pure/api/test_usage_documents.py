"""Sums of usage as programs and spreadsheets read them, and which days may be asked for."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from taskherd.api.http.endpoint import request_context
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.usage import handlers
from taskherd.api.usage.handlers import MAX_ROWS, UsageQuery
from taskherd.domain.usage import COUNTERS
from taskherd.store.engine import StatementTimeout

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext, RequestContext

ALICE = UUID(int=1)


class Reader:
    """A database with these sums."""

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.rows = rows
        self.asked: list[tuple[Any, ...]] = []

    async def fetch(self, _statement: str, *values: Any) -> Sequence[dict[str, Any]]:
        """Return the sums."""
        self.asked.append(values)
        return self.rows


class SlowReader(Reader):
    """A database whose sums take longer than a statement may."""

    async def fetch(self, _statement: str, *_values: Any) -> Sequence[dict[str, Any]]:
        """Take too long."""
        raise StatementTimeout("canceling statement due to statement timeout")


def ask(query: str, reader: Reader) -> BufferedResponse:
    """Return what the route answers to Alice."""
    scope = {"method": "GET", "path_params": {}, "query_string": query.encode(), "headers": []}
    parsed = request_context(cast("ApiContext", None), scope)
    parsed.query_model = UsageQuery
    request = SimpleNamespace(
        parameters=parsed.parameters,
        reader=reader,
        caller=SimpleNamespace(user_id=ALICE),
    )
    return asyncio.run(handlers.usage(cast("RequestContext", request)))


def days(query: str) -> tuple[date, date] | str:
    """Return the days that are asked for, or the parameter that is wrong."""
    reader = Reader()
    try:
        ask(query, reader)
    except HTTPError as error:
        return f"{error.response.status}: {json.loads(error.response.body)['validations'][0]['field']}"
    ((caller, since, number, limit),) = reader.asked
    assert (caller, limit) == (ALICE, 20_001)
    return since, since + timedelta(days=number)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("from=2026-01-01&to=2026-01-02", (date(2026, 1, 1), date(2026, 1, 2))),
        ("from=2026-01-01&to=2027-01-02", (date(2026, 1, 1), date(2027, 1, 2))),
        ("from=2026-01-01&to=2027-01-03", "400: to"),
        ("from=2026-01-01&to=2026-01-01", "400: to"),
        ("from=2026-01-02&to=2026-01-01", "400: to"),
        ("to=2026-01-31", (date(2026, 1, 1), date(2026, 1, 31))),
        ("to=0001-01-02", (date(1, 1, 1), date(1, 1, 2))),
        ("to=0001-01-01", "400: to"),
        ("from=9999-12-30&to=9999-12-31", (date(9999, 12, 30), date(9999, 12, 31))),
        ("from=2026-02-30", "400: from"),
        ("from=20260101", "400: from"),
        ("from=2026-W01-1", "400: from"),
        ("to=2026-01-1", "400: to"),
        ("by=day,hour", "400: by"),
        ("format=xml", "400: format"),
    ],
)
def test_which_days_may_be_asked_for(query: str, expected: tuple[date, date] | str) -> None:
    """From one to 366, at either end of time, too."""
    assert days(query) == expected


def test_the_last_thirty_days_are_the_default() -> None:
    """With today, of which nothing is missing yet."""
    before = datetime.now(UTC).date()
    since_until = days("")
    assert since_until in {
        (today - timedelta(days=29), today + timedelta(days=1)) for today in (before, datetime.now(UTC).date())
    }


def row(currency: str = "", amount: str = "0", tokens: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a sum, of which each counter has another number."""
    counters = {name: Decimal(tokens * (place + 1)) for place, name in enumerate(COUNTERS)}
    return {**fields, **counters, "currency": currency, "amount": Decimal(amount)}


ROWS = (
    row(model="opus", tokens=10**20),
    row("EUR", "0.5", model="opus"),
    row("USD", "1.250", model="opus"),
    row(model="=HYPERLINK()", tokens=1),
    row("USD", "2", model=None),
    row(model="naïve", tokens=2),
)


def test_sums_for_programs() -> None:
    """One row for each group, with all its currencies, and the total; of any size."""
    answer = json.loads(ask("by=model,model&to=2026-01-31", Reader(ROWS)).body)
    assert (answer["from"], answer["to"], answer["by"]) == ("2026-01-01", "2026-01-31", ["model"])
    assert [each["model"] for each in answer["rows"]] == ["opus", "=HYPERLINK()", "", "naïve"]
    assert [each["cost"] for each in answer["rows"]] == [
        [{"amount": "0.5", "currency": "EUR"}, {"amount": "1.25", "currency": "USD"}], [],
        [{"amount": "2", "currency": "USD"}], [],
    ]  # fmt: skip
    for place, name in enumerate(COUNTERS, start=1):
        assert [each[name] for each in answer["rows"]] == [10**20 * place, place, 0, 2 * place]
        assert answer["total"][name] == (10**20 + 3) * place
    assert {each["currency"]: each["amount"] for each in answer["total"]["cost"]} == {"EUR": "0.5", "USD": "3.25"}
    assert "naïve".encode() in ask("by=model", Reader(ROWS)).body
    assert json.loads(ask("", Reader()).body)["rows"] == []


def test_sums_for_spreadsheets() -> None:
    """A line for each currency, in which columns add up; nothing is taken for a formula."""
    response = ask("by=model&from=2026-01-01&to=2026-01-31&format=csv", Reader(ROWS))
    assert response.content_type == "text/csv; charset=utf-8"
    assert response.headers["Content-Disposition"] == 'attachment; filename="usage-2026-01-01-2026-01-31.csv"'
    header, *lines = csv.reader(io.StringIO(response.body.decode()))
    assert header == ["model", *COUNTERS, "amount", "currency"]
    none = ["0"] * len(COUNTERS)
    many, one, two = ([str(n * (place + 1)) for place in range(len(COUNTERS))] for n in (10**20, 1, 2))
    assert lines == [
        ["opus", *many, "0.5", "EUR"],
        ["opus", *none, "1.25", "USD"],
        ["'=HYPERLINK()", *one, "0", ""],
        ["", *none, "2", "USD"],
        ["naïve", *two, "0", ""],
    ]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_is_taken_for_a_formula(first: str) -> None:
    """Agents choose the names of their models."""
    response = ask("by=model&format=csv", Reader([row(model=f"{first}x", tokens=1)]))
    (_, line) = csv.reader(io.StringIO(response.body.decode(), newline=""))
    assert line[0] == f"'{first}x"


@pytest.mark.parametrize(("count", "status"), [(MAX_ROWS, 200), (MAX_ROWS + 1, 400)])
def test_a_response_has_so_many_rows(count: int, status: int) -> None:
    """For more, the error says what to do."""
    reader = Reader([row(model=str(number)) for number in range(count)])
    try:
        response = ask("by=model", reader)
    except HTTPError as error:
        response = error.response
    assert (MAX_ROWS, response.status) == (20_000, status)
    assert (b"20000 rows" in response.body) is (status == 400)


def test_sums_that_take_too_long_are_refused_with_what_to_ask_for() -> None:
    """The same request would take as long again, so it is no error after which to repeat it."""
    with pytest.raises(HTTPError) as raised:
        ask("from=2026-01-01&to=2026-12-31", SlowReader())
    assert raised.value.response.status == 400
    assert json.loads(raised.value.response.body) == {
        "message": "It takes too long to add up the usage of so many days.",
        "detail": "Ask for fewer days, or group by less.",
    }
