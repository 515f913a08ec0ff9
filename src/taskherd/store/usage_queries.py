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

# One lookup for each day and membership by the primary key: what others used on the same days is not read. OFFSET keeps
# the planner from joining the tables in another way.
_LOOKUP: Final = """
SELECT u.* FROM memberships AS a
CROSS JOIN generate_series(0, $3 - 1) AS n
CROSS JOIN LATERAL (
    SELECT * FROM daily_usage WHERE day = $2::date + n AND organization_id = a.organization_id {own} OFFSET 0) AS u
WHERE a.user_id = $1 AND a.active AND {role}
"""
_VISIBLE: Final = " UNION ALL ".join(
    (_LOOKUP.format(own="", role="a.role = 'admin'"), _LOOKUP.format(own="AND user_id = $1", role="a.role <> 'admin'"))
)


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
    FROM ({_VISIBLE}) AS u {" ".join(each.join for each in chosen)}
    GROUP BY {groups} ORDER BY {groups} LIMIT $4
    """
    days = (wanted.until - wanted.since).days  # asyncpg takes the first and the last date for infinite ones
    return await pool.fetch(statement, wanted.caller, wanted.since, days, wanted.limit)
