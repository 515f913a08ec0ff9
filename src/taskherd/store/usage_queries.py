"""Sums of usage on behalf of a caller: members see their own, admins all of their organization. For ``ReadPool``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final, NamedTuple
from uuid import UUID

from taskherd.domain.usage import COUNTERS
from taskherd.store.read_pool import Reader, Row


class _Dimension(NamedTuple):
    """What sums can be grouped by: its columns, each with the name of its field, and a join for names."""

    fields: Mapping[str, str]
    join: str = ""


def _named(kind: str, table: str, name: str) -> _Dimension:
    return _Dimension(
        {f"{kind}_id": f"u.{kind}_id", f"{kind}_name": f"{table}.{name}"},
        f"LEFT JOIN {table} ON {table}.id = u.{kind}_id",
    )


DIMENSIONS: Final[Mapping[str, _Dimension]] = {
    "day": _Dimension({"day": "u.day"}),
    "organization": _named("organization", "organizations", "name"),
    "user": _named("user", "users", "username"),
    "template": _named("template", "templates", "name"),
    "model": _Dimension({"model": "u.model"}),
}
"""By what sums can be grouped, in their order in ``fields_of``."""

_SUMS: Final = ", ".join(f"sum(u.{name}) AS {name}" for name in (*COUNTERS, "amount"))


class UsageFilter(NamedTuple):
    """Which usage to add up: up to ``limit`` rows of what was booked from day ``since`` to the day before ``until``."""

    caller: UUID
    since: date
    until: date
    dimensions: Sequence[str]
    limit: int


def fields_of(dimensions: Sequence[str]) -> list[str]:
    """Return the names of the fields by which sums are grouped."""
    return [field for name in dimensions for field in DIMENSIONS[name].fields]


async def sums(pool: Reader, wanted: UsageFilter) -> Sequence[Row]:
    """Return sums in the order of their dimensions; each row has their fields, a currency, or "" for the tokens."""
    chosen = [DIMENSIONS[name] for name in wanted.dimensions]
    columns = [f"{column} AS {name}" for each in chosen for name, column in each.fields.items()]
    groups = ", ".join([*(column for each in chosen for column in each.fields.values()), "u.currency"])
    statement = f"""
    SELECT {", ".join([*columns, "u.currency"])}, {_SUMS}
    FROM daily_usage AS u {" ".join(each.join for each in chosen)}
    WHERE u.day >= $2 AND u.day < $3 AND COALESCE((
        SELECT a.role = 'admin' OR a.user_id = u.user_id
        FROM memberships AS a WHERE a.user_id = $1 AND a.organization_id = u.organization_id AND a.active), false)
    GROUP BY {groups} ORDER BY {groups} LIMIT $4
    """
    return await pool.fetch(statement, wanted.caller, wanted.since, wanted.until, wanted.limit)
