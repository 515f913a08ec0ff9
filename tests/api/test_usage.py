"""Usage over HTTP: what agents report, who sees the sums, and in which forms."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import uuid
from datetime import date, timedelta
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from taskherd.api.usage import handlers
from taskherd.cli.main import app
from taskherd.messages.agent_tokens import agent_token
from taskherd.observability import logs
from tests.api.test_access import SIGNED_OUT
from tests.harness.api import ALICE, BOB, MALLORY, OTHER, OTHER_TEMPLATE, ApiHarness
from tests.harness.worker import ORGANIZATION, SECRET, TEMPLATE, make_report

FIRST = date(2026, 3, 1)
COUNTERS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


async def book(harness: ApiHarness, day: int, user: uuid.UUID, model: str, tokens: int, **cost: str) -> None:
    """Book tokens and costs by currency on a day of March."""
    organization, template = (OTHER, OTHER_TEMPLATE) if user == MALLORY else (ORGANIZATION, TEMPLATE)
    for currency, amount in {"": "0", **cost}.items():
        await harness.worker.database.execute(
            "INSERT INTO daily_usage VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 1, $8::text::numeric)",
            FIRST + timedelta(days=day - 1), organization, user, template, model, currency,
            0 if currency else tokens, amount,
        )  # fmt: skip


async def march(harness: ApiHarness) -> None:
    """Book the usage of three users on some days of March."""
    await book(harness, 1, ALICE, "opus", 10, USD="0.1")
    await book(harness, 2, ALICE, "opus", 20, USD="0.2", EUR="3")
    await book(harness, 2, ALICE, "", 5)
    await book(harness, 2, BOB, "haiku", 100, USD="1")
    await book(harness, 3, MALLORY, "gpt", 7000, USD="70")


async def sums(client: httpx.AsyncClient, **query: str) -> dict[str, Any]:
    """Return the response of the usage route for March."""
    response = await client.get("/usage", params={"from": "2026-03-01", "to": "2026-04-01", **query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_usage_is_added_up_by_day(api_harness: ApiHarness) -> None:
    """By default a row for each day in UTC; the first day counts, the last one does not."""
    await march(api_harness)
    body = await sums(api_harness.alice)
    assert (body["from"], body["to"], body["by"]) == ("2026-03-01", "2026-04-01", ["day"])
    assert [(row["day"], row["input_tokens"]) for row in body["rows"]] == [("2026-03-01", 10), ("2026-03-02", 25)]
    assert body["rows"][1]["cost"] == [{"amount": "3", "currency": "EUR"}, {"amount": "0.2", "currency": "USD"}]
    assert body["total"]["cost"] == [{"amount": "3", "currency": "EUR"}, {"amount": "0.3", "currency": "USD"}]
    one_day = await sums(api_harness.alice, **{"from": "2026-03-02", "to": "2026-03-03"})
    assert one_day["total"]["input_tokens"] == 25
    assert (await sums(api_harness.alice, to="2026-03-02"))["total"]["input_tokens"] == 10


async def test_members_see_their_own_and_admins_their_organizations(api_harness: ApiHarness) -> None:
    """A member's sums are of their own tasks, an admin's of the organization's; nobody sees another organization."""
    await march(api_harness)
    clients = (api_harness.alice, api_harness.bob, api_harness.carol, api_harness.mallory)
    totals = [(await sums(client))["total"]["input_tokens"] for client in clients]
    assert totals == [35, 100, 135, 7000]
    await api_harness.worker.database.execute(f"UPDATE memberships SET active = false WHERE user_id = '{ALICE}'")
    assert (await sums(api_harness.alice))["rows"] == []
    assert (await api_harness.anonymous.get("/usage")).json() == SIGNED_OUT


async def test_a_result_with_too_many_rows_is_refused(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to get fewer rows; a shorter period is answered."""
    await march(api_harness)
    monkeypatch.setattr(handlers, "MAX_ROWS", 5)
    refused = await api_harness.alice.get(
        "/usage", params={"from": "2026-03-01", "to": "2026-04-01", "by": "day,model"}
    )
    assert (refused.status_code, refused.json()["message"]) == (400, "The result has more than 5 rows.")
    assert refused.json()["detail"] == "Ask for fewer days, or group by less."
    first_day = {"from": "2026-03-01", "to": "2026-03-02", "by": "day,model"}
    assert (await sums(api_harness.alice, **first_day))["total"]["input_tokens"] == 10
    monkeypatch.setattr(handlers, "MAX_ROWS", 6)
    assert (await sums(api_harness.alice, by="day,model"))["total"]["input_tokens"] == 35


async def test_usage_is_grouped(api_harness: ApiHarness) -> None:
    """Rows have the fields of what they are grouped by, in that order, and ids with their names."""
    await march(api_harness)
    body = await sums(api_harness.carol, by="user,model")
    rows = [(row["user_name"], row["model"], row["input_tokens"]) for row in body["rows"]]
    assert sorted(rows) == [("alice", "", 5), ("alice", "opus", 30), ("bob", "haiku", 100)]
    assert set(body["rows"][0]) == {"user_id", "user_name", "model", *COUNTERS, "cost"}
    (row,) = (await sums(api_harness.carol, by="organization,template"))["rows"]
    assert (row["organization_id"], row["organization_name"]) == (str(ORGANIZATION), "acme")
    assert (row["template_id"], row["template_name"]) == (str(TEMPLATE), "claude")


async def test_usage_as_csv(api_harness: ApiHarness) -> None:
    """Each column of numbers adds up, also with several currencies; no text is taken for a formula."""
    await march(api_harness)
    await book(api_harness, 4, ALICE, '=HYPERLINK("x","y")', 1)
    query = {"from": "2026-03-01", "to": "2026-04-01", "by": "day,model", "format": "csv"}
    response = await api_harness.alice.get("/usage", params=query)
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="usage-2026-03-01-2026-04-01.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert list(rows[0]) == ["day", "model", *COUNTERS, "amount", "currency"]
    assert [(row["day"][-2:], row["model"], row["input_tokens"], row["amount"], row["currency"]) for row in rows] == [
        ("01", "opus", "10", "0.1", "USD"),
        ("02", "", "5", "0", ""),
        ("02", "opus", "20", "3", "EUR"),
        ("02", "opus", "0", "0.2", "USD"),
        ("04", '\'=HYPERLINK("x","y")', "1", "0", ""),
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "March"}, "from"),
        ({"from": "2026-02-30"}, "from"),
        ({"to": "20260301"}, "to"),
        ({"to": "2026-03-01T00:00:00Z"}, "to"),
        ({"from": "2026-03-01", "to": "2026-03-01"}, "to"),
        ({"from": "2026-03-01", "to": "2027-03-03"}, "to"),
        ({"from": "9999-12-31", "to": "9999-12-31"}, "to"),
        ({"by": "color"}, "by"),
        ({"by": "day,"}, "by"),
        ({"format": "xml"}, "format"),
        ({"from": ""}, "from"),
        ({"to": ""}, "to"),
        ({"by": ""}, "by"),
        ({"format": ""}, "format"),
    ],
)
async def test_what_is_asked_wrongly(api_harness: ApiHarness, query: dict[str, str], field: str) -> None:
    """A 400 names the parameter."""
    response = await api_harness.alice.get("/usage", params=query)
    assert response.status_code == 400
    assert [(each["field"], each["detail"][:9]) for each in response.json()["validations"]] == [(field, "Expected ")]


async def test_the_default_is_the_last_month(api_harness: ApiHarness) -> None:
    """Without parameters the last 30 days count, today included; extreme dates are answered too."""
    await api_harness.worker.database.execute(
        "INSERT INTO daily_usage SELECT (now() AT TIME ZONE 'UTC')::date - ago, $1, $2, $3, 'm', '', 1, 0, 0, 0, 0"
        " FROM unnest(ARRAY[0, 29, 30]) AS ago",
        ORGANIZATION,
        ALICE,
        TEMPLATE,
    )
    body = (await api_harness.alice.get("/usage")).json()
    assert body["total"]["input_tokens"] == 2
    for query in ({"to": "0001-01-02"}, {"to": "9999-12-31"}, {"from": "0001-01-01", "to": "0002-01-02"}):
        response = await api_harness.alice.get("/usage", params=query)
        assert (response.status_code, response.json()["rows"]) == (200, [])


async def test_sums_have_no_limit_of_bits(api_harness: ApiHarness) -> None:
    """Sums that no machine word holds are exact."""
    await book(api_harness, 1, ALICE, "opus", 10**19, USD="9" * 20 + "." + "9" * 9)
    await book(api_harness, 1, BOB, "opus", 10**19, USD="0.000000003")
    body = await sums(api_harness.carol, by="organization")
    assert body["total"]["input_tokens"] == 2 * 10**19
    assert body["total"]["cost"] == [{"amount": "1" + "0" * 20 + ".000000002", "currency": "USD"}]


async def test_an_agent_reports_its_usage(api_harness: ApiHarness) -> None:
    """An agent's token reports the usage of its own build; what is wrong is refused and named."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    headers = {"Coder-Session-Token": agent_token(SECRET, task_id, 1)}

    async def report(**fields: Any) -> httpx.Response:
        return await api_harness.anonymous.post("/workspaceagents/me/usage", json=fields, headers=headers)

    cost = {"amount": "0.5", "currency": "USD"}
    response = await report(model="opus", input_tokens=3, output_tokens=None, cost=cost, context_used=10, other=1)
    assert (response.status_code, response.content) == (204, b"")
    assert (await report(model="opus", input_tokens=2, cost=cost)).status_code == 204
    await api_harness.worker.until_row("SELECT document #> '{usage,context_used}' IS NOT NULL FROM tasks")
    usage = (await api_harness.get(str(task_id)))["usage"]
    assert (usage["input_tokens"], usage["cost"], usage["context_used"]) == (3, [cost], 10)
    for fields, field in (
        ({"input_tokens": -1}, "input_tokens"),
        ({"cost": {"amount": 0.5, "currency": "USD"}}, "cost.amount"),
        ({"cost": {"amount": "1", "currency": "usd"}}, "cost.currency"),
        ({"model": "m" * 129}, "model"),
    ):
        refused = await report(**fields)
        assert refused.status_code == 400
        assert [each["field"] for each in refused.json()["validations"]] == [field]
    headers["Coder-Session-Token"] = api_harness.tokens["alice"]
    assert (await report(input_tokens=1)).json() == SIGNED_OUT


async def test_the_command_prints_sums(api_harness: ApiHarness) -> None:
    """``taskherd usage`` prints a table with the total, or the API's answer as JSON; errors have the usual codes."""
    logs.configure("warning", "auto")  # the log of the worker, in the same process, is no output of the command
    await march(api_harness)
    env = {"TASKHERD_URL": api_harness.base, "TASKHERD_TOKEN": api_harness.tokens["carol"], "COLUMNS": "200"}
    period = ("--from", "2026-03-01", "--to", "2026-04-01")

    async def run(*words: str, **more: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, ["usage", *words], env={**env, **more})

    printed = await run(*period, "--by", "user,model", "-o", "json")
    assert json.loads(printed.stdout) == await sums(api_harness.carol, by="user,model")
    lines = [line.split() for line in (await run(*period, "--by", "user,model")).stdout.splitlines()]
    assert lines[0][:3] == ["USER", "MODEL", "INPUT"]
    assert ["bob", "haiku", "100", "0", "0", "2", "1", "USD"] in lines
    assert lines[-1][:2] == ["total", "135"]
    assert lines[-1][-4:] == ["3", "EUR,", "1.3", "USD"]
    task_id = uuid.UUID((await api_harness.create(api_harness.carol, name="spent"))["id"])
    cost = {"amount": "0.10", "currency": "USD"}
    told = make_report("agent.usage", task_id, input_tokens=1200, cache_read_tokens=5, cost=cost)
    await api_harness.worker.report(told)
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("usage"))
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["task", "show", "spent"], env=env)
    assert "1,200 tokens in, 0 out, 5 of a cache, 0.1 USD" in shown.stdout
    refused = await run("--by", "color")
    assert (refused.exit_code, "Traceback" in refused.output) == (6, False)
    assert "by" in refused.stderr
    assert (await run(TASKHERD_TOKEN="wrong")).exit_code == 4
