"""The conversations. The caller holds the lock of the task's row, taken by an earlier statement."""

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
    """One entry as reported; `entry_id` is the agent's own id, unique within its build."""

    task_id: UUID
    build_number: int
    entry_id: int
    seq: int
    type: Literal["input", "output"]
    content: str
    time: datetime


ENTRY: Final = [task_logs.c[name] for name in ("task_id", "build_number", "entry_id", "seq", "type", "content", "time")]
ENTRIES: Final = ColumnArrays(ENTRY)

# No unique index can span partitions, so entries are looked up; the head outlives those whose partition was dropped.
APPEND: Final = text(f"""
WITH incoming AS (
    SELECT * FROM {ENTRIES.unnest("i", ordinality="place")}
), replaced AS (
    UPDATE task_logs AS l SET seq = i.seq, type = i.type, content = i.content, time = i.time
    FROM incoming AS i
    WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id AND l.seq < i.seq
), fresh AS (
    SELECT i.*,
           row_number() OVER (PARTITION BY i.task_id ORDER BY i.place) AS rank,
           count(*) OVER (PARTITION BY i.task_id) AS many
    FROM incoming AS i
    WHERE NOT EXISTS (
        SELECT 1 FROM task_logs AS l
        WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id)
), heads AS (
    INSERT INTO task_log_heads AS h (task_id, next_log_id)
    SELECT task_id, count(*) FROM fresh GROUP BY task_id ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET next_log_id = h.next_log_id + excluded.next_log_id
    RETURNING task_id, next_log_id
), added AS (
    INSERT INTO task_logs ({column_names(ENTRY)}, log_id, logged_at)
    SELECT {column_names(ENTRY, "f")}, h.next_log_id - f.many + f.rank - 1, :logged_at
    FROM fresh AS f JOIN heads AS h USING (task_id)
)
SELECT count(*) FROM fresh
""")


async def append(conn: AsyncConnection, entries: Sequence[LogEntryRow], logged_at: datetime) -> int:
    """Add entries in the order given and return how many are new.

    One with the build number and id of an earlier entry replaces its text if its `seq` is greater; the log id, given
    when an entry is first committed, stays.
    """
    newest = list(_newest(entries))
    values = {**ENTRIES.parameters(newest), "logged_at": logged_at}
    return int((await conn.execute(APPEND, values)).scalar_one())


def _newest(entries: Sequence[LogEntryRow]) -> Iterable[LogEntryRow]:
    """One entry for each id, of the greatest `seq`, at the place where the id first appeared."""
    found: dict[tuple[UUID, int, int], LogEntryRow] = {}
    for entry in entries:
        key = (entry.task_id, entry.build_number, entry.entry_id)
        stamped = found.get(key)
        if stamped is None or entry.seq > stamped.seq:
            found[key] = entry
    return found.values()
