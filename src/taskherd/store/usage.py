"""Usage by build and model of each task, and booked by day. The caller holds the locks of the tasks' rows.

In both tables a row without a currency (``NO_CURRENCY``) holds tokens, and one with a currency its cost, so that each
column may be summed over any rows. Amounts are ``numeric``, which adds decimals exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.usage import COUNTERS, NOTHING, UsageAmounts, UsageKey
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names
from taskherd.store.tables import daily_usage, task_usage

NO_CURRENCY: Final = ""


class UsageNumbers(NamedTuple):
    """The tokens, or the cost in one currency, as in a row of either table."""

    currency: str
    amount: Decimal
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


class GrownUsage(NamedTuple):
    """The usage of a build and model of a task, as it is after a batch, and by how much it has grown."""

    task_id: UUID
    key: UsageKey
    amounts: UsageAmounts
    growth: UsageAmounts


class Account(NamedTuple):
    """Where usage is booked: whose, on which day (UTC), with which template and model."""

    day: date
    organization_id: UUID
    user_id: UUID
    template_id: UUID
    model: str


class _TaskRow(NamedTuple):
    task_id: UUID
    key: UsageKey
    numbers: UsageNumbers


class _DailyRow(NamedTuple):
    account: Account
    numbers: UsageNumbers


_NUMBERS: Final = (*COUNTERS, "amount")
_OF_NUMBERS: Final = {name: f"numbers.{name}" for name in UsageNumbers._fields}
_OF_ACCOUNT: Final = {name: f"account.{name}" for name in Account._fields}
_TASK_ROWS: Final = ColumnArrays(
    task_usage.c, attributes={**_OF_NUMBERS, "build_number": "key.build_number", "model": "key.model"}
)
_DAILY_ROWS: Final = ColumnArrays(daily_usage.c, prefix="d_", attributes={**_OF_NUMBERS, **_OF_ACCOUNT})

LOAD: Final = text(f"""
SELECT {column_names(task_usage.c, "u")}
FROM unnest(CAST(:ids AS uuid[]), CAST(:lowest AS integer[])) AS k(task_id, lowest)
JOIN task_usage AS u ON u.task_id = k.task_id AND u.build_number >= k.lowest
""")

# The rows of accounts are shared by many tasks: they are locked last in a transaction, and in one order.
SAVE: Final = text(f"""
WITH of_tasks AS (
    INSERT INTO task_usage AS t ({column_names(task_usage.c)})
    SELECT {column_names(task_usage.c)} FROM {_TASK_ROWS.unnest("u")}
    ORDER BY {column_names(task_usage.primary_key)}
    ON CONFLICT ({column_names(task_usage.primary_key)}) DO UPDATE
    SET {assignments(changing(task_usage), "excluded")}
)
INSERT INTO daily_usage AS d ({column_names(daily_usage.c)})
SELECT {column_names(daily_usage.c)} FROM {_DAILY_ROWS.unnest("b")}
ORDER BY {column_names(daily_usage.primary_key)}
ON CONFLICT ({column_names(daily_usage.primary_key)}) DO UPDATE
SET {", ".join(f"{name} = d.{name} + excluded.{name}" for name in _NUMBERS)}
""")


async def load(connection: AsyncConnection, lowest: Mapping[UUID, int]) -> dict[UUID, dict[UsageKey, UsageAmounts]]:
    """Return the usage of these tasks by build and model, of the builds from the ``lowest`` number given for each."""
    usage: dict[UUID, dict[UsageKey, UsageAmounts]] = {task_id: {} for task_id in lowest}
    for row in await connection.execute(LOAD, {"ids": list(lowest), "lowest": list(lowest.values())}):
        amounts = UsageAmounts(
            tuple(getattr(row, name) for name in COUNTERS),
            {} if row.currency == NO_CURRENCY else {row.currency: row.amount},
        )
        of_task, key = usage[row.task_id], UsageKey(row.build_number, row.model)
        of_task[key] = of_task.get(key, NOTHING).plus(amounts)
    return usage


async def save(
    connection: AsyncConnection, grown: Iterable[GrownUsage], booked: Mapping[Account, UsageAmounts]
) -> None:
    """Save what has grown, and book what is new.

    This locks rows that transactions about other tasks lock too, so it must be the last statement that locks any.
    """
    task_rows = [_TaskRow(each.task_id, each.key, row) for each in grown for row in _rows(each.amounts, each.growth)]
    daily_rows = [_DailyRow(account, row) for account, amounts in booked.items() for row in _rows(amounts, amounts)]
    await connection.execute(SAVE, {**_TASK_ROWS.parameters(task_rows), **_DAILY_ROWS.parameters(daily_rows)})


def _rows(amounts: UsageAmounts, growth: UsageAmounts) -> list[UsageNumbers]:
    """Return the rows of ``amounts`` that differ from before."""
    rows = [UsageNumbers(currency, amounts.cost[currency]) for currency in growth.cost]
    if any(growth.tokens):
        rows.append(UsageNumbers(NO_CURRENCY, Decimal(), *amounts.tokens))
    return rows
