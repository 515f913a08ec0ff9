"""The index of the tasks and the totals: changes are recorded with the tasks, and applied a moment later by one worker.

Keeping an index of several columns up to date costs more than saving the task. So the transaction that changes a task
only records what its rows should be, over what is recorded of it already, and no two transactions write the same row.
Readers take a task with recorded changes from there (``task_lists``, ``task_totals``), so they see what is committed.
If more than ``MAX_CORRECTED`` wait, they see the tasks as indexed, without those that are deleted: to look at all that
wait would take longer than a statement may.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.statements import ColumnArrays, assignments, changing, column_names, stored
from taskherd.store.tables import task_index, task_index_changes, task_totals

LOCK_CLASS: Final = 7_745_503
"""Key of the advisory lock of the transaction that applies changes; any number that no other application uses.

A lock with one key, a ``bigint``, is another one than those of ``task_actions`` with this first key of two.
"""

INDEX_RESOLUTION: Final = timedelta(minutes=1)
"""The index has the time of the last change to this resolution: otherwise every report of an agent would change it."""

MAX_CORRECTED = 100_000
"""Maximum number of recorded changes by which readers correct what they find in the index and the totals."""

ALL_OWNERS: Final = "CAST('00000000-0000-0000-0000-000000000000' AS uuid)"
"""The owner of the totals over all owners of an organization."""


class IndexedTask(NamedTuple):
    """What the index should have of a task; ``terms`` is a JSON array of texts."""

    task_id: UUID
    organization_id: UUID
    owner_id: UUID
    template_id: UUID
    pool: str
    status: str
    state: str
    health: str
    waiting: bool
    stalled: bool
    created_at: datetime
    changed_at: datetime
    terms: str
    deleted: bool


_CHANGED_ROWS: Final = ColumnArrays(task_index_changes.c, prefix="x_")

RECORD: Final = f"""
INSERT INTO task_index_changes ({column_names(task_index_changes.c)})
SELECT {stored(task_index_changes.c)} FROM {_CHANGED_ROWS.unnest("x")}
ORDER BY task_id
ON CONFLICT (task_id) DO UPDATE SET {assignments(changing(task_index_changes), "excluded")}
"""
"""Records changes; part of the statements that save tasks, which are locked."""

LISTED: Final = ("template_id", "pool", "status", "state", "health", "waiting", "stalled")
"""The columns that ``task_totals`` counts by, for one owner."""

_GROUP: Final = ", ".join(("organization_id", "owner_id", *LISTED))
_ALL_OWNERS_GROUP: Final = ", ".join(("organization_id", ALL_OWNERS, *LISTED))
_BASE: Final = ", ".join(column.name for column in task_index.c if column.name != "term")
_REINDEXED: Final = [column for column in task_index.c if not column.primary_key]

LOCK: Final = text("SELECT pg_try_advisory_xact_lock(:lock_class)")

FIRST: Final = UUID(int=0)
"""An id before those of all tasks."""

TAKE: Final = text("""
SELECT task_id FROM task_index_changes WHERE task_id > :after ORDER BY task_id LIMIT :limit FOR UPDATE SKIP LOCKED
""")
"""In the order of the ids: from the beginning of the table it would pass all rows that were just deleted there."""

APPLY: Final = text(f"""
WITH taken AS MATERIALIZED (
    DELETE FROM task_index_changes WHERE task_id = ANY(CAST(:ids AS uuid[])) RETURNING *
), terms AS MATERIALIZED (
    SELECT task_id, '' COLLATE "C" AS term FROM taken WHERE NOT deleted
    UNION
    SELECT task_id, json_array_elements_text(terms) COLLATE "C" FROM taken WHERE NOT deleted
), earlier AS MATERIALIZED (
    SELECT {_BASE} FROM task_index WHERE task_id = ANY(CAST(:ids AS uuid[])) AND term = ''
), removed AS (
    DELETE FROM task_index AS i
    WHERE i.task_id = ANY(CAST(:ids AS uuid[]))
      AND NOT EXISTS (SELECT 1 FROM terms AS s WHERE s.task_id = i.task_id AND s.term = i.term)
), indexed AS (
    INSERT INTO task_index AS i ({column_names(task_index.c)})
    SELECT task_id, s.term, {column_names(_REINDEXED, "c")}
    FROM taken AS c JOIN terms AS s USING (task_id)
    ORDER BY task_id, s.term
    ON CONFLICT (task_id, term) DO UPDATE SET {assignments(_REINDEXED, "excluded")}
), moves AS (
    SELECT {_GROUP}, 1 AS tasks FROM taken WHERE NOT deleted
    UNION ALL
    SELECT {_GROUP}, -1 FROM earlier
)
INSERT INTO task_totals AS t ({column_names(task_totals.c)})
SELECT * FROM (
    SELECT {_GROUP}, sum(tasks) AS tasks FROM moves GROUP BY {_GROUP}
    UNION ALL
    SELECT {_ALL_OWNERS_GROUP}, sum(tasks) FROM moves GROUP BY {_ALL_OWNERS_GROUP}
) AS sums
WHERE tasks <> 0
ORDER BY {_GROUP}
ON CONFLICT ({_GROUP}) DO UPDATE SET tasks = t.tasks + excluded.tasks
""")

PRUNE: Final = text("DELETE FROM task_totals WHERE tasks = 0")


def backlog() -> str:
    """Return a CTE whose only row tells whether so few changes wait that readers look at them: ``is_small``."""
    return f"""backlog AS MATERIALIZED (
        SELECT count(*) <= {MAX_CORRECTED} AS is_small
        FROM (SELECT FROM task_index_changes LIMIT {MAX_CORRECTED + 1}) AS c
    )"""


IS_SMALL: Final = "(SELECT is_small FROM backlog)"
"""The condition for looking at recorded changes, in a statement with ``backlog``."""


def parameters(changed: Sequence[IndexedTask]) -> dict[str, Any]:
    """Return the parameters of ``RECORD``."""
    return _CHANGED_ROWS.parameters(changed)


async def apply(connection: AsyncConnection, limit: int, after: UUID = FIRST) -> list[UUID]:
    """Apply up to ``limit`` recorded changes to the index and the totals, and return their tasks in order.

    They are of the first tasks after one. Nothing is done while another transaction applies changes. Transactions that
    save tasks are not waited for; those of the same tasks wait until this one ends.
    """
    if not (await connection.execute(LOCK, {"lock_class": LOCK_CLASS})).scalar_one():
        return []
    ids = list((await connection.execute(TAKE, {"limit": limit, "after": after})).scalars())
    if ids:  # a statement of its own, which sees what was committed before the rows were locked
        await connection.execute(APPLY, {"ids": ids})
    return ids


async def prune(connection: AsyncConnection) -> None:
    """Delete the totals of values that no task has any more, unless changes are being applied."""
    if (await connection.execute(LOCK, {"lock_class": LOCK_CLASS})).scalar_one():
        await connection.execute(PRUNE)
