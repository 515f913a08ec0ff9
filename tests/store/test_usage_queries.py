"""Sums of usage: of what the caller may see, by any dimensions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import usage_queries
from taskherd.store.engine import session_settings
from taskherd.store.read_pool import Reader, ReadPool
from taskherd.store.usage_queries import UsageFilter
from tests.store.conftest import execute_script, reading_whole_tables, rows_read
from tests.store.world import ACME, ADA, ALICE, BETA, BETAS, BOB, CLAUDE, DORA, EVE, WORLD, ZED, ZERO

REMOVED = UUID(int=0x99)
"""A template that the directory does not have any more."""

USAGE = WORLD + "".join(
    f"INSERT INTO daily_usage (day, organization_id, user_id, template_id, model, currency, input_tokens,"
    f" output_tokens, cache_read_tokens, cache_write_tokens, amount) VALUES ('2026-01-{day:02}', '{organization}',"
    f" '{user}', '{template}', '{model}', '{currency}', {tokens}, 0, 0, 0, {amount});\n"
    for day, organization, user, template, model, currency, tokens, amount in (
        (2, ACME, ALICE, CLAUDE, "opus", "", 10, 0),
        (2, ACME, BOB, CLAUDE, "opus", "", 100, 0),
        (1, BETA, DORA, BETAS, "haiku", "", 1000, 0),
        (2, BETA, DORA, BETAS, "haiku", "USD", 0, "0.5"),
        (3, ACME, EVE, REMOVED, "opus", "", 10000, 0),
        (1, ACME, ALICE, CLAUDE, "haiku", "USD", 0, "1.25"),
    )
)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with the usage of several people."""
    await execute_script(engine, USAGE)
    async with reading_whole_tables(database_url) as pool:
        yield pool


class ExplainingReader:
    """A reader that executes a statement only to count the rows that it reads."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.read = 0.0

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """Return nothing, and add to the rows that were read."""
        explained = await self.connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values)
        self.read += rows_read(json.loads(explained)[0]["Plan"])
        return []


async def sums(reader: ReadPool, caller: UUID, *dimensions: str, days: tuple[int, int] = (1, 4), limit: int = 9) -> Any:
    """Return sums: the dimensions, the currency, the input tokens and the amount."""
    wanted = UsageFilter(caller, date(2026, 1, days[0]), date(2026, 1, days[1]), dimensions, limit)
    fields = (*usage_queries.fields_of(dimensions), "currency", "input_tokens", "amount")
    return [tuple(row[name] for name in fields) for row in await usage_queries.sums(reader, wanted)]


async def test_sums_are_of_what_the_caller_sees(reader: ReadPool) -> None:
    """Members see their own usage, admins that of their organization; who has left sees none."""
    for caller, tokens, amount in (
        (ALICE, 1010, "1.75"), (BOB, 100, None), (ADA, 10110, "1.25"), (DORA, 1000, "0.5"),
        (EVE, None, None), (ZED, None, None),
    ):  # fmt: skip
        expected = [("", tokens, Decimal(0))] if tokens else []
        expected += [("USD", 0, Decimal(amount))] if amount else []
        assert await sums(reader, caller) == expected, caller


async def test_sums_are_of_some_days(reader: ReadPool) -> None:
    """The last one is not among them."""
    for days, expected in (((1, 2), [1000]), ((2, 3), [10]), ((1, 3), [1010]), ((3, 3), [])):
        assert [row[1] for row in await sums(reader, ALICE, days=days) if not row[0]] == expected


async def test_sums_are_grouped_and_in_order(reader: ReadPool) -> None:
    """By any dimensions; what the directory no longer has is without a name."""
    zero, first, second, third = Decimal(0), *(date(2026, 1, number) for number in (1, 2, 3))
    assert await sums(reader, ADA, "day") == [
        (first, "USD", 0, Decimal("1.25")), (second, "", 110, zero), (third, "", 10000, zero)
    ]  # fmt: skip
    assert await sums(reader, ADA, "day", limit=2) == (await sums(reader, ADA, "day"))[:2]
    assert await sums(reader, ADA, "template") == [
        (CLAUDE, "claude", "", 110, zero), (CLAUDE, "claude", "USD", 0, Decimal("1.25")),
        (REMOVED, None, "", 10000, zero),
    ]  # fmt: skip
    assert await sums(reader, ALICE, "organization", "user") == [
        (ACME, "Acme", ALICE, "Alice", "", 10, zero), (ACME, "Acme", ALICE, "Alice", "USD", 0, Decimal("1.25")),
        (BETA, "Beta", DORA, "Dora", "", 1000, zero), (BETA, "Beta", DORA, "Dora", "USD", 0, Decimal("0.5")),
    ]  # fmt: skip
    assert await sums(reader, ALICE, "model", "day") == [
        ("haiku", first, "", 1000, zero), ("haiku", first, "USD", 0, Decimal("1.25")),
        ("haiku", second, "USD", 0, Decimal("0.5")), ("opus", second, "", 10, zero),
    ]  # fmt: skip


MANY = f"""
INSERT INTO daily_usage (day, organization_id, user_id, template_id, model, currency, input_tokens, output_tokens,
                         cache_read_tokens, cache_write_tokens, amount)
SELECT date '2026-01-01' + n % 90, CASE WHEN n % 2 = 0 THEN uuid '{ZERO}' ELSE uuid '{ACME}' END,
       CASE WHEN n % 100 = 1 THEN uuid '{BOB}' ELSE md5(n::text)::uuid END, '{CLAUDE}', 'm' || n, '', 1, 0, 0, 0, 0
FROM generate_series(1, 20000) AS n;
ANALYZE daily_usage;
"""


@pytest.mark.parametrize(("caller", "most"), [(EVE, 0), (ALICE, 10), (BOB, 250), (ADA, 10_100)])
async def test_only_what_the_caller_may_see_is_read(
    database_url: str, engine: AsyncEngine, caller: UUID, most: int
) -> None:
    """Not what all tenants used on the same days, nor what others of the same organization did."""
    await execute_script(engine, USAGE + MANY)
    connection = await asyncpg.connect(
        database_url, timeout=30, command_timeout=30, server_settings=session_settings("taskherd-tests")
    )
    try:
        reader = ExplainingReader(connection)
        wanted = UsageFilter(caller, date(2026, 1, 1), date(2026, 4, 1), ["day"], 1_000)
        assert await usage_queries.sums(cast("Reader", reader), wanted) == []
    finally:
        await connection.close(timeout=30)
    few = 20
    """The rows of memberships, templates and so on."""
    assert reader.read <= most + few
