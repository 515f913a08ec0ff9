"""What the commands of a batch depend on, besides their tasks: locked in one statement, and read in the next one.

Two statements, because a statement does not see what was committed while it waited for its locks.
https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import parked_reports, running_tasks
from taskherd.store.direct import DirectStatement

LOCK: Final = DirectStatement(f"""
SELECT pg_advisory_xact_lock(class, key)
FROM (
    SELECT {parked_reports.LOCK_CLASS} AS class, key FROM ({parked_reports.TASK_KEYS}) AS task_keys
    UNION ALL
    SELECT {running_tasks.LOCK_CLASS}, key FROM ({running_tasks.OWNER_KEYS}) AS owner_keys
    ORDER BY class, key
) AS locks
""")

READ: Final = DirectStatement(f"""
SELECT (SELECT revision FROM directory_revision),
       ARRAY(SELECT id FROM tasks WHERE id = ANY(CAST(:ids AS uuid[]))),
       EXISTS (SELECT FROM parked WHERE task_id = ANY(CAST(:ids AS uuid[]))),
       ARRAY(SELECT command_id FROM command_log WHERE command_id = ANY(CAST(:command_ids AS uuid[]))),
       ARRAY({running_tasks.COUNT}),
       ARRAY(
           SELECT chosen.position
           FROM unnest(CAST(:name_owners AS uuid[]), CAST(:names AS text[]))
                WITH ORDINALITY AS chosen(owner_id, name, position)
           JOIN tasks AS t ON t.owner_id = chosen.owner_id AND lower(t.name) = chosen.name AND t.deleted_at IS NULL
       )
""")


@dataclass(frozen=True, slots=True)
class References:
    """What commands refer to.

    Attributes:
        missing: the ids of the tasks that are expected not to exist, or were not found.
        command_ids: the ids of the commands.
        counted_owners: the owners whose running tasks are to be counted.
        names: the names that new tasks may get, as pairs of an owner's id and a lowercase name.
    """

    missing: Sequence[UUID]
    command_ids: Sequence[UUID]
    counted_owners: Sequence[UUID]
    names: Sequence[tuple[UUID, str]]


@dataclass(frozen=True, slots=True)
class Preconditions:
    """What was found.

    Attributes:
        directory_revision: the revision of the directory.
        existing: the ids of those missing tasks that exist after all.
        has_parked_reports: True if reports are parked for any of the missing tasks.
        recorded: the ids of the commands that were executed earlier.
        running: the number of running tasks of each owner, up to the limit.
        names_in_use: which of the names live tasks of the same owner have, by owner.
    """

    directory_revision: int
    existing: Sequence[UUID]
    has_parked_reports: bool
    recorded: Sequence[UUID]
    running: dict[UUID, int]
    names_in_use: dict[UUID, set[str]]


async def lock_and_read(connection: AsyncConnection, references: References, max_counted: int) -> Preconditions:
    """Lock the ids of missing tasks and the counted owners, then return what was found.

    Until the end of the transaction no other transaction can park reports for these tasks or create them, nor count
    the running tasks of these owners, so two starts cannot both see the last place. Each count is at most
    ``max_counted``. Lock the tasks that exist before.
    """
    locked = {"ids": references.missing, "owner_ids": references.counted_owners}
    await LOCK.fetch(connection, locked)
    values = {
        **locked,
        "limit": max_counted,
        "command_ids": references.command_ids,
        "name_owners": [owner_id for owner_id, _ in references.names],
        "names": [name for _, name in references.names],
    }
    (row,) = await READ.fetch(connection, values)
    names: dict[UUID, set[str]] = defaultdict(set)
    for position in row[5]:
        owner_id, name = references.names[position - 1]
        names[owner_id].add(name)
    running = dict(zip(references.counted_owners, row[4], strict=True))
    return Preconditions(row[0], row[1], row[2], row[3], running, dict(names))
