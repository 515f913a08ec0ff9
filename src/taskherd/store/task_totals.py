"""The totals that a caller may see: those of ``task_totals``, corrected by the recorded changes that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_index import ALL_OWNERS, IS_SMALL, backlog
from taskherd.store.task_lists import Listed, Statement

_COUNTED: Final = "status, state, health, waiting, stalled"


async def totals(
    pool: Reader, caller: UUID, listed: Listed, *, owner: UUID | None = None, organization: UUID | None = None
) -> Sequence[Row]:
    """Return the number of ``tasks`` that the caller may see and that match, for each combination of values.

    The rows have ``status``, ``state``, ``health``, ``waiting`` and ``stalled``.
    """
    statement = Statement(caller)
    within = "" if organization is None else f" AND a.organization_id = {statement.bind(organization)}"
    if owner is None:
        rows_of = f"k.owner_id = CASE a.role WHEN 'admin' THEN {ALL_OWNERS} ELSE $1 END"
        owned = "(a.role = 'admin' OR {row}.owner_id = $1)"
    else:
        chosen = statement.bind(owner)
        rows_of = f"k.owner_id = {chosen} AND {chosen} <> {ALL_OWNERS} AND (a.role = 'admin' OR {chosen} = $1)"
        owned = f"{{row}}.owner_id = {chosen} AND (a.role = 'admin' OR {{row}}.owner_id = $1)"
    text = f"""
    WITH {backlog()}, seen AS MATERIALIZED (
        SELECT a.organization_id, a.role FROM memberships AS a WHERE a.user_id = $1 AND a.active {within}
    )
    SELECT {_COUNTED}, CAST(sum(tasks) AS bigint) AS tasks
    FROM (
        SELECT {_columns("k")}, k.tasks
        FROM seen AS a JOIN task_totals AS k ON k.organization_id = a.organization_id AND {rows_of}
        WHERE k.tasks > 0 {listed.conditions("k", statement)}
        UNION ALL
        SELECT {_columns("c")}, 1
        FROM task_index_changes AS c JOIN seen AS a ON a.organization_id = c.organization_id
        WHERE {IS_SMALL} AND NOT c.deleted AND {owned.format(row="c")} {listed.conditions("c", statement)}
        UNION ALL
        SELECT {_columns("i")}, -1
        FROM task_index_changes AS c
        CROSS JOIN LATERAL (SELECT * FROM task_index WHERE task_id = c.task_id AND term = '' LIMIT 1) AS i
        JOIN seen AS a ON a.organization_id = i.organization_id
        WHERE {IS_SMALL} AND {owned.format(row="i")} {listed.conditions("i", statement)}
    ) AS counted
    GROUP BY {_COUNTED} HAVING sum(tasks) <> 0
    """
    return await pool.fetch(text, *statement.values)


def _columns(alias: str) -> str:
    return ", ".join(f"{alias}.{column}" for column in _COUNTED.split(", "))
