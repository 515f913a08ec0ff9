"""Usage of tasks by build and model, as it was reported, and its growth, booked by day."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain.usage import UsageAmounts, UsageKey
from taskherd.store import usage
from taskherd.store.engine import transaction
from taskherd.store.usage import Account, GrownUsage
from tests.store.conftest import empty

ONE, TWO, OTHER = UUID(int=0x31), UUID(int=0x32), UUID(int=0x33)
DAY, LATER = date(2026, 1, 1), date(2026, 1, 2)
ACME, ALICE, CLAUDE = UUID(int=0xA), UUID(int=0xA1), UUID(int=0x11)
ACCOUNT = Account(DAY, ACME, ALICE, CLAUDE, "opus")
TOKENS = UsageAmounts((1, 2, 3, 4))


def cost(**amounts: str) -> UsageAmounts:
    """Return usage that is only a cost."""
    return UsageAmounts(cost={currency: Decimal(amount) for currency, amount in amounts.items()})


def grown(task_id: UUID, build: int, model: str, amounts: UsageAmounts) -> GrownUsage:
    """Return usage that was nothing before."""
    return GrownUsage(task_id, UsageKey(build, model), amounts, amounts)


async def booked(connection: AsyncConnection) -> list[tuple[object, ...]]:
    """Return the rows of accounts, in the order in which they were first written."""
    rows = await connection.execute(
        text(
            "SELECT day, organization_id, user_id, template_id, model, currency, input_tokens, output_tokens,"
            " cache_read_tokens, cache_write_tokens, amount FROM daily_usage ORDER BY ctid"
        )
    )
    return [tuple(row) for row in rows]


async def test_what_is_saved_is_loaded_by_build_and_model(engine: AsyncEngine) -> None:
    """Of the tasks that are asked for, each from its own lowest build on; tokens and costs of a model are together."""
    both = UsageAmounts((1, 2, 3, 4), {"EUR": Decimal("1.25"), "USD": Decimal("0.5")})
    async with transaction(engine) as connection:
        rows = [
            grown(ONE, 1, "opus", both), grown(ONE, 2, "opus", TOKENS), grown(ONE, 2, "", cost(USD="7")),
            grown(TWO, 2, "opus", UsageAmounts((0, 0, 0, 9))), grown(TWO, 3, "haiku", UsageAmounts((5, 0, 0, 0))),
            grown(OTHER, 3, "opus", UsageAmounts((8, 8, 8, 8))),
        ]  # fmt: skip
        await usage.save(connection, rows, {})
        assert await booked(connection) == []
        assert await usage.load(connection, {ONE: 1, TWO: 3, UUID(int=9): 1}) == {
            ONE: {
                UsageKey(1, "opus"): both,
                UsageKey(2, "opus"): TOKENS,
                UsageKey(2, ""): cost(USD="7"),
            },
            TWO: {UsageKey(3, "haiku"): UsageAmounts((5, 0, 0, 0))},
            UUID(int=9): {},
        }
        assert await usage.load(connection, {ONE: 2, TWO: 4}) == {
            ONE: {UsageKey(2, "opus"): TOKENS, UsageKey(2, ""): cost(USD="7")}, TWO: {}
        }  # fmt: skip


async def test_the_usage_of_a_task_is_replaced_where_it_has_grown(engine: AsyncEngine) -> None:
    """By what it is now, not by the growth; what has not grown is not written."""
    key = UsageKey(1, "opus")
    now = UsageAmounts((10, 20, 30, 40), {"EUR": Decimal(9), "USD": Decimal(5)})
    async with transaction(engine) as connection:
        await usage.save(connection, [grown(ONE, 1, "opus", UsageAmounts((10, 20, 30, 39), {"USD": Decimal(4)}))], {})
        await usage.save(connection, [GrownUsage(ONE, key, now, UsageAmounts((0, 0, 0, 1)))], {})
        expected = UsageAmounts(now.tokens, {"USD": Decimal(4)})
        assert await usage.load(connection, {ONE: 1}) == {ONE: {key: expected}}
        await usage.save(connection, [GrownUsage(ONE, key, now, cost(USD="1"))], {})
        assert await usage.load(connection, {ONE: 1}) == {ONE: {key: UsageAmounts(now.tokens, {"USD": Decimal(5)})}}


async def test_bookings_of_an_account_add_up(engine: AsyncEngine) -> None:
    """Those of each day, organization, user, template and model, tokens and each currency apart."""
    others = [
        ACCOUNT._replace(model="haiku"),
        ACCOUNT._replace(template_id=UUID(int=0x12)),
        ACCOUNT._replace(user_id=UUID(int=0xA2)),
        ACCOUNT._replace(organization_id=UUID(int=0xB)),
        ACCOUNT._replace(day=LATER),
    ]
    first = UsageAmounts((1, 20, 300, 4000), {"EUR": Decimal("0.25"), "USD": Decimal(3)})
    second = UsageAmounts((2, 0, 0, 0), {"EUR": Decimal("0.5")})
    async with transaction(engine) as connection:
        await usage.save(connection, [], dict.fromkeys(reversed([ACCOUNT, *others]), TOKENS))
        await usage.save(connection, [], {ACCOUNT: first})
        await usage.save(connection, [], {ACCOUNT: second})
        assert await usage.load(connection, {ONE: 0}) == {ONE: {}}
        rows = await booked(connection)
    assert {row[:5]: row[6:] for row in rows if row[5] == ""} == {
        ACCOUNT: (4, 22, 303, 4004, 0),
        **dict.fromkeys(others, (1, 2, 3, 4, 0)),
    }
    assert {row[5]: row[6:] for row in rows if row[5]} == {
        "EUR": (0, 0, 0, 0, Decimal("0.75")), "USD": (0, 0, 0, 0, 3)
    }  # fmt: skip


async def test_rows_of_accounts_are_written_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    """Whatever the order in which they are given, so that two transactions that share accounts do not deadlock."""
    accounts = [
        ACCOUNT,
        ACCOUNT._replace(template_id=UUID(int=0x12)),
        ACCOUNT._replace(user_id=UUID(int=0xA2)),
        ACCOUNT._replace(day=LATER),
    ]
    async with transaction(engine) as connection:
        await empty(connection, "daily_usage")
        await usage.save(connection, [], {accounts[place]: TOKENS for place in (2, 0, 3, 1)})
        assert [row[:5] for row in await booked(connection)] == accounts


async def test_rows_of_tasks_are_written_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    """As those of accounts are."""
    rows = [(TWO, 1, "a"), (ONE, 2, "a"), (ONE, 1, "b"), (ONE, 1, "a")]
    async with transaction(engine) as connection:
        await empty(connection, "task_usage")
        await usage.save(connection, [grown(*row, UsageAmounts((1, 0, 0, 0), {"USD": Decimal(2)})) for row in rows], {})
        found = await connection.execute(
            text("SELECT task_id, build_number, model, currency, amount FROM task_usage ORDER BY ctid")
        )
        assert [tuple(row) for row in found] == [
            (*row, currency, amount) for row in sorted(rows) for currency, amount in (("", 0), ("USD", 2))
        ]
