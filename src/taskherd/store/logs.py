"""Log entries of tasks. The caller holds the lock of the task's row, acquired by an earlier statement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.statements import ColumnArrays, column_names
from taskherd.store.tables import task_logs


@dataclass(frozen=True, slots=True)
class LogEntryRow:
    """A log entry as reported; ``entry_id`` is assigned by the agent, unique within its build."""

    task_id: UUID
    build_number: int
    entry_id: int
    seq: int
    type: Literal["input", "output"]
    content: str
    time: datetime


ENTRY: Final = [task_logs.c[name] for name in ("task_id", "build_number", "entry_id", "seq", "type", "content", "time")]
ENTRIES: Final = ColumnArrays(ENTRY)

# No unique index can span partitions, so existing entries are looked up. The next log id has a table of its own because
# partitions are dropped.
APPEND: Final = text(f"""
WITH incoming AS (
    SELECT * FROM {ENTRIES.unnest("i", ordinality="position")}
), replaced AS (
    UPDATE task_logs AS l SET seq = i.seq, type = i.type, content = i.content, time = i.time
    FROM incoming AS i
    WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id AND l.seq < i.seq
), new_entries AS (
    SELECT i.*,
           row_number() OVER (PARTITION BY i.task_id ORDER BY i.position) AS rank,
           count(*) OVER (PARTITION BY i.task_id) AS new_count
    FROM incoming AS i
    WHERE NOT EXISTS (
        SELECT 1 FROM task_logs AS l
        WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id)
), heads AS (
    INSERT INTO task_log_heads AS h (task_id, next_log_id)
    SELECT task_id, count(*) FROM new_entries GROUP BY task_id ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET next_log_id = h.next_log_id + excluded.next_log_id
    RETURNING task_id, next_log_id
), added AS (
    INSERT INTO task_logs ({column_names(ENTRY)}, log_id, logged_at)
    SELECT {column_names(ENTRY, "n")}, h.next_log_id - n.new_count + n.rank - 1, :logged_at
    FROM new_entries AS n JOIN heads AS h USING (task_id)
)
SELECT count(*) FROM new_entries
""")


async def append(connection: AsyncConnection, entries: Sequence[LogEntryRow], logged_at: datetime) -> int:
    """Append entries in the given order and return the number of new ones.

    An entry with the build number and id of an existing one replaces its content if its ``seq`` is greater, and keeps
    the log id that was assigned when the entry was first committed.
    """
    newest = list(_newest(entries))
    values = {**ENTRIES.parameters(newest), "logged_at": logged_at}
    return int((await connection.execute(APPEND, values)).scalar_one())


def _newest(entries: Sequence[LogEntryRow]) -> Iterable[LogEntryRow]:
    """Keep the entry with the greatest ``seq`` for each id, at the position where the id first appeared."""
    newest: dict[tuple[UUID, int, int], LogEntryRow] = {}
    for entry in entries:
        key = (entry.task_id, entry.build_number, entry.entry_id)
        current = newest.get(key)
        if current is None or entry.seq > current.seq:
            newest[key] = entry
    return newest.values()
